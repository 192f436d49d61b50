//! One process: the actors on their stores, from a start to a kill or a stop.

use std::future::Future;
use std::time::Duration;

use actix::{Addr, AsyncContext, Context};
use user_http_actors::decoder::Decoder;
use user_http_actors::messages::{BufferState, FromStore, GetBufferState, GetOutboxState, OutboxState};
use user_http_actors::publisher::FrameAck;
use user_http_actors::{BufferActor, UserManagerPublisher};

use crate::books::Books;
use crate::exchange::Exchange;
use crate::machine::{Machine, RunningStore};
use crate::queue::Consuming;

/// The names of the stores; their places are [`BUFFER`] and [`OUTBOX`].
pub const STORES: [&str; 2] = ["buffer", "outbox"];
pub const BUFFER: usize = 0;
pub const OUTBOX: usize = 1;

/// The limits: small enough to be reached.
pub const MAX_BUFFERED: u64 = 20_000;
pub const MAX_OUTBOX: u64 = 30_000;

/// How often whatever is to be done is looked for after a step. A message takes some turns from its sender through an
/// actor to another and back.
const TURNS: usize = 32;

/// Runs a process with a clock that only the simulation moves. Everything of it is dropped when it returns.
pub fn in_a_process<T>(run: impl Future<Output = T>) -> T {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    actix::System::with_tokio_rt(|| runtime().expect("a runtime")).block_on(run)
}

/// Lets the actors do what they have to do.
pub async fn settle() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// The running actors.
pub struct Process {
    pub buffer: Addr<BufferActor>,
    pub publisher: Addr<UserManagerPublisher>,
    pub consuming: Consuming,
    /// `None` if the user manager fetches its messages.
    pub exchange: Option<Exchange>,
    /// In the order of [`STORES`].
    pub stores: [RunningStore; 2],
    pub books: Books,
    /// What the recovered messages cost.
    pub recovered_bytes: [u64; 2],
}

impl Process {
    pub async fn start(machine: &Machine, frame_ack: Option<FrameAck>, ttl: Duration) -> Self {
        let books = Books::new();
        let (ctx, owner) = owned::<BufferActor>();
        let (buffer_store, recovered) = machine.open(BUFFER, move |event| owner.do_send(FromStore(event)));
        let actor = books.start(|| BufferActor::new(buffer_store.handle(), recovered, MAX_BUFFERED, ttl));
        let buffer = ctx.run(actor.expect("sound records"));

        let (ctx, owner) = owned::<UserManagerPublisher>();
        let (outbox_store, recovered) = machine.open(OUTBOX, move |event| owner.do_send(FromStore(event)));
        let (handle, address) = (outbox_store.handle(), ctx.address());
        let start = |broker| {
            let actor = books.start(|| UserManagerPublisher::new(handle, recovered, MAX_OUTBOX, broker, address));
            ctx.run(actor.expect("sound records"))
        };
        let (publisher, exchange) = match frame_ack {
            Some(frame_ack) => {
                let (publisher, exchange) = Exchange::start(frame_ack, |route| start(Some(route)));
                (publisher, Some(exchange))
            }
            None => (start(None), None),
        };
        let consuming = books.start(|| Consuming::start(Decoder::start(), buffer.clone()));
        let stores = [buffer_store, outbox_store];
        let mut process = Self { buffer, publisher, consuming, exchange, stores, books, recovered_bytes: [0; 2] };
        settle().await;
        process.recovered_bytes = [process.buffer_state().await.bytes, process.outbox_state().await.bytes];
        process
    }

    pub async fn buffer_state(&self) -> BufferState {
        self.buffer.send(GetBufferState).await.expect("the buffer is alive")
    }

    pub async fn outbox_state(&self) -> OutboxState {
        self.publisher.send(GetOutboxState).await.expect("the publisher is alive")
    }

    /// The state of the actors, whose bounds are kept and whose books balance.
    pub async fn check(&self) -> (BufferState, OutboxState) {
        let (buffer, outbox) = (self.buffer_state().await, self.outbox_state().await);
        let [buffered, held] = self.recovered_bytes;
        assert!(buffer.bytes <= MAX_BUFFERED.max(buffered), "the buffer exceeds its limit: {buffer:?}");
        assert!(outbox.bytes <= MAX_OUTBOX.max(held), "the outbox exceeds its limit: {outbox:?}");
        assert_eq!(self.books.scrape().sum("buffer_messages", &[]), buffer.messages as f64);
        (buffer, outbox)
    }
}

/// A context for an actor, and the address for the thread of its store.
fn owned<A: actix::Actor<Context = Context<A>>>() -> (Context<A>, Addr<A>) {
    let ctx = Context::new();
    let owner = ctx.address();
    (ctx, owner)
}
