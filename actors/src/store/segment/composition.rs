//! The body of a composed record: which ranges of a body file and which bytes of its own make up the message's body.
//!
//! | bytes | what |
//! | --- | --- |
//! | 16 | name of the body file, a UUID |
//! | 8 | length of the file |
//! | 4 | CRC-32C of the file |
//! | 4 | number of pieces |
//! | 16 for each piece | its offset in the file, or 2⁶⁴ - 1 if its bytes are in the composition; its length |
//! | … | the bytes of those pieces, one after the other |

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::{u32_at, u64_at};
use crate::body_file::BodyFile;
use crate::payload::{Payload, Piece};
use crate::store::MAX_BODY;

/// The longest composition in bytes. A body with more bytes in memory, or with more pieces, is written into the log as
/// a whole: owners keep the compositions of their records in memory.
pub const MAX_COMPOSITION: u64 = 16 << 10;

const HEAD: usize = 32;
const PIECE: usize = 16;

/// Instead of the offset in the file: the bytes are in the composition.
const IN_COMPOSITION: u64 = u64::MAX;

/// A sound composition.
#[derive(Clone, Debug)]
pub struct Composition(Bytes);

impl Composition {
    /// Of a body whose pieces are in memory or in `file`; `None` if it would be too long.
    pub fn new(pieces: &[Piece], file: &BodyFile) -> Option<Self> {
        let len = Self::len_of(pieces);
        if len > MAX_COMPOSITION {
            return None;
        }
        let mut bytes = Vec::with_capacity(len as usize);
        bytes.extend_from_slice(file.name().as_bytes());
        bytes.extend_from_slice(&file.len().to_le_bytes());
        bytes.extend_from_slice(&file.crc().to_le_bytes());
        bytes.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
        for piece in pieces {
            let offset = if let Piece::File { offset, .. } = piece { *offset } else { IN_COMPOSITION };
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&piece.len().to_le_bytes());
        }
        for piece in pieces {
            if let Piece::Memory(part) = piece {
                bytes.extend_from_slice(part);
            }
        }
        Self::parse(bytes.into())
    }

    /// How long the composition of these pieces is, in bytes.
    fn len_of(pieces: &[Piece]) -> u64 {
        let in_memory = |piece: &Piece| if let Piece::Memory(bytes) = piece { bytes.len() } else { 0 };
        (HEAD + pieces.iter().map(|piece| PIECE + in_memory(piece)).sum::<usize>()) as u64
    }

    /// Whether a body with pieces of one file can be composed.
    pub fn fits(pieces: &[Piece]) -> bool {
        Self::len_of(pieces) <= MAX_COMPOSITION
    }

    /// The composition that `bytes` are; `None` if they are none.
    pub fn parse(bytes: Bytes) -> Option<Self> {
        let pieces = u32_at(bytes.get(..HEAD)?, 28) as usize;
        let mut left = bytes.len().checked_sub(HEAD)?.checked_sub(pieces.checked_mul(PIECE)?)? as u64;
        let composition = Self(bytes);
        let (_, file_len, _) = composition.file();
        let mut body = 0_u64;
        for (offset, len) in composition.pieces() {
            body = body.checked_add(len)?;
            match offset {
                IN_COMPOSITION => left = left.checked_sub(len)?,
                _ if offset.checked_add(len)? > file_len => return None,
                _ => {}
            }
        }
        (left == 0 && body <= MAX_BODY).then_some(composition)
    }

    /// The name, the length and the CRC-32C of the file.
    pub fn file(&self) -> (Uuid, u64, u32) {
        let mut name = [0; 16];
        name.copy_from_slice(&self.0[..16]);
        (Uuid::from_bytes(name), u64_at(&self.0, 16), u32_at(&self.0, 24))
    }

    /// As it is written.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The message's body. `file` is the one that the composition names.
    pub fn payload(&self, file: &Arc<BodyFile>) -> Payload {
        let mut start = HEAD + PIECE * self.pieces().len();
        let piece = |(offset, len)| match offset {
            IN_COMPOSITION => {
                let from = start;
                start += len as usize;
                Piece::Memory(self.0.slice(from..start))
            }
            _ => Piece::File { file: Arc::clone(file), offset, len },
        };
        self.pieces().map(piece).collect()
    }

    fn pieces(&self) -> impl ExactSizeIterator<Item = (u64, u64)> {
        let count = u32_at(&self.0, 28) as usize;
        (0..count).map(|piece| HEAD + PIECE * piece).map(|at| (u64_at(&self.0, at), u64_at(&self.0, at + 8)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_the_bytes_are_they_are_refused_or_every_piece_is_within_the_file_and_the_composition(
            head in prop::collection::vec(any::<u8>(), 28),
            pieces in prop::collection::vec((prop_oneof![Just(u64::MAX), 0..100_u64, any::<u64>()],
                prop_oneof![0..20_u64, any::<u64>()]), 0..5),
            file_len in prop_oneof![0..200_u64, any::<u64>()],
            count in prop_oneof![0..6_u32, any::<u32>()],
            tail in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = head;
            bytes[16..24].copy_from_slice(&file_len.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(pieces.iter().flat_map(|(offset, len)| [offset.to_le_bytes(), len.to_le_bytes()].concat()));
            bytes.extend(tail);
            if let Some(composition) = Composition::parse(bytes.into()) {
                let in_memory = composition.pieces().filter(|piece| piece.0 == u64::MAX);
                let in_memory: u64 = in_memory.map(|piece| piece.1).sum();
                let head = HEAD + PIECE * composition.pieces().len();
                prop_assert_eq!(in_memory, (composition.bytes().len() - head) as u64);
                for (offset, len) in composition.pieces().filter(|piece| piece.0 != u64::MAX) {
                    prop_assert!(offset.checked_add(len).is_some_and(|end| end <= file_len));
                }
            }
        }
    }
}
