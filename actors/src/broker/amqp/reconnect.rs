//! The thread of a publisher or a consumer: one connection after another, with a back-off between them.

use std::convert::Infallible;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::Connection;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use super::AmqpConfig;
use super::connection::{ConnectionEnd, SessionError, Socket, run_session};

/// The first pause of the back-off. It doubles with every further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause of the back-off. With the time that connecting takes, a restarted broker is found within 5 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// A session this long resets the back-off. Longer than the longest pause, so that sessions that always end soon do not
/// cause more attempts than a broker that does not answer.
const LONG_SESSION: Duration = Duration::from_secs(5);

/// A running thread. Dropping this ends the thread, without waiting for it.
#[derive(Debug)]
pub(super) struct Worker {
    // Neither channel ever carries a message. The signal is its disconnection.
    stop: Sender<Infallible>,
    ended: Receiver<Infallible>,
}

impl Worker {
    /// Starts a thread that runs `body` until the receiver given to it is disconnected.
    ///
    /// # Panics
    /// If no thread can be started, as [`std::thread::spawn`] does.
    pub(super) fn spawn(name: &str, body: impl FnOnce(&Receiver<Infallible>) + Send + 'static) -> Self {
        let (stop, stopped) = bounded(0);
        let (end, ended) = bounded(0);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Dropped last, also by unwinding.
                let _end: Sender<Infallible> = end;
                body(&stopped);
            })
            .expect("a thread can be started");
        Self { stop, ended }
    }

    /// Ends the thread, and waits for that for at most `deadline`. Returns whether it has ended.
    pub(super) fn stop(self, deadline: Duration) -> bool {
        drop(self.stop);
        self.ended.recv_timeout(deadline) == Err(RecvTimeoutError::Disconnected)
    }
}

/// Which node of the broker is tried, and how many were tried in vain.
struct Turn {
    nodes: Vec<AmqpConfig>,
    node: usize,
    failed: usize,
}

impl Turn {
    fn new(config: &AmqpConfig) -> Self {
        Self { nodes: config.nodes(), node: 0, failed: 0 }
    }

    fn node(&self) -> &AmqpConfig {
        &self.nodes[self.node]
    }

    /// Goes on to the next node. Returns whether all of them have failed since the last time, or since the last long
    /// session.
    fn next(&mut self) -> bool {
        self.node = (self.node + 1) % self.nodes.len();
        self.failed = (self.failed + 1) % self.nodes.len();
        self.failed == 0
    }
}

/// The pauses between failed attempts.
struct BackOff(Duration);

impl BackOff {
    fn next(&mut self) -> Duration {
        // Random, so that the clients of a restarted broker do not all reconnect at the same moment. Only ever shorter,
        // so that `LONGEST_PAUSE` is the longest.
        let jittered = self.0.mul_f64(rand::random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        jittered
    }
}

/// What a session needs to know about the attempts before it.
pub(super) struct Attempt {
    /// Counts from 1.
    pub(super) number: u64,
    /// Whether the broker may have been restarted since the last session, because a connection was lost or could not be
    /// made.
    pub(super) after_loss: bool,
}

/// Runs `session` on one connection after another until `stop` is disconnected: at the next node after one was lost, at
/// the same node after the broker has only refused something. Calls `report` whenever a connection
/// has ended or could not be made, but not for an end that `stop` has caused.
pub(super) fn reconnect(
    role: &str,
    config: &AmqpConfig,
    stop: &Receiver<Infallible>,
    report: impl Fn(ConnectionEnd),
    mut session: impl FnMut(Attempt, &mut Connection, &Socket) -> Result<(), SessionError>,
) {
    let mut back_off = BackOff(FIRST_PAUSE);
    let mut turn = Turn::new(config);
    let mut after_loss = false;
    for number in 1.. {
        let mut began = None;
        let ended = run_session(turn.node(), stop, |connection, socket| {
            began = Some(Instant::now());
            log::info!("{role}: connected to {}", turn.node().url);
            session(Attempt { number, after_loss }, connection, socket)
        });
        if is_disconnected(stop) {
            return;
        }
        let end = ended.err().unwrap_or_else(|| ConnectionEnd::lost("the session has ended".to_owned()));
        if end.by_poison || began.is_some_and(|began| began.elapsed() >= LONG_SESSION) {
            back_off = BackOff(FIRST_PAUSE);
            turn.failed = 0;
        }
        after_loss = end.lost || after_loss && began.is_none();
        let pauses = !end.lost || turn.next();
        log::debug!("{role}: {}; trying again", end.reason);
        report(end);
        let pause = if pauses { back_off.next() } else { Duration::ZERO };
        if stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

fn is_disconnected(stop: &Receiver<Infallible>) -> bool {
    stop.try_recv() == Err(TryRecvError::Disconnected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_tried_once_before_a_pause() {
        let urls = ["amqp://a", "amqp://b", "amqp://c"].map(|url| url.parse().expect("a valid URL"));
        let [first, further_urls @ ..] = urls;
        let config = AmqpConfig { further_urls: further_urls.to_vec(), ..AmqpConfig::new(first) };
        let mut turn = Turn::new(&config);
        let mut next = || {
            let pauses = turn.next();
            (turn.node().url.address(), pauses)
        };
        let tried = |name: &str, pauses| (format!("{name}:5672"), pauses);
        assert_eq!([next(), next(), next()], [tried("b", false), tried("c", false), tried("a", true)]);
        assert_eq!([next(), next()], [tried("b", false), tried("c", false)]);
        // a long session
        turn.failed = 0;
        assert!(!turn.next());
        let mut alone = Turn::new(&AmqpConfig::new(config.url));
        assert!(alone.next() && alone.next(), "a single node is never tried again at once");
    }
}
