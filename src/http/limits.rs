//! What strangers may take of this service: the length of a body, the memory for all of them, and the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The limits for requests and answers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest body that is read, in bytes; a larger one is answered 413.
    pub max_body: u64,
    /// How many bytes of bodies and unfinished heads are in memory at once; what would exceed it is answered 503.
    pub max_inflight: u64,
    /// How many bytes a second a body and an answer have to make, give or take [`GRACE`]; what is slower is cut off.
    pub min_transfer_rate: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body: 256 << 20, max_inflight: 1 << 30, min_transfer_rate: 16 << 10 }
    }
}

/// How long nothing may move: a worker's network may be gone for some seconds.
pub const GRACE: Duration = Duration::from_secs(30);

impl Limits {
    /// How long `bytes` may take.
    pub(crate) fn time_for(&self, bytes: u64) -> Duration {
        GRACE + Duration::from_secs_f64(bytes as f64 / self.min_transfer_rate.max(1) as f64)
    }
}

/// Measures how fast a body comes: in each [`GRACE`] it has to make what its rate makes of that time.
#[derive(Debug)]
pub(super) struct Pace {
    needed: u64,
    /// When the time ends that is being measured.
    pub end: Instant,
    bytes: u64,
}

impl Pace {
    pub fn new(limits: &Limits, now: Instant) -> Self {
        let needed = limits.min_transfer_rate.saturating_mul(GRACE.as_secs());
        Self { needed, end: now + GRACE, bytes: 0 }
    }

    /// So many bytes have come.
    pub fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Whether it has been fast enough. Begins to measure anew where the time is over.
    pub fn is_kept(&mut self, now: Instant) -> bool {
        if now < self.end {
            return true;
        }
        let kept = self.bytes >= self.needed;
        (self.end, self.bytes) = (now + GRACE, 0);
        kept
    }
}

/// Counts the bytes of bodies and of unfinished heads in memory, for all requests together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inflight(Arc<AtomicU64>);

/// The bytes of one body or head, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    inflight: Inflight,
    bytes: u64,
}

impl Inflight {
    /// Begins to count a body.
    pub fn hold(&self) -> Held {
        Held { inflight: self.clone(), bytes: 0 }
    }
}

impl Held {
    /// Whether there is room for `bytes` more.
    pub fn fits(&self, bytes: u64, limit: u64) -> bool {
        self.inflight.0.load(Ordering::Relaxed).saturating_add(bytes) <= limit
    }

    /// Counts `bytes` more, if there is room.
    pub fn grow(&mut self, bytes: u64, limit: u64) -> bool {
        let grown = self.inflight.0.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.bytes += bytes;
        grown <= limit
    }

    /// Counts `bytes` in all, if there is room.
    pub fn grow_to(&mut self, bytes: u64, limit: u64) -> bool {
        self.grow(bytes.saturating_sub(self.bytes), limit)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.inflight.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_until_it_is_dropped() {
        let inflight = Inflight::default();
        let mut first = inflight.hold();
        assert!(first.grow(60, 100) && first.grow_to(100, 100));
        let mut second = inflight.hold();
        assert!(!second.fits(1, 100));
        assert!(!second.grow_to(1, 100));
        drop(first);
        assert!(second.fits(99, 100) && !second.fits(100, 100));
    }

    #[test]
    fn a_body_has_to_make_its_rate_in_each_time_of_grace() {
        let limits = Limits { min_transfer_rate: 1_000, ..Limits::default() };
        let start = Instant::now();
        let mut pace = Pace::new(&limits, start);
        pace.add(10_000);
        assert!(pace.is_kept(start + GRACE / 2));
        pace.add(20_000);
        assert!(pace.is_kept(start + GRACE));
        pace.add(29_999);
        assert!(!pace.is_kept(start + 2 * GRACE));
        assert_eq!(limits.time_for(5_000), GRACE + Duration::from_secs(5));
    }
}
