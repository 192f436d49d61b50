//! The limits that the system sets for this process: threads and open files.

use std::num::NonZero;
use std::sync::{PoisonError, RwLock};
use std::{io, thread};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many threads there are at most in addition to those per core: for the stores, the broker connections, disk reads
/// and the log.
const OTHER_THREADS: usize = 24;

/// The stack of a thread that only probes whether it can be started, in bytes.
const PROBE_STACK: usize = 64 << 10;

/// The system gives fewer threads than the service needs.
#[derive(Debug, thiserror::Error)]
#[error(
    "only {started} more threads can be started, but up to {needed} are needed: {source}; raise the limit \
     (ulimit -u, LimitNPROC= and TasksMax= of systemd, pids.max of the control group)"
)]
pub struct ThreadError {
    /// How many could be started.
    started: usize,
    /// How many are needed.
    needed: usize,
    /// Why the next one could not be started.
    source: io::Error,
}

impl ThreadError {
    /// Not even one thread could be started.
    pub fn none(source: io::Error) -> Self {
        Self { started: 0, needed: needed_threads(), source }
    }
}

/// How many threads the service starts at most, besides the main thread.
fn needed_threads() -> usize {
    // Each server has one per core and one that accepts; the decoder has one per core.
    3 * cores() + 2 + OTHER_THREADS
}

/// Checks that the system allows as many threads as the service needs, because libraries that cannot start a thread
/// panic or wait forever. Call it before the configuration is loaded, which starts a thread.
///
/// # Errors
/// How many the system allows.
pub fn check_threads() -> Result<(), ThreadError> {
    let needed = needed_threads();
    let gate = RwLock::new(());
    let closed = gate.write().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        let failed = (0..needed).find_map(|started| {
            let wait = || drop(gate.read());
            let probe = thread::Builder::new().stack_size(PROBE_STACK).spawn_scoped(scope, wait);
            probe.err().map(|source| ThreadError { started, needed, source })
        });
        drop(closed);
        failed.map_or(Ok(()), Err)
    })
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Raises the limit of open files to its hard limit, because each connection takes a descriptor. The soft limit is
/// often 1,024, which only protects programs that use `select`.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("cannot raise the limit of open files, which stays {:?}: {error}", limit.current);
    }
}

/// How many files this process may have open.
pub fn open_files() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
