//! A thread pool for the file system of one blend root. A file system that does not answer (a network mount whose
//! server is down) blocks only the threads of this pool.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

/// The threads that open and read the files of a blend root. A thread costs up to 256 KiB of stack, and one file
/// descriptor for each level of the path that it opens. 16 threads keep a disk or a file server busy.
pub const IO_THREADS: usize = 16;

/// The threads that compute digests of the files of a blend root. Two, so that one slow file does not stop the digests
/// of the others; more would take processor time from requests.
pub const DIGEST_THREADS: usize = 2;

/// Small, because resolving a path does not recurse, and chunks of files are on the heap.
const STACK_BYTES: usize = 256 << 10;

/// How long a thread without work stays alive.
const IDLE: Duration = Duration::from_secs(10);

/// Why work has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// The timeout passed: no permit was free, or the file system did not answer.
    TimedOut,
    /// The system could not start a thread, or the work panicked.
    NoThread,
}

/// A bounded number of threads, started when they are needed. Further work waits for a permit. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct IoPool(Arc<Shared>);

/// The pools of one blend root.
#[derive(Clone, Debug)]
pub struct RootPools {
    /// Opens, reads and closes files.
    pub io: IoPool,
    /// Computes digests. Separate, because a digest keeps a thread busy that a request for a file could use.
    pub digests: IoPool,
}

impl RootPools {
    /// The pools of the root with this number.
    pub fn new(root: usize) -> Self {
        Self {
            io: IoPool::new(format!("blend-root-{root}"), IO_THREADS),
            digests: IoPool::new(format!("blend-digest-{root}"), DIGEST_THREADS),
        }
    }
}

#[derive(Debug)]
struct Shared {
    name: String,
    max_threads: usize,
    /// One permit for each job that runs or is about to run. A job keeps its permit until it ends, even if nobody waits
    /// for its outcome any more.
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

type Job = Box<dyn FnOnce() + Send>;

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { jobs, threads, idle } = self;
        f.debug_struct("State").field("jobs", &jobs.len()).field("threads", threads).field("idle", idle).finish()
    }
}

impl IoPool {
    /// A pool of at most `max_threads` threads with this name.
    pub fn new(name: String, max_threads: usize) -> Self {
        Self(Arc::new(Shared {
            name,
            max_threads,
            permits: Arc::new(Semaphore::new(max_threads)),
            state: Mutex::default(),
            wake: Condvar::new(),
        }))
    }

