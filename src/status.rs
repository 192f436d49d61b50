//! The state of the service as the status page shows it: in numbers, and in words that say what to do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use user_http_actors::messages::{BufferState, ConsumerState, OutboxState};
use user_http_actors::{Error, UserHttpActors};

mod deliveries;
mod events;
mod feed;
mod health;
mod problems;
mod report;

pub use deliveries::{Deliveries, InProgress, Sent};
pub use events::RecentEvents;
pub use feed::Subscription;
pub use health::{StoreHealth, not_ready, store_health};
pub use report::Report;

/// How long an actor may take to answer. Normally it does within microseconds. A request for the status, and each event
/// of a stream, waits no longer than this: there is one at least each second.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);

/// How many status pages may be open at the same time. Each takes a connection of the API server and, while something
/// changes, up to 300 KB/s.
const MAX_STREAMS: usize = 64;

/// Streams take at most this share of the connections of the API server: the farm's services need the others.
const STREAM_SHARE: usize = 4;

/// Computes the [`Report`]. Clones share everything.
#[derive(Clone, Debug)]
pub struct Status(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    actors: UserHttpActors,
    deliveries: Deliveries,
    events: RecentEvents,
    started: Instant,
    /// The last answers, to show when an actor gives none.
    last: Mutex<Last>,
    /// The task that computes the report for all streams, while there are any.
    feed: Mutex<Weak<watch::Sender<Bytes>>>,
    /// A permit for each stream.
    streams: Arc<Semaphore>,
}

#[derive(Clone, Debug, Default)]
struct Last {
    /// `None` if the actor has never answered; likewise the others.
    buffer: Option<BufferState>,
    outbox: Option<OutboxState>,
    consumer: Option<Option<ConsumerState>>,
}

/// What is known of the actors.
#[derive(Debug, Default)]
struct Answers {
    last: Last,
    /// The actors that have not answered in time. What is known of them is older.
    late: Vec<&'static str>,
    is_stopping: bool,
}

impl Status {
    /// The status of a service with these actors. `connections` is how many the API server may have, if that is known.
    pub fn new(actors: UserHttpActors, events: RecentEvents, connections: Option<usize>) -> Self {
        let streams = connections.map_or(MAX_STREAMS, |connections| MAX_STREAMS.min(connections / STREAM_SHARE).max(1));
        Self(Arc::new(Inner {
            actors,
            deliveries: Deliveries::default(),
            events,
            started: Instant::now(),
            last: Mutex::default(),
            feed: Mutex::default(),
            streams: Arc::new(Semaphore::new(streams)),
        }))
    }

    /// The deliveries in progress.
    pub fn deliveries(&self) -> &Deliveries {
        &self.0.deliveries
    }

    /// The state of everything now. Takes at most [`ANSWER_TIMEOUT`].
    pub async fn report(&self) -> Report {
        let has_broker = self.0.actors.consumer().is_some();
        let answers = self.ask().await;
        let (count, deliveries) = self.0.deliveries.oldest(report::MAX_DELIVERIES);
        Report::new(
            answers,
            report::Facts {
                has_broker,
                uptime: self.0.started.elapsed(),
                now: SystemTime::now(),
                deliveries_count: count,
                deliveries,
                sent_total: self.0.deliveries.sent_total(),
                events: self.0.events.newest_first(),
            },
        )
    }

    /// Asks all actors at the same time.
    async fn ask(&self) -> Answers {
        let actors = &self.0.actors;
        let (buffer, outbox, consumer) = futures::join!(
            in_time(actors.buffer_state()),
            in_time(actors.outbox_state()),
            in_time(actors.consumer_state())
        );
        let mut answers = Answers::default();
        let mut last = lock(&self.0.last);
        answers.take("buffer", buffer, &mut last.buffer);
        answers.take("outbox", outbox, &mut last.outbox);
        answers.take("consumer", consumer, &mut last.consumer);
        answers.is_stopping |= last.buffer.as_ref().is_some_and(|buffer| buffer.is_stopping);
        Answers { last: last.clone(), ..answers }
    }
}

