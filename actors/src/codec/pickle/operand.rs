//! Reads opcodes and their operands from the bytes of a pickle.

use std::fmt::Display;
use std::ops::Range;

use crate::codec::DecodeError;
use crate::codec::error::{grouped, malformed};

/// A cursor in a pickle.
pub(super) struct Operands<'a> {
    source: &'a [u8],
    pos: usize,
    /// The offset of the current opcode.
    at: usize,
    /// The offset at which the last frame ends.
    frame_end: usize,
}

impl<'a> Operands<'a> {
    pub(super) fn of(source: &'a [u8]) -> Operands<'a> {
        Operands { source, pos: 0, at: 0, frame_end: 0 }
    }

    /// Reads the next opcode. Errors name its offset until the next call.
    pub(super) fn opcode(&mut self) -> Result<u8, DecodeError> {
        self.at = self.pos;
        self.byte()
    }

    /// The offset of the current opcode.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &'a [u8] {
        &self.source[range]
    }

    /// An error at the current opcode.
    pub(super) fn refuse(&self, what: impl Display) -> DecodeError {
        malformed(what, self.at)
    }

    /// Reads the operand of FRAME.
    pub(super) fn frame(&mut self) -> Result<(), DecodeError> {
        let inside = self.at < self.frame_end;
        let length = self.length(8)?;
        if inside {
            return Err(self.refuse("frame within a frame"));
        }
        if length > self.source.len() - self.pos {
            return Err(self.refuse("truncated pickle: it ends within the frame"));
        }
        self.frame_end = self.pos + length;
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let range = self.take(N)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.source[range]);
        Ok(array)
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// An unsigned number of `width` bytes. A number that does not fit becomes `usize::MAX`, which exceeds every
    /// length.
    pub(super) fn length(&mut self, width: usize) -> Result<usize, DecodeError> {
        let range = self.take(width)?;
        let value = self.source[range].iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    /// A memo number in decimal.
    pub(super) fn text_memo_number(&mut self) -> Result<usize, DecodeError> {
        let range = self.line()?;
        let digits = &self.source[range];
        let number = str::from_utf8(digits).ok().filter(|_| digits.iter().all(u8::is_ascii_digit));
        number
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| self.refuse("memo number that is not a decimal integer"))
    }

    /// The rest of the line, without its end.
    pub(super) fn line(&mut self) -> Result<Range<usize>, DecodeError> {
        let start = self.pos;
        let Some(length) = self.source[start..].iter().position(|byte| *byte == b'\n') else {
            return Err(self.refuse("truncated pickle: the line has no end"));
        };
        self.advance(start + length + 1)?;
        Ok(start..start + length)
    }

    /// Content that follows its unsigned length of `width` bytes.
    pub(super) fn counted(&mut self, width: usize) -> Result<Range<usize>, DecodeError> {
        let length = self.length(width)?;
        self.take(length)
    }

    /// Content that follows its signed length of four bytes.
    pub(super) fn signed_counted(&mut self) -> Result<Range<usize>, DecodeError> {
        match usize::try_from(i32::from_le_bytes(self.array()?)) {
            Ok(length) => self.take(length),
            Err(_) => Err(self.refuse("negative length")),
        }
    }

    fn take(&mut self, length: usize) -> Result<Range<usize>, DecodeError> {
        let left = self.source.len() - self.pos;
        if length > left {
            return Err(self.refuse(format!(
                "truncated pickle: {} more bytes are needed, but only {} are left",
                grouped(length),
                grouped(left)
            )));
        }
        let start = self.pos;
        self.advance(start + length)?;
        Ok(start..self.pos)
    }

    /// Moves the cursor. An opcode that crosses the end of a frame is an error, because CPython's two unpicklers (in C
    /// and in Python) read it differently.
    fn advance(&mut self, to: usize) -> Result<(), DecodeError> {
        if self.pos < self.frame_end && self.frame_end < to {
            return Err(malformed("frame that ends within an opcode", self.frame_end));
        }
        self.pos = to;
        Ok(())
    }
}
