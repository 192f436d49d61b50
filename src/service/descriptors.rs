//! Divides the file descriptors of the process among connections and .blend files.

use std::num::NonZero;
use std::thread;

use rustix::process::{Resource, getrlimit};
use user_http_actors::store::files::MAX_OPEN_FILES;

/// Descriptors of a store: its lock, its segments, deleted segments that are still read, and its body files.
const STORE_FILES: u64 = MAX_OPEN_FILES as u64;

/// Descriptors of the two connections to the broker, each with a thread that polls.
const BROKER_FILES: u64 = 16;

/// Standard streams, listening sockets, the runtime of the main thread, and files that are read again (tokens,
/// certificates, the folders of the path to a .blend file).
const OTHER_FILES: u64 = 32;

/// Descriptors of each server thread: its epoll, its wake-up and its signals.
const THREAD_FILES: u64 = 6;

/// Descriptors of each thread that decodes: the body file that it reads.
const DECODER_FILES: u64 = 1;

/// The service does not start if fewer descriptors than these are left for connections and .blend files.
const MIN_SHARED_FILES: u64 = 32;

/// How many descriptors each use may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Connections of the worker server.
    pub workers: usize,
    /// Connections of the API server, reserved for it however many workers there are.
    pub services: usize,
    /// Open .blend files, that is, files being sent.
    pub blend_files: usize,
}

/// The process may open too few files for the service.
#[derive(Debug, thiserror::Error)]
#[error(
    "the limit of {limit} open files is too low: at least {needed} are needed; raise it (ulimit -n, LimitNOFILE= of \
     systemd)"
)]
pub struct DescriptorError {
    /// The limit of the process.
    pub limit: u64,
    /// The lowest limit with which the service starts.
    pub needed: u64,
}

impl DescriptorBudget {
    /// Gives `connections` to each server and `blend_files` to .blend files. If the process's limit of open files does
    /// not allow that much, gives less, and returns a warning that says so.
    ///
    /// # Errors
    /// The limit leaves fewer than [`MIN_SHARED_FILES`].
    pub fn within_limit(connections: usize, blend_files: usize) -> Result<(Self, Option<String>), DescriptorError> {
        let wanted = Self { workers: connections, services: connections, blend_files };
        let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok((wanted, None)) };
        let budget = Self::of(limit, cores(), wanted)?;
        if budget.workers == connections && budget.services == connections {
            return Ok((budget, None));
        }
        let Self { workers, services, blend_files } = budget;
        let warning = format!(
            "--max-connections {connections} exceeds what the limit of {limit} open files allows: {workers} \
             connections of workers, {services} of the farm's services, and {blend_files} .blend files at the same \
             time; raise the limit (ulimit -n, LimitNOFILE= of systemd)"
        );
        Ok((budget, Some(warning)))
    }

    /// Divides what `limit` leaves: up to a quarter for the API server, up to a quarter for .blend files, and the rest
    /// for workers.
    fn of(limit: u64, cores: usize, wanted: Self) -> Result<Self, DescriptorError> {
        let reserve = 2 * STORE_FILES + BROKER_FILES + OTHER_FILES + cores as u64 * (2 * THREAD_FILES + DECODER_FILES);
        let Some(shared) = limit.checked_sub(reserve).filter(|shared| *shared >= MIN_SHARED_FILES) else {
            return Err(DescriptorError { limit, needed: reserve + MIN_SHARED_FILES });
        };
        let shared = usize::try_from(shared).unwrap_or(usize::MAX);
        let services = wanted.services.min(shared / 4);
        let blend_files = wanted.blend_files.min(shared / 4);
        let workers = wanted.workers.min(shared - services - blend_files);
        // What workers do not need.
        let services = wanted.services.min(shared - workers - blend_files);
        let blend_files = wanted.blend_files.min(shared - workers - services);
        Ok(Self { workers, services, blend_files })
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: DescriptorBudget = DescriptorBudget { workers: 10_000, services: 10_000, blend_files: 4_096 };

    #[test]
    fn what_fits_is_given_in_full() {
        for limit in [24_400, 65_536, 1 << 20, u64::MAX] {
            assert_eq!(DescriptorBudget::of(limit, 2, WANTED).expect("enough"), WANTED, "{limit}");
        }
    }

    #[test]
    fn what_does_not_fit_leaves_the_reserve_and_something_for_each() {
        for cores in [1, 2, 8] {
            for limit in [336, 1_024, 4_096, 20_000] {
                let DescriptorBudget { workers, services, blend_files } =
                    DescriptorBudget::of(limit, cores, WANTED).expect("enough");
                let shared = (workers + services + blend_files) as u64;
                let reserve = limit - shared;
                assert!(reserve >= 2 * STORE_FILES + BROKER_FILES + OTHER_FILES, "{limit}, {cores}: {reserve}");
                let least = (shared / 4).min(4_096) as usize;
                assert!(workers >= least && services >= least && blend_files >= least, "{limit}, {cores}");
            }
        }
    }

    #[test]
    fn what_one_does_not_need_another_gets() {
        let wanted = DescriptorBudget { workers: 100, services: 10_000, blend_files: 10 };
        let budget = DescriptorBudget::of(2_000, 1, wanted).expect("enough");
        assert_eq!((budget.workers, budget.blend_files), (100, 10));
        assert!(budget.services > 1_500, "{budget:?}");
    }

    #[test]
    fn a_limit_that_leaves_hardly_anything_is_refused_and_the_lowest_named_is_enough() {
        let Err(DescriptorError { needed, .. }) = DescriptorBudget::of(100, 2, WANTED) else {
            panic!("it must not start")
        };
        assert!(needed <= 256, "{needed}");
        assert!(DescriptorBudget::of(needed - 1, 2, WANTED).is_err());
        assert!(DescriptorBudget::of(needed, 2, WANTED).is_ok());
    }
}
