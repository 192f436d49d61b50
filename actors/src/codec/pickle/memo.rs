//! The memo of the pickle machine.

use crate::codec::DecodeError;
use crate::codec::bounds::MAX_MEMO_GAP;
use crate::codec::doc::NodeId;
use crate::codec::error::{grouped, malformed};

/// Values by memo number. Errors name `at`, the offset of the current opcode.
#[derive(Debug, Default)]
pub(super) struct Memo {
    entries: Vec<Option<NodeId>>,
    /// How many numbers are in use: less than the length of `entries` if there are gaps.
    used: u32,
}

impl Memo {
    /// How many numbers are in use, which is also the number that the next MEMOIZE assigns.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Stores `value` under `number`. `made` is how many values the pickle has made so far.
    pub(super) fn put(&mut self, number: usize, value: NodeId, made: usize, at: usize) -> Result<(), DecodeError> {
        if number >= made + MAX_MEMO_GAP {
            let (number, bound) = (grouped(number), grouped(MAX_MEMO_GAP));
            let what = format!("memo number {number} exceeds the number of values so far by {bound} or more");
            return Err(malformed(what, at));
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
            .ok_or_else(|| malformed(format!("unknown memo number {}", grouped(number)), at))
    }

    /// A number under which the memo holds a value.
    pub(super) fn number_of(&self, id: NodeId) -> Option<u32> {
        // Lossless: `MAX_VALUES` and `MAX_MEMO_GAP` keep the numbers far below 2^32.
        self.entries.iter().position(|kept| *kept == Some(id)).map(|number| number as u32)
    }

    /// The first number above all numbers in use.
    pub(super) fn end(&self) -> u32 {
        self.entries.len() as u32
    }
}
