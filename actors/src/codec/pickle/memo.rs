//! The memo of the pickle machine: values kept under numbers.

use crate::codec::DecodeError;
use crate::codec::bounds::MAX_MEMO_GAP;
use crate::codec::doc::NodeId;
use crate::codec::error::{grouped, malformed};

/// The values kept under memo numbers. Errors name `at`, the offset of the opcode that is being executed.
#[derive(Debug, Default)]
pub(super) struct Memo {
    entries: Vec<Option<NodeId>>,
    /// How many numbers are in use. Less than the length of `entries` if these have gaps.
    used: u32,
}

impl Memo {
    /// The number that the next MEMOIZE stands for: how many numbers are in use.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Keeps `value` under `number`. `made` is how many values the pickle has made so far.
    pub(super) fn put(&mut self, number: usize, value: NodeId, made: usize, at: usize) -> Result<(), DecodeError> {
        if number >= made + MAX_MEMO_GAP {
            let (number, bound) = (grouped(number), grouped(MAX_MEMO_GAP));
            return Err(malformed(format!("memo number {number}, {bound} or more beyond the values so far,"), at));
        }
        if self.entries.len() <= number {
            self.entries.resize(number + 1, None);
        }
        if self.entries[number].replace(value).is_none() {
            self.used += 1;
        }
        Ok(())
    }

    pub(super) fn get(&self, number: usize, at: usize) -> Result<NodeId, DecodeError> {
        self.entries
            .get(number)
            .copied()
            .flatten()
            .ok_or_else(|| malformed(format!("memo number {}, under which nothing is kept,", grouped(number)), at))
    }

    /// A number under which a value is kept.
    pub(super) fn number_of(&self, id: NodeId) -> Option<u32> {
        // Bounded far below 2^32 entries.
        self.entries.iter().position(|kept| *kept == Some(id)).map(|number| number as u32)
    }

    /// The first number beyond all that were ever in use.
    pub(super) fn end(&self) -> u32 {
        self.entries.len() as u32
    }
}
