//! Reads opcodes and their operands from the bytes of a pickle.

use std::fmt::Display;
use std::ops::Range;

use crate::codec::DecodeError;
use crate::codec::error::{grouped, malformed};
use crate::codec::source::{Parts, Source};

/// A cursor in a pickle.
pub(super) struct Operands<'a> {
    source: &'a Source,
    /// What has not been read.
    rest: Parts<'a>,
    /// The offset of the current opcode.
    at: usize,
    /// The offset at which the last frame ends.
    frame_end: usize,
}

impl<'a> Operands<'a> {
    pub(super) fn of(source: &'a Source) -> Operands<'a> {
        Operands { source, rest: source.parts(0..source.len()), at: 0, frame_end: 0 }
    }

    /// Reads the next opcode. Errors name its offset until the next call.
    pub(super) fn opcode(&mut self) -> Result<u8, DecodeError> {
        self.at = self.rest.at();
        self.byte()
    }

    /// The offset of the current opcode.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The bytes that are read. Content is looked at there, after the cursor has passed it.
    pub(super) fn source(&self) -> &'a Source {
        self.source
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
        if length > self.source.len() - self.rest.at() {
            return Err(self.refuse("truncated pickle: it ends within the frame"));
        }
        self.frame_end = self.rest.at() + length;
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let array = self.rest.peek(N).first_chunk().copied();
        self.take(N)?;
        // `None` was refused.
        Ok(array.unwrap_or([0; N]))
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// An unsigned number of `width` bytes. A number that does not fit becomes `usize::MAX`, which exceeds every
    /// length.
    pub(super) fn length(&mut self, width: usize) -> Result<usize, DecodeError> {
        let bytes = self.rest.peek(width).iter().take(width);
        let value = bytes.rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        self.take(width)?;
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    /// A memo number in decimal.
    pub(super) fn text_memo_number(&mut self) -> Result<usize, DecodeError> {
        let range = self.line()?;
        let digits = self.source.read(range);
        let number = str::from_utf8(&digits).ok().filter(|_| digits.iter().all(u8::is_ascii_digit));
        number
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| self.refuse("memo number that is not a decimal integer"))
    }

    /// The rest of the line, without its end.
    pub(super) fn line(&mut self) -> Result<Range<usize>, DecodeError> {
        let start = self.rest.at();
        if self.rest.skip_to(|byte| byte == b'\n').is_none() {
            return Err(self.refuse("truncated pickle: the line has no end"));
        }
        let end = self.rest.at();
        self.rest.skip(1);
        self.check_frame(start, end + 1)?;
        Ok(start..end)
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
        let start = self.rest.at();
        let left = self.source.len() - start;
        if length > left {
            return Err(self.refuse(format!(
                "truncated pickle: {} more bytes are needed, but only {} are left",
                grouped(length),
                grouped(left)
            )));
        }
        let end = start + length;
        self.check_frame(start, end)?;
        self.rest.skip(length);
        Ok(start..end)
    }

    /// Refuses an opcode that crosses the end of a frame, because CPython's two unpicklers (in C and in Python) read it
    /// differently.
    fn check_frame(&self, from: usize, to: usize) -> Result<(), DecodeError> {
        if from < self.frame_end && self.frame_end < to {
            return Err(malformed("frame that ends within an opcode", self.frame_end));
        }
        Ok(())
    }
}
