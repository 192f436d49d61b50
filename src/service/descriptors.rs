//! Who may have how many of the file descriptors that the process may have.

use std::num::NonZero;
use std::thread;

use rustix::process::{Resource, getrlimit};
use user_http_actors::store::files::MAX_OPEN_FILES;

/// Descriptors of a store: its lock, its segments, and those that somebody still reads.
const STORE_FILES: u64 = MAX_OPEN_FILES as u64;

/// Descriptors of the two connections to the broker, each with a thread that polls.
const BROKER_FILES: u64 = 16;

/// Standard streams, listening sockets, the runtime of the main thread, and files that are read again (tokens,
/// certificates, folders on the way to a .blend file).
const OTHER_FILES: u64 = 32;

/// What a thread of a server has for itself: its poll, its wake-up and its signals.
const THREAD_FILES: u64 = 6;

/// With fewer descriptors than these for connections and .blend files the service does not start.
const MIN_SHARED_FILES: u64 = 32;

/// Who may have how many descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Connections of the server for workers.
    pub workers: usize,
    /// Connections of the server for the farm's services: its own, however many workers there are.
    pub services: usize,
    /// .blend files open at once; those that are being sent.
    pub blend_files: usize,
}

/// The limits of the process are too low for the service.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// Of open files.
    #[error(
        "the limit of {limit} open files is too low: at least {needed} are needed; raise it (ulimit -n, LimitNOFILE= of \
         systemd)"
    )]
    Files {
        /// The limit of the process.
        limit: u64,
        /// The lowest with which it starts.
        needed: u64,
    },
}

impl Shares {
    /// What each server asks for, `connections`, and for .blend files, `blend_files`, as far as the process's limit of open
    /// files allows. A line of the log says where it does not.
    ///
    /// # Errors
    /// Where hardly anything would be left.
    pub fn within_limit(connections: usize, blend_files: usize) -> Result<Self, ResourceError> {
        let wanted = Self { workers: connections, services: connections, blend_files };
        let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(wanted) };
        let shares = Self::of(limit, cores(), wanted)?;
        if shares.workers < connections || shares.services < connections {
            let Self { workers, services, blend_files } = shares;
            log::warn!(
                "--max-connections {connections} does not fit into the limit of {limit} open files: at once there are {workers} \
                 connections of workers, {services} of the farm's services, and {blend_files} .blend files; raise the limit \
                 (ulimit -n, LimitNOFILE= of systemd)"
            );
        }
        Ok(shares)
    }

    /// Divides what `limit` leaves: a quarter for the farm's services and a quarter for .blend files, or less where they
    /// want less, and the rest for workers.
    fn of(limit: u64, cores: usize, wanted: Self) -> Result<Self, ResourceError> {
        let reserve = 2 * STORE_FILES + BROKER_FILES + OTHER_FILES + 2 * cores as u64 * THREAD_FILES;
        let Some(shared) = limit.checked_sub(reserve).filter(|shared| *shared >= MIN_SHARED_FILES) else {
            return Err(ResourceError::Files { limit, needed: reserve + MIN_SHARED_FILES });
        };
        let shared = usize::try_from(shared).unwrap_or(usize::MAX);
        let services = wanted.services.min(shared / 4);
        let blend_files = wanted.blend_files.min(shared / 4);
        let workers = wanted.workers.min(shared - services - blend_files);
        // what workers do not want
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

    const WANTED: Shares = Shares { workers: 10_000, services: 10_000, blend_files: 4_096 };

    #[test]
    fn what_fits_is_given_whole() {
        for limit in [24_400, 65_536, 1 << 20, u64::MAX] {
            assert_eq!(Shares::of(limit, 2, WANTED).expect("enough"), WANTED, "{limit}");
        }
    }

    #[test]
    fn what_does_not_fit_leaves_the_reserve_and_something_for_each() {
        for cores in [1, 2, 8] {
            for limit in [320, 1_024, 4_096, 20_000] {
                let Shares { workers, services, blend_files } = Shares::of(limit, cores, WANTED).expect("enough");
                let shared = (workers + services + blend_files) as u64;
                let reserve = limit - shared;
                assert!(reserve >= 2 * STORE_FILES + BROKER_FILES + OTHER_FILES, "{limit}, {cores}: {reserve}");
                let least = (shared / 4).min(4_096) as usize;
                assert!(workers >= least && services >= least && blend_files >= least, "{limit}, {cores}");
            }
        }
    }

    #[test]
    fn what_one_does_not_want_another_has() {
        let wanted = Shares { workers: 100, services: 10_000, blend_files: 10 };
        let shares = Shares::of(2_000, 1, wanted).expect("enough");
        assert_eq!((shares.workers, shares.blend_files), (100, 10));
        assert!(shares.services > 1_500, "{shares:?}");
    }

    #[test]
    fn a_limit_that_leaves_hardly_anything_is_refused_and_the_lowest_named_is_enough() {
        let Err(ResourceError::Files { needed, .. }) = Shares::of(100, 2, WANTED) else { panic!("it must not start") };
        assert!(needed <= 256, "{needed}");
        assert!(Shares::of(needed - 1, 2, WANTED).is_err());
        assert!(Shares::of(needed, 2, WANTED).is_ok());
    }
}
