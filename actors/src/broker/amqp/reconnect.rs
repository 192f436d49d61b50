//! The thread behind a publisher or a consumer: one connection after the other, with a back-off between them.

use std::convert::Infallible;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::Connection;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use super::AmqpConfig;
use super::connection::{SessionError, Socket, run_session};

/// The first pause; it doubles with every further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Together with the time that connecting takes, a broker that is back is found within 5 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// A session this long resets the back-off. Longer than the longest pause, so that one that always ends soon does not
/// make for more attempts than none at all.
const LONG_SESSION: Duration = Duration::from_secs(5);

/// A running thread. Dropping this ends the thread, without waiting for it.
#[derive(Debug)]
pub(super) struct Worker {
    // Neither channel ever carries a message: each is a signal by being disconnected.
    stop: Sender<Infallible>,
    ended: Receiver<Infallible>,
}

impl Worker {
    /// Starts a thread that runs `body` until the receiver given to it is disconnected.
    ///
    /// # Panics
    /// Where the operating system has no thread to give, as [`std::thread::spawn`].
    pub(super) fn spawn(name: &str, body: impl FnOnce(&Receiver<Infallible>) + Send + 'static) -> Self {
        let (stop, stopped) = bounded(0);
        let (end, ended) = bounded(0);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Dropped last, by unwinding too.
                let _end: Sender<Infallible> = end;
                body(&stopped);
            })
            .expect("the operating system gives a thread");
        Self { stop, ended }
    }

    /// Ends the thread and waits for its end, for `deadline` at the most. Returns whether it has ended.
    pub(super) fn stop(self, deadline: Duration) -> bool {
        drop(self.stop);
        self.ended.recv_timeout(deadline) == Err(RecvTimeoutError::Disconnected)
    }
}

/// The pauses between attempts that fail.
pub(super) struct BackOff(Duration);

impl BackOff {
    pub(super) fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    /// The next pause is the first again.
    pub(super) fn reset(&mut self) {
        self.0 = FIRST_PAUSE;
    }

    /// Notes how long an attempt went well.
    pub(super) fn session_ended(&mut self, began: Instant) {
        if began.elapsed() >= LONG_SESSION {
            self.reset();
        }
    }

    /// The next pause.
    fn next(&mut self) -> Duration {
        // Downwards only, so that the longest pause stays the longest. Many clients of a restarted broker must not all
        // come back at the same moment.
        let jittered = self.0.mul_f64(rand::random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        jittered
    }

    /// Pauses. Returns `false` where `stop` was disconnected meanwhile.
    pub(super) fn pause(&mut self, stop: &Receiver<Infallible>) -> bool {
        stop.recv_timeout(self.next()) == Err(RecvTimeoutError::Timeout)
    }
}

/// Runs `session` on one connection after the other until `stop` is disconnected. Each session is given the number of
/// the attempt, from 1 on. Calls `report` with the reason each time that an attempt or a connection has ended, unless
/// by `stop`.
pub(super) fn reconnect(
    role: &str,
    config: &AmqpConfig,
    stop: &Receiver<Infallible>,
    report: impl Fn(String),
    mut session: impl FnMut(u64, &mut Connection, &Socket) -> Result<(), SessionError>,
) {
    let mut back_off = BackOff::new();
    for attempt in 1.. {
        let mut began = None;
        let ended = run_session(config, stop, |connection, socket| {
            began = Some(Instant::now());
            session(attempt, connection, socket)
        });
        if is_disconnected(stop) {
            return;
        }
        began.into_iter().for_each(|began| back_off.session_ended(began));
        let reason = ended.err().unwrap_or_else(|| "the session has ended".to_owned());
        log::debug!("{role}: {reason}; trying again");
        report(reason);
        if !back_off.pause(stop) {
            return;
        }
    }
}

fn is_disconnected(stop: &Receiver<Infallible>) -> bool {
    stop.try_recv() == Err(TryRecvError::Disconnected)
}