    /// Runs `work` on a thread of the pool. Waits for a permit and for the outcome, for at most `timeout` in total. If
    /// that passes before a thread starts the work, it is never done. Work that has started keeps its permit until it
    /// ends.
    ///
    /// # Errors
    /// See [`NotDone`].
    pub async fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let outcome = async {
            let permit = Arc::clone(&self.0.permits).acquire_owned().await.map_err(|_| NotDone::NoThread)?;
            let (reply, outcome) = oneshot::channel();
            self.submit(Box::new(move || {
                if !reply.is_closed() {
                    // Fails if the receiver has been dropped meanwhile.
                    let _ = reply.send(work());
                }
                drop(permit);
            }))
            .map_err(|_| NotDone::NoThread)?;
            outcome.await.map_err(|_| NotDone::NoThread)
        };
        tokio::time::timeout(timeout, outcome).await.unwrap_or(Err(NotDone::TimedOut))
    }

    /// Runs `work`, whose outcome nobody needs, once a thread is free. If the pool has no thread and cannot start one,
    /// the caller's thread runs it.
    pub fn detach(&self, work: impl FnOnce() + Send + 'static) {
        if let Err((job, _)) = self.submit(Box::new(work)) {
            job();
        }
    }

    fn submit(&self, job: Job) -> Result<(), (Job, io::Error)> {
        let mut state = self.0.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
            self.0.wake.notify_one();
        } else if state.threads < self.0.max_threads {
            let shared = Arc::clone(&self.0);
            let builder = thread::Builder::new().name(self.0.name.clone()).stack_size(STACK_BYTES);
            match builder.spawn(move || PoolThread { shared, counted: true }.work()) {
                Ok(_) => state.threads += 1,
                // Without any thread, nobody would ever run it.
                Err(error) if state.threads == 0 => {
                    return state.jobs.pop_back().map_or(Ok(()), |job| Err((job, error)));
                }
                Err(_) => self.0.wake.notify_one(),
            }
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under this lock, so a panic leaves the state intact.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread of a pool.
struct PoolThread {
    shared: Arc<Shared>,
    /// Whether [`State::threads`] counts this thread. It does until the thread decides to end because there is no job.
    counted: bool,
}

impl PoolThread {
    fn work(mut self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    fn next(&mut self) -> Option<Job> {
        let mut state = self.shared.lock();
        if let Some(job) = state.jobs.pop_front() {
            return Some(job);
        }
        state.idle += 1;
        let waited = self.shared.wake.wait_timeout_while(state, IDLE, |state| state.jobs.is_empty());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        let job = state.jobs.pop_front();
        if job.is_none() {
            state.threads -= 1;
            self.counted = false;
        }
        job
    }
}

impl Drop for PoolThread {
    /// Uncounts the thread if a job has panicked.
    fn drop(&mut self) {
        if self.counted {
            self.shared.lock().threads -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::{Duration, Instant};

    use super::{IO_THREADS, IoPool, NotDone};

    const SOON: Duration = Duration::from_secs(30);
    const AT_ONCE: Duration = Duration::from_millis(20);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn work_that_hangs_holds_its_threads_and_no_others_and_what_waited_behind_it_is_not_begun() {
        let (hung, healthy) =
            (IoPool::new("hung".to_owned(), IO_THREADS), IoPool::new("healthy".to_owned(), IO_THREADS));
        let (release, gate) = crossbeam_channel::bounded::<()>(0);
        let begun = Arc::new(AtomicUsize::new(0));
        block_on(async {
            for round in 0..3 * IO_THREADS {
                let (gate, begun) = (gate.clone(), Arc::clone(&begun));
                let timeout = if round < IO_THREADS { AT_ONCE } else { Duration::ZERO };
                let work = move || {
                    begun.fetch_add(1, Ordering::SeqCst);
                    // Returns when `release` is dropped.
                    let _ = gate.recv();
                };
                assert_eq!(hung.run(timeout, work).await, Err(NotDone::TimedOut));
            }
            assert_eq!(healthy.run(SOON, || 7).await, Ok(7));
        });
        drop(release);
        // The pool works again. Work that timed out before it got a thread was never started.
        assert_eq!(block_on(hung.run(SOON, || 8)), Ok(8));
        assert!(begun.load(Ordering::SeqCst) <= IO_THREADS, "{begun:?} have begun");
        assert!(hung.0.lock().threads <= IO_THREADS);
    }

    #[test]
    fn what_is_detached_is_done_once_a_thread_is_free() {
        let pool = IoPool::new("test".to_owned(), IO_THREADS);
        let (done, outcome) = mpsc::channel();
        for number in 0..100 {
            let done = done.clone();
            pool.detach(move || done.send(number).expect("somebody waits"));
        }
        let mut numbers: Vec<_> = (0..100).map(|_| outcome.recv_timeout(SOON).expect("done")).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_is_an_error_and_its_thread_is_replaced() {
        let pool = IoPool::new("test".to_owned(), IO_THREADS);
        for _ in 0..2 * IO_THREADS {
            let outcome: Result<(), _> = block_on(pool.run(SOON, || panic!("part of the test")));
            assert_eq!(outcome, Err(NotDone::NoThread));
        }
        let start = Instant::now();
        assert_eq!(block_on(pool.run(SOON, || 7)), Ok(7));
        assert!(start.elapsed() < SOON);
    }
}
