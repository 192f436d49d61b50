//! Output in parts. Large parts are slices of the input, so they are not copied.

use std::ops::Range;

use bytes::Bytes;

use crate::payload::Payload;

/// A slice shorter than this is copied. A part of its own costs about as much as an allocation, and the code that sends
/// the output handles each part separately.
const COPIED_BELOW: usize = 4_096;

/// Output that is being written.
#[derive(Debug)]
pub(super) struct Pieces {
    source: Bytes,
    parts: Vec<Bytes>,
    /// Copied bytes that come after `parts`.
    tail: Vec<u8>,
    len: u64,
}

impl Pieces {
    pub(super) fn of(source: &Bytes) -> Pieces {
        Pieces { source: source.clone(), parts: Vec::new(), tail: Vec::new(), len: 0 }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len() as u64;
    }

    /// Appends a range of the source.
    pub(super) fn keep(&mut self, range: Range<usize>) {
        if range.len() < COPIED_BELOW {
            self.tail.extend_from_slice(&self.source[range.clone()]);
        } else {
            self.flush();
            self.parts.push(self.source.slice(range.clone()));
        }
        self.len += range.len() as u64;
    }

    /// Appends the parts of another output.
    pub(super) fn repeat(&mut self, parts: &[Bytes]) {
        self.flush();
        self.parts.extend_from_slice(parts);
        self.len += parts.iter().map(|part| part.len() as u64).sum::<u64>();
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.flush();
        self.parts
    }

    /// All of it.
    pub(super) fn payload(self) -> Payload {
        Payload::from_parts(self.finish())
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            self.parts.push(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_slices_are_passed_on_without_copying() {
        let source = Bytes::from(vec![7; 100_000]);
        let mut pieces = Pieces::of(&source);
        pieces.put(b"ab");
        pieces.keep(0..10);
        pieces.keep(10..90_000);
        pieces.put(b"c");
        assert_eq!(pieces.len(), 90_003);
        let parts = pieces.finish();
        assert_eq!(parts.iter().map(Bytes::len).collect::<Vec<_>>(), [12, 89_990, 1]);
        assert_eq!(parts[1].as_ptr(), source[10..].as_ptr());
    }
}
