//! What the system lets this process have: threads and open files.

use std::num::NonZero;
use std::sync::{PoisonError, RwLock};
use std::{io, thread};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Threads beside those that are one for each core: of the stores, of the broker's connections, those that wait for the
/// disk, and the log's.
const OTHER_THREADS: usize = 24;

/// The stack of a thread that is started to see whether there is one, in bytes.
const PROBE_STACK: usize = 64 << 10;

/// The system gives fewer threads than the service needs.
#[derive(Debug, thiserror::Error)]
#[error(
    "only {started} threads more can be started, and up to {needed} are needed: {source}; raise the limit \
     (ulimit -u, LimitNPROC= and TasksMax= of systemd, pids.max of the control group)"
)]
pub struct ThreadError {
    /// How many could be started.
    started: usize,
    /// How many are needed.
    needed: usize,
    /// What the system said of the next one.
    source: io::Error,
}

impl ThreadError {
    /// There is not even one thread, for the reason that the system gives.
    pub fn none(source: io::Error) -> Self {
        Self { started: 0, needed: needed_threads(), source }
    }
}

/// How many threads the service starts at the most, beside the main one.
fn needed_threads() -> usize {
    // each server has one a core and one that accepts; the decoder has one a core
    3 * cores() + 2 + OTHER_THREADS
}

/// Whether the system gives as many threads as the service needs: libraries panic where they get none, or wait for ever. To be
/// called before the configuration is loaded, which starts one.
///
/// # Errors
/// How many it gives.
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

/// Each connection takes a file descriptor, and the limit is often 1,024 only for the sake of programs that use `select`.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("the limit of open files stays {:?}: {error}", limit.current);
    }
}
