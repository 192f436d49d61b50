//! Bounds what clients can cost: the length of a body, the memory for all bodies, and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The limits of requests and answers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest request body, in bytes. A larger one is answered 413.
    pub max_body: u64,
    /// How many bytes of request bodies and unfinished heads are in memory at the same time. A request that would
    /// exceed it is answered 503.
    pub max_inflight: u64,
    /// How many bytes of request bodies are in files that no store has yet. A request that would exceed it is answered
    /// 503.
    pub max_upload_space: u64,
    /// The minimum transfer rate of request bodies and answers, in bytes per second, not counting [`GRACE`]. A slower
    /// client is disconnected. At least 1.
    pub min_transfer_rate: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body: 256 << 20, max_inflight: 1 << 30, max_upload_space: 64 << 30, min_transfer_rate: 16 << 10 }
    }
}

/// How long a transfer may stall before its rate counts: a worker may lose its network for some seconds.
pub const GRACE: Duration = Duration::from_secs(30);

impl Limits {
    /// How long the transfer of `bytes` may take.
    pub(crate) fn time_for(&self, bytes: u64) -> Duration {
        GRACE + Duration::from_secs_f64(bytes as f64 / self.min_transfer_rate.max(1) as f64)
    }

    /// Logs that a client was disconnected because it read its answer too slowly.
    pub(crate) fn log_slow_reader(&self) {
        let rate = self.min_transfer_rate;
        log::warn!("answer broken off: the client read more slowly than {rate} bytes a second");
    }
}

/// Measures the rate of a request body over periods of [`GRACE`]. In each period at least as many bytes must arrive as
/// the minimum rate makes of its length.
#[derive(Debug)]
pub(super) struct Pace {
    needed: u64,
    /// The end of the current period.
    pub end: Instant,
    bytes: u64,
}

impl Pace {
    pub fn new(limits: &Limits, now: Instant) -> Self {
        let needed = limits.min_transfer_rate.saturating_mul(GRACE.as_secs());
        Self { needed, end: now + GRACE, bytes: 0 }
    }

    /// Counts received bytes.
    pub fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// The client could not send for this long.
    pub fn pause(&mut self, time: Duration) {
        self.end += time;
    }

    /// Whether the body is fast enough. Starts the next period if the current one is over.
    pub fn is_kept(&mut self, now: Instant) -> bool {
        if now < self.end {
            return true;
        }
        let kept = self.bytes >= self.needed;
        (self.end, self.bytes) = (now + GRACE, 0);
        kept
    }
}

/// The number of bytes of request bodies and unfinished heads in memory, over all requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inflight(Arc<AtomicU64>);

/// The share of [`Inflight`] that one body or head takes. It travels with the bytes; its drop returns the share.
#[derive(Debug)]
pub(crate) struct InflightPermit {
    inflight: Inflight,
    bytes: u64,
}

impl Inflight {
    /// A permit for no bytes yet.
    pub fn permit(&self) -> InflightPermit {
        InflightPermit { inflight: self.clone(), bytes: 0 }
    }
}

impl InflightPermit {
    /// Whether `bytes` more would stay within the limit.
    pub fn fits(&self, bytes: u64, limit: u64) -> bool {
        self.inflight.0.load(Ordering::Relaxed).saturating_add(bytes) <= limit
    }

    /// Adds `bytes`. False if that exceeds the limit; the bytes count nevertheless, until the drop.
    pub fn grow(&mut self, bytes: u64, limit: u64) -> bool {
        let grown = self.inflight.0.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.bytes += bytes;
        grown <= limit
    }

    /// How many bytes it is for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Grows to `bytes` in total; as [`InflightPermit::grow`].
    pub fn grow_to(&mut self, bytes: u64, limit: u64) -> bool {
        self.grow(bytes.saturating_sub(self.bytes), limit)
    }
}

impl Drop for InflightPermit {
    fn drop(&mut self) {
        self.inflight.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_counts_until_it_is_dropped() {
        let inflight = Inflight::default();
        let mut first = inflight.permit();
        assert!(first.grow(60, 100) && first.grow_to(100, 100));
        let mut second = inflight.permit();
        assert!(!second.fits(1, 100));
        assert!(!second.grow_to(1, 100));
        drop(first);
        assert!(second.fits(99, 100) && !second.fits(100, 100));
    }

    #[test]
    fn a_body_must_make_its_rate_in_each_period() {
        let limits = Limits { min_transfer_rate: 1_000, ..Limits::default() };
        let start = Instant::now();
        let mut pace = Pace::new(&limits, start);
        pace.add(10_000);
        assert!(pace.is_kept(start + GRACE / 2));
        pace.add(20_000);
        assert!(pace.is_kept(start + GRACE));
        assert!(pace.is_kept(start + GRACE * 3 / 2), "the next period lasts as long as the first");
        pace.add(29_999);
        assert!(!pace.is_kept(start + 2 * GRACE));
        assert_eq!(limits.time_for(5_000), GRACE + Duration::from_secs(5));
    }

    #[test]
    fn the_time_in_which_the_disk_was_slow_does_not_count_against_the_client() {
        let start = Instant::now();
        let mut pace = Pace::new(&Limits::default(), start);
        let slow = Duration::from_secs(10);
        pace.pause(slow);
        assert!(pace.is_kept(start + GRACE + slow - Duration::from_millis(1)));
        assert!(!pace.is_kept(start + GRACE + slow));
    }
}
