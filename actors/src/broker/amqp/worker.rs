//! The thread behind a publisher or a consumer: one connection after the other, with a back-off between them.

use std::convert::Infallible;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::Connection;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::AmqpConfig;
use super::connection::{SessionError, Socket, run_session};

/// The first pause; it doubles with every further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// With the time that connecting takes, a broker that is back is found within 5 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// A connection that has lived this long was no failure: the pauses begin small again. Longer than the longest pause,
/// so that one that always ends soon does not make for more attempts than none at all.
const GOOD_LIFE: Duration = Duration::from_secs(5);

/// A running thread. It ends when this is dropped, and does not make the dropper wait.
#[derive(Debug)]
pub(super) struct Worker {
    // Neither channel ever carries a message: each tells by being disconnected.
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

    /// Ends the thread and waits for that, at most for `deadline`. Says whether it has ended.
    pub(super) fn stop(self, deadline: Duration) -> bool {
        drop(self.stop);
        self.ended.recv_timeout(deadline) == Err(RecvTimeoutError::Disconnected)
    }
}

/// Runs `session` on one connection after the other, until `stop` is disconnected. Each gets a greater epoch. `report`
/// hears why each has ended, unless it was by `stop`.
pub(super) fn reconnect(
    role: &str,
    config: &AmqpConfig,
    stop: &Receiver<Infallible>,
    report: impl Fn(String),
    mut session: impl FnMut(u64, &mut Connection, &Socket) -> Result<(), SessionError>,
) {
    let mut pause = FIRST_PAUSE;
    let mut epoch = 0;
    loop {
        epoch += 1;
        let mut began = None;
        let ended = run_session(config, stop, |connection, socket| {
            began = Some(Instant::now());
            session(epoch, connection, socket)
        });
        if is_disconnected(stop) {
            return;
        }
        let reason = ended.err().unwrap_or_else(|| "the session has ended".to_owned());
        if began.is_some_and(|began| began.elapsed() >= GOOD_LIFE) {
            pause = FIRST_PAUSE;
        }
        // Downwards only, so that the longest pause stays the longest. Many clients of a restarted broker must not
        // all come back at the same moment.
        let jittered = pause.mul_f64(rand::random_range(0.5..=1.0));
        log::debug!("{role}: {reason}; next attempt in {} ms", jittered.as_millis());
        report(reason);
        if stop.recv_timeout(jittered) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn is_disconnected(stop: &Receiver<Infallible>) -> bool {
    stop.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected)
}
