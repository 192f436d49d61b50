//! The requests to the actors of one process that have no answer yet, and what those who asked have got.

use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use user_http_actors::lease::{LeasedBufferMsg, NextMessage};
use user_http_actors::messages::ParkedMessages;
use user_http_actors::{Accepted, Error};
use uuid::Uuid;

/// A request with what is known of it.
pub type Request<K, T> = (K, JoinHandle<Result<T, Error>>);

/// A worker that waits for the message with this name.
pub struct Asked {
    pub name: String,
    /// It has an answer by then.
    pub until: Instant,
}

/// A delivery in progress.
pub struct Delivery {
    pub name: String,
    pub number: u64,
    pub leased: LeasedBufferMsg,
}

/// A message that the user manager has leased.
pub struct Taken {
    pub number: u64,
    pub message_id: Uuid,
    pub until: Instant,
    /// `None` once it has reached the user manager.
    pub next: Option<NextMessage>,
}

/// All of them. They are dropped with the process.
#[derive(Default)]
pub struct Requests {
    pub adds: Vec<Request<u64, ()>>,
    pub asked: Vec<Request<Asked, LeasedBufferMsg>>,
    pub deliveries: Vec<Delivery>,
    /// The name, and the message that was there last.
    pub discards: Vec<Request<(String, Option<u64>), ()>>,
    pub posts: Vec<Request<u64, Accepted>>,
    /// Posts with the key of an earlier one and another body.
    pub misuses: Vec<Request<u64, Accepted>>,
    pub parked: Vec<Request<(), ParkedMessages>>,
    pub outbox_discards: Vec<Request<u64, ()>>,
    pub taking: Vec<Request<Duration, Option<NextMessage>>>,
    pub taken: Vec<Taken>,
    pub deletions: Vec<Request<u64, ()>>,
}

/// Sends a message whose reply is a result.
pub fn send<A, M, T>(to: &Addr<A>, message: M) -> JoinHandle<Result<T, Error>>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message<Result = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    // a clone may send one message, however full the mailbox is
    let answer = to.clone().send(message);
    actix::spawn(async { answer.await.unwrap_or(Err(Error::Stopping)) })
}

/// Takes out the requests that have their answers.
pub async fn ended<K, T>(requests: &mut Vec<Request<K, T>>) -> Vec<(K, Result<T, Error>)> {
    let mut ended = Vec::new();
    for (key, answer) in requests.extract_if(.., |(_, answer)| answer.is_finished()) {
        ended.push((key, answer.await.expect("no panic")));
    }
    ended
}
