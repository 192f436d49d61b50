//! What comes after an opcode: numbers, lines, and the content of scalars.

use std::ops::Range;

use super::machine::{Machine, Rewrite};
use crate::codec::DecodeError;
use crate::codec::bounds::MAX_PEER_INT_DIGITS;
use crate::codec::doc::{NodeId, Tag};
use crate::codec::error::{grouped, malformed};
use crate::codec::text::{CodePoints, Spelling, check_utf8};

/// `pickle.loads` reads these as ASCII, so the user manager would refuse them.
const PYTHON_2_BYTES: &str =
    "str of Python 2 that is not ASCII (in Python 2, send bytes as bytearray(...) and text as unicode)";

impl Machine<'_> {
    pub(super) fn take(&mut self, length: usize) -> Result<Range<usize>, DecodeError> {
        let left = self.source.len() - self.pos;
        if length > left {
            return Err(self.refuse(format!(
                "pickle cut short: {} more bytes are needed and {} are left",
                grouped(length),
                grouped(left)
            )));
        }
        let start = self.pos;
        self.advance(start + length)?;
        Ok(start..self.pos)
    }

    /// Moves on within the frame or out of it, but not across its end, where CPython's unpicklers differ.
    fn advance(&mut self, to: usize) -> Result<(), DecodeError> {
        if self.pos < self.frame_end && self.frame_end < to {
            return Err(malformed("frame that ends within an opcode", self.frame_end));
        }
        self.pos = to;
        Ok(())
    }

    pub(super) fn frame(&mut self) -> Result<(), DecodeError> {
        let inside = self.at < self.frame_end;
        let length = self.length(8)?;
        if inside {
            return Err(self.refuse("frame within a frame"));
        }
        if length > self.source.len() - self.pos {
            return Err(self.refuse("pickle cut short: its end lies within the frame"));
        }
        self.frame_end = self.pos + length;
        self.rewrite(Rewrite::Frame(self.at as u32))
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

    /// An unsigned number of `width` bytes; more than any length where it does not fit.
    pub(super) fn length(&mut self, width: usize) -> Result<usize, DecodeError> {
        let range = self.take(width)?;
        let value = self.source[range].iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    /// The rest of the line, without its end.
    pub(super) fn line(&mut self) -> Result<Range<usize>, DecodeError> {
        let start = self.pos;
        let Some(length) = self.source[start..].iter().position(|byte| *byte == b'\n') else {
            return Err(self.refuse("pickle cut short: the line has no end"));
        };
        self.advance(start + length + 1)?;
        Ok(start..start + length)
    }

    pub(super) fn counted(&mut self, tag: Tag, width: usize) -> Result<(), DecodeError> {
        let length = self.length(width)?;
        self.content(tag, length)
    }

    pub(super) fn signed_counted(&mut self, tag: Tag) -> Result<(), DecodeError> {
        match usize::try_from(i32::from_le_bytes(self.array()?)) {
            Ok(length) => self.content(tag, length),
            Err(_) => Err(self.refuse("negative length")),
        }
    }

    fn content(&mut self, tag: Tag, length: usize) -> Result<(), DecodeError> {
        let range = self.take(length)?;
        // Whatever is a str by this way comes from Python 2, and is read as `pickle.loads` does by default.
        if tag == Tag::Str && !self.source[range.clone()].is_ascii() {
            return Err(self.refuse(PYTHON_2_BYTES));
        }
        self.push_new(tag, range)
    }

    pub(super) fn unicode(&mut self, width: usize) -> Result<(), DecodeError> {
        let length = self.length(width)?;
        let range = self.take(length)?;
        let tag = match check_utf8(&self.source[range.clone()]) {
            Ok(true) => Tag::Str,
            Ok(false) => Tag::SurrogateStr,
            Err(offset) => return Err(malformed("str that is not UTF-8", range.start + offset)),
        };
        self.push_new(tag, range)
    }

    pub(super) fn spelled(&mut self, tag: Tag, spelling: Spelling, range: Range<usize>) -> Result<(), DecodeError> {
        let content = &self.source[range.clone()];
        if content.is_ascii() && !content.contains(&b'\\') {
            return self.push_new(Tag::Str, range);
        }
        match CodePoints::new(spelling, content).unreadable() {
            0 => self.push_new(tag, range),
            // `repr` writes a byte beyond ASCII as \x80 to \xff
            rest if spelling == Spelling::Escaped && content[content.len() - rest..].starts_with(b"\\x") => {
                Err(malformed(PYTHON_2_BYTES, range.end - rest))
            }
            rest => Err(malformed("wrong escape in a string", range.end - rest)),
        }
    }

    pub(super) fn quoted_string(&mut self) -> Result<(), DecodeError> {
        let line = self.line()?;
        match &self.source[line.clone()] {
            [b'\'', .., b'\''] | [b'"', .., b'"'] => {
                self.spelled(Tag::EscapedStr, Spelling::Escaped, line.start + 1..line.end - 1)
            }
            _ => Err(self.refuse("string without quotes")),
        }
    }

    pub(super) fn text_int(&mut self) -> Result<(), DecodeError> {
        let line = self.line()?;
        match &self.source[line.clone()] {
            b"00" => self.push(NodeId::FALSE),
            b"01" => self.push(NodeId::TRUE),
            _ => self.decimal(line),
        }
    }

    pub(super) fn text_long(&mut self) -> Result<(), DecodeError> {
        let line = self.line()?;
        let suffix = usize::from(self.source[line.clone()].ends_with(b"L"));
        self.decimal(line.start..line.end - suffix)
    }

    fn decimal(&mut self, range: Range<usize>) -> Result<(), DecodeError> {
        let text = &self.source[range.clone()];
        let digits = text.strip_prefix(b"-").unwrap_or(text);
        let plain = match digits {
            [b'0'] => text.len() == 1,
            [b'1'..=b'9', ..] => digits.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        if !plain {
            return Err(self.refuse("int that is not written in decimal"));
        }
        let digits = digits.len();
        let id = self.doc.add_decimal(self.at, range, digits)?;
        if digits > MAX_PEER_INT_DIGITS {
            self.rewrite(Rewrite::TextInt(id))?;
        }
        self.push(id)
    }

    pub(super) fn text_float(&mut self) -> Result<(), DecodeError> {
        let range = self.line()?;
        let content = &self.source[range.clone()];
        let number = content.strip_prefix(b"-").unwrap_or(content);
        let named = matches!(number, b"inf" | b"nan");
        let value = str::from_utf8(content).ok().and_then(|text| text.parse::<f64>().ok());
        // Rust reads more words and signs than Python, so a number is known by its first character.
        match value {
            Some(value) if named || number.first().is_some_and(u8::is_ascii_digit) && value.is_finite() => {
                let id = self.doc.add_float(self.at, value)?;
                self.push(id)
            }
            _ => Err(self.refuse("float that is not written in decimal, or too large")),
        }
    }
}
