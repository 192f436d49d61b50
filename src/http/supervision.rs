//! What the owner of the servers knows of their threads and connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

/// How often a stop looks whether the connections from before it have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Where a thread gets the questions whether it still answers.
type Questions = mpsc::UnboundedSender<oneshot::Sender<()>>;

/// Supervises both servers. Clones share everything; each request has one.
#[derive(Clone, Debug, Default)]
pub struct Supervision(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_stopping: AtomicBool,
    /// How many connections are open that were accepted before the stop.
    early: AtomicUsize,
    /// How many threads there are once the servers have started.
    expected_threads: AtomicUsize,
    threads: watch::Sender<Vec<Questions>>,
}

/// A connection that was accepted before the stop.
#[derive(Debug)]
pub struct EarlyConnection(Supervision);

impl Drop for EarlyConnection {
    fn drop(&mut self) {
        self.0.0.early.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Supervision {
    /// From now on, each answer is the last one of its connection.
    pub fn stop(&self) {
        self.0.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn is_stopping(&self) -> bool {
        self.0.is_stopping.load(Ordering::Relaxed)
    }

    /// Counts a connection until the returned value is dropped; `None` if it was accepted after the stop.
    pub fn connection(&self) -> Option<EarlyConnection> {
        (!self.is_stopping()).then(|| {
            self.0.early.fetch_add(1, Ordering::Relaxed);
            EarlyConnection(self.clone())
        })
    }

    /// Resolves when all connections from before the stop have ended.
    pub async fn early_connections_end(&self) {
        while self.0.early.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Announces that a server will have this many threads.
    pub fn expect_threads(&self, count: usize) {
        self.0.expected_threads.fetch_add(count, Ordering::Relaxed);
    }

    /// Makes the current thread one that [`threads_answer`](Self::threads_answer) asks. A task on it answers as long as
    /// its event loop runs.
    pub fn join_thread(&self) {
        let (questions, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        actix_web::rt::spawn(async move {
            while let Some(answer) = asked.recv().await {
                // fails if nobody waits for it any longer
                let _ = answer.send(());
            }
        });
        self.0.threads.send_modify(|threads| {
            // those of threads that have ended
            threads.retain(|thread| !thread.is_closed());
            threads.push(questions);
        });
    }

    /// Resolves when all expected threads run and have answered.
    pub async fn threads_answer(&self) {
        let mut threads = self.0.threads.subscribe();
        loop {
            let is_complete = |threads: &Vec<Questions>| {
                let running = threads.iter().filter(|thread| !thread.is_closed()).count();
                running >= self.0.expected_threads.load(Ordering::Relaxed)
            };
            // Fewer while the servers start, and while one replaces a thread that has panicked.
            let running = threads.wait_for(is_complete).await.map(|threads| threads.clone()).unwrap_or_default();
            let answers = running.iter().filter(|thread| !thread.is_closed()).map(ask);
            if futures::future::join_all(answers).await.into_iter().all(|answered| answered) {
                return;
            }
        }
    }
}

/// Whether a thread answers; `false` if it ends first.
async fn ask(thread: &Questions) -> bool {
    let (answer, answered) = oneshot::channel();
    thread.send(answer).is_ok() && answered.await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use actix::Arbiter;

    use super::*;

    const NEVER: Duration = Duration::from_millis(200);

    async fn answers(supervision: &Supervision) -> bool {
        tokio::time::timeout(NEVER, supervision.threads_answer()).await.is_ok()
    }

    fn start_thread(supervision: &Supervision) -> Arbiter {
        let (thread, joining) = (Arbiter::new(), supervision.clone());
        thread.spawn_fn(move || joining.join_thread());
        thread
    }

    #[actix_web::test]
    async fn a_thread_that_hangs_or_has_not_started_does_not_answer_and_one_that_ended_is_replaced() {
        let supervision = Supervision::default();
        supervision.expect_threads(2);
        let first = start_thread(&supervision);
        assert!(!answers(&supervision).await, "one of two has started");
        start_thread(&supervision);
        supervision.threads_answer().await;

        let (release, released) = blocking::channel::<()>();
        let (hangs, hanging) = blocking::channel();
        first.spawn_fn(move || {
            hangs.send(()).expect("the test waits");
            let _ = released.recv();
        });
        hanging.recv().expect("it hangs");
        assert!(!answers(&supervision).await, "one hangs");
        drop(release);
        supervision.threads_answer().await;

        first.stop();
        first.join().expect("no panic");
        assert!(!answers(&supervision).await, "one has ended");
        start_thread(&supervision);
        supervision.threads_answer().await;
    }

    #[actix_web::test]
    async fn only_connections_from_before_the_stop_are_waited_for() {
        let supervision = Supervision::default();
        let early = supervision.connection().expect("before the stop");
        supervision.stop();
        assert!(supervision.connection().is_none());
        assert!(tokio::time::timeout(NEVER, supervision.early_connections_end()).await.is_err());
        drop(early);
        supervision.early_connections_end().await;
    }
}
