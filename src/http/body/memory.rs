//! A body in memory, with the in-flight permit for it.

use bytes::Bytes;

use crate::http::Gateway;
use crate::http::error::Failure;
use crate::http::limits::InflightPermit;

/// How much memory is reserved at once for a body of declared length, in bytes. A sender may declare more than it
/// sends.
const RESERVED: usize = 1 << 20;

/// What has been received of a body.
pub struct MemoryBody<'a> {
    gateway: &'a Gateway,
    declared: Option<u64>,
    permit: InflightPermit,
    /// The first chunk, while it is the only one: a body that arrives in one chunk is not copied.
    first: Bytes,
    bytes: Vec<u8>,
}

/// A body with the permit for its memory.
struct Permitted<B> {
    content: B,
    _permit: InflightPermit,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Permitted<B> {
    fn as_ref(&self) -> &[u8] {
        self.content.as_ref()
    }
}

impl<'a> MemoryBody<'a> {
    /// An empty body.
    ///
    /// # Errors
    /// 503 if it has a declared length that `max_inflight` does not allow.
    pub fn new(gateway: &'a Gateway, declared: Option<u64>) -> Result<Self, Failure> {
        let permit = gateway.inflight.permit();
        if !permit.fits(declared.unwrap_or(0), gateway.limits.max_inflight) {
            return Err(Failure::too_much_inflight());
        }
        Ok(Self { gateway, declared, permit, first: Bytes::new(), bytes: Vec::new() })
    }

    /// Appends a chunk.
    ///
    /// # Errors
    /// 503 if `max_inflight` is reached.
    pub fn append(&mut self, chunk: Bytes) -> Result<(), Failure> {
        let received = self.first.len() + self.bytes.len();
        let needed = received + chunk.len();
        if received == 0 {
            self.grow_to(needed)?;
            self.first = chunk;
            return Ok(());
        }
        if self.bytes.capacity() < needed {
            let capacity = capacity(needed, self.bytes.capacity(), self.declared, self.gateway.limits.max_body);
            self.grow_to(capacity)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(&std::mem::take(&mut self.first));
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn grow_to(&mut self, bytes: usize) -> Result<(), Failure> {
        let fits = self.permit.grow_to(bytes as u64, self.gateway.limits.max_inflight);
        if fits { Ok(()) } else { Err(Failure::too_much_inflight()) }
    }

    /// The whole body. The permit is part of the returned bytes: it counts until their last slice is dropped, for a
    /// body that is on its way to the disk takes memory even if the client has hung up.
    pub fn finish(self) -> Bytes {
        let Self { permit, first, bytes, .. } = self;
        if bytes.is_empty() {
            Bytes::from_owner(Permitted { content: first, _permit: permit })
        } else {
            Bytes::from_owner(Permitted { content: bytes, _permit: permit })
        }
    }
}

/// The next capacity of a body that needs more memory: twice the current one, at most the length that the body can
/// have.
fn capacity(needed: usize, has: usize, declared: Option<u64>, limit: u64) -> usize {
    let least = if declared.is_some() { RESERVED } else { 0 };
    let most = usize::try_from(declared.unwrap_or(limit)).unwrap_or(usize::MAX);
    (2 * has).max(least).min(most).max(needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::limits::Inflight;

    #[test]
    fn a_body_counts_until_its_last_slice_is_dropped() {
        let inflight = Inflight::default();
        let mut permit = inflight.permit();
        assert!(permit.grow_to(1_000, 1_000));
        let body = Bytes::from_owner(Permitted { content: vec![0; 1_000], _permit: permit });
        let part = body.slice(10..20);
        drop(body);
        assert!(!inflight.permit().fits(1, 1_000), "a slice is left");
        drop(part);
        assert!(inflight.permit().fits(1_000, 1_000));
    }

    #[test]
    fn a_body_gets_no_more_memory_than_it_will_need() {
        assert_eq!(capacity(40_000, 0, Some(700_000), 1 << 30), 700_000);
        assert_eq!(capacity(40_000, 0, Some(1 << 28), 1 << 30), RESERVED);
        assert_eq!(capacity(RESERVED + 1, RESERVED, Some(1 << 28), 1 << 30), 2 * RESERVED);
        assert_eq!(capacity((200 << 20) + 1, 200 << 20, Some(256 << 20), 1 << 30), 256 << 20);
        assert_eq!(capacity(40_000, 0, None, 1 << 30), 40_000);
        assert_eq!(capacity(60_000, 40_000, None, 70_000), 70_000);
    }
}