impl Answers {
    fn take<T>(&mut self, actor: &'static str, answer: Option<Result<T, Error>>, last: &mut Option<T>) {
        match answer {
            Some(Ok(state)) => *last = Some(state),
            // the actor has stopped
            Some(Err(_)) => self.is_stopping = true,
            None => self.late.push(actor),
        }
    }
}

/// The answer of an actor, or `None` after [`ANSWER_TIMEOUT`].
async fn in_time<T>(answer: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.ok()
}

/// Ignores poisoning: nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use actix::Arbiter;

    use super::*;
    use crate::Config;

    /// Actors on a thread of their own.
    fn actors() -> (UserHttpActors, Arbiter) {
        let arbiter = Arbiter::new();
        let (sender, started) = mpsc::channel();
        arbiter.spawn_fn(move || {
            let config = Config::load(["gateway", "--memory"].map(Into::into), []).expect("valid");
            let _ = sender.send(UserHttpActors::start(config.actors).expect("nothing is read"));
        });
        (started.recv().expect("a thread that starts them"), arbiter)
    }

    /// Blocks a thread until the returned value is dropped.
    fn block(arbiter: &Arbiter) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel();
        let (blocking, blocked) = mpsc::channel();
        arbiter.spawn_fn(move || {
            let _ = blocking.send(());
            // an error, when the sender is dropped
            let _ = released.recv();
        });
        blocked.recv().expect("a thread that runs");
        release
    }

    fn json(report: &Report) -> serde_json::Value {
        serde_json::to_value(report).expect("strings and numbers")
    }

    #[actix_web::test]
    async fn actors_that_hang_are_named_and_their_last_numbers_shown() {
        let (actors, arbiter) = actors();
        let body = r#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "one", "BUFFER_MSG": 1}}"#;
        actors
            .handle_communication_interface_message(user_http_actors::codec::Format::Json, body)
            .await
            .expect("accepted");
        let status = Status::new(actors, RecentEvents::default(), None);
        let before = json(&status.report().await);
        assert_eq!((&before["ready"], before["not_answering"].as_array().map(Vec::len)), (&true.into(), Some(0)));
        let release = block(&arbiter);
        let hanging = json(&status.report().await);
        assert_eq!(hanging["not_answering"], serde_json::json!(["buffer", "outbox", "consumer"][..2]), "{hanging}");
        assert_eq!((&hanging["ready"], &hanging["buffer"]["messages"]), (&false.into(), &1.into()), "{hanging}");
        let problem = hanging["problems"][0]["text"].as_str().expect("a text");
        assert!(problem.contains("buffer does not answer"), "{problem}");
        drop(release);
        while json(&status.report().await)["ready"] == false {}
    }

    #[actix_web::test]
    async fn what_was_never_known_is_null_and_not_zero() {
        let (actors, arbiter) = actors();
        let release = block(&arbiter);
        let report = json(&Status::new(actors, RecentEvents::default(), None).report().await);
        for part in ["buffer", "outbox", "broker"] {
            assert!(report[part].is_null(), "{part}: {report}");
        }
        drop(release);
    }

    #[actix_web::test]
    async fn streams_take_a_quarter_of_the_connections_at_most() {
        for (connections, streams) in [(None, 64), (Some(10_000), 64), (Some(40), 10), (Some(3), 1)] {
            let status = Status::new(actors().0, RecentEvents::default(), connections);
            let mut open: Vec<_> = (0..streams).map(|_| status.subscribe().expect("one more")).collect();
            assert!(status.subscribe().is_none(), "{connections:?}");
            assert!(open.pop().expect("one").next().await.is_some());
            assert!(status.subscribe().is_some(), "one has ended");
        }
    }
}
