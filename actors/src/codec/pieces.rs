//! Output in parts. Large parts are slices of the input, so they are not copied.

use std::ops::Range;

use bytes::Bytes;

use super::source::Source;
use crate::payload::{Payload, Piece};

/// A slice shorter than this is copied. A part of its own costs about as much as an allocation, and the code that sends
/// the output handles each part separately.
const COPIED_BELOW: usize = 4_096;

/// Output that is being written.
#[derive(Debug)]
pub(super) struct Pieces {
    source: Source,
    parts: Vec<Piece>,
    /// Copied bytes that come after `parts`.
    tail: Vec<u8>,
    len: u64,
}

impl Pieces {
    pub(super) fn of(source: &Source) -> Pieces {
        Pieces { source: source.clone(), parts: Vec::new(), tail: Vec::new(), len: 0 }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len() as u64;
    }

    /// Appends a range of the source.
    pub(super) fn keep(&mut self, range: Range<usize>) {
        if range.len() < COPIED_BELOW {
            self.source.append_to(&mut self.tail, range.clone());
        } else {
            self.flush();
            self.parts.push(self.source.piece(range.clone()));
        }
        self.len += range.len() as u64;
    }

    /// Appends the parts of another output.
    pub(super) fn repeat(&mut self, parts: &[Piece]) {
        self.flush();
        self.parts.extend_from_slice(parts);
        self.len += parts.iter().map(Piece::len).sum::<u64>();
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn finish(mut self) -> Vec<Piece> {
        self.flush();
        self.parts
    }

    /// All of it.
    pub(super) fn payload(self) -> Payload {
        self.finish().into_iter().collect()
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            self.parts.push(Piece::Memory(Bytes::from(std::mem::take(&mut self.tail))));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::body_file::BodyDirectory;
    use crate::store::disk::SystemDisk;

    #[test]
    fn only_large_slices_are_passed_on_without_copying() {
        let source = Bytes::from(vec![7; 100_000]);
        let mut pieces = Pieces::of(&Source::Memory(source.clone()));
        pieces.put(b"ab");
        pieces.keep(0..10);
        pieces.keep(10..90_000);
        pieces.put(b"c");
        assert_eq!(pieces.len(), 90_003);
        let parts = pieces.finish();
        assert_eq!(parts.iter().map(Piece::len).collect::<Vec<_>>(), [12, 89_990, 1]);
        let Piece::Memory(slice) = &parts[1] else { panic!("not in memory: {parts:?}") };
        assert_eq!(slice.as_ptr(), source[10..].as_ptr());
    }

    #[test]
    fn large_ranges_of_a_file_stay_ranges_of_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = BodyDirectory::new(Arc::new(SystemDisk), folder.path().to_owned()).create().expect("a file");
        let content: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        file.append(&content).expect("space");
        // behind a byte order mark
        let source = Source::of(file.finish().into()).without_first(3);
        let mut pieces = Pieces::of(&source);
        pieces.put(b"ab");
        pieces.keep(0..COPIED_BELOW - 1);
        pieces.keep(COPIED_BELOW - 1..2 * COPIED_BELOW - 1);
        pieces.keep(90_000..90_001);
        let payload = pieces.payload();
        let Payload::Pieces(pieces) = &payload else { panic!("no pieces: {payload:?}") };
        assert!(
            matches!(pieces[..], [Piece::Memory(_), Piece::File { offset: 4_098, len: 4_096, .. }, Piece::Memory(_)]),
            "{pieces:?}"
        );
        let expected = [b"ab", &content[3..3 + 2 * COPIED_BELOW - 1], &content[90_003..90_004]].concat();
        assert_eq!(payload.read_all().expect("readable"), expected);
    }
}
