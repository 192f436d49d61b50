//! Reads JSON as Python's `json.loads` does, except that a lone surrogate is refused.

mod encoding;
mod write;

use bytes::Bytes;

use super::bounds::MAX_DEPTH;
use super::doc::{Doc, NodeId, Tag};
use super::error::malformed;
use super::text::json_escape;
use super::{DecodeError, Effort};

pub(super) use write::{NoJson, write};

/// What the reader expects next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
}

impl Expected {
    fn describe(self, inside: Option<Tag>) -> &'static str {
        match (self, inside) {
            (Expected::Value, _) => "a value is expected",
            (Expected::ValueOrEnd, _) => "a value or ']' is expected",
            (Expected::Key, _) => "a key in double quotes is expected",
            (Expected::KeyOrEnd, _) => "a key in double quotes or '}' is expected",
            (Expected::Colon, _) => "':' is expected",
            (Expected::CommaOrEnd, Some(Tag::Dict)) => "',' or '}' is expected",
            (Expected::CommaOrEnd, Some(_)) => "',' or ']' is expected",
            (Expected::CommaOrEnd, None) => "the end of the document is expected",
        }
    }
}

/// Reads a document. Offsets in errors refer to its UTF-8 form.
pub(super) fn read(body: Bytes, effort: Effort) -> Result<Doc, DecodeError> {
    let source = encoding::to_utf8(body)?;
    let doc = Doc::new(source.clone(), effort)?;
    Reader { source: &source, pos: 0, doc, path: Vec::new() }.read()
}

struct Reader<'a> {
    source: &'a [u8],
    pos: usize,
    doc: Doc,
    /// The open containers, the outermost first.
    path: Vec<NodeId>,
}

impl Reader<'_> {
    fn read(mut self) -> Result<Doc, DecodeError> {
        let mut expected = Expected::Value;
        loop {
            let Some(byte) = self.skip_space() else {
                if self.path.is_empty() && expected == Expected::CommaOrEnd {
                    return Ok(self.doc);
                }
                return Err(self.unexpected(expected));
            };
            expected = match (expected, byte) {
                (Expected::Value | Expected::ValueOrEnd, b'[') => self.open(Tag::List, Expected::ValueOrEnd)?,
                (Expected::Value | Expected::ValueOrEnd, b'{') => self.open(Tag::Dict, Expected::KeyOrEnd)?,
                (Expected::ValueOrEnd, b']') => self.close(),
                (Expected::Value | Expected::ValueOrEnd, _) => {
                    let value = self.scalar(byte, expected)?;
                    self.attach(value)?;
                    Expected::CommaOrEnd
                }
                (Expected::Key | Expected::KeyOrEnd, b'"') => {
                    let key = self.string()?;
                    self.attach(key)?;
                    Expected::Colon
                }
                (Expected::KeyOrEnd, b'}') => self.close(),
                (Expected::Colon, b':') => {
                    self.pos += 1;
                    Expected::Value
                }
                (Expected::CommaOrEnd, _) => self.comma_or_end(byte)?,
                _ => return Err(self.unexpected(expected)),
            };
        }
    }

    fn inside(&self) -> Option<Tag> {
        self.path.last().map(|id| self.doc.node(*id).tag)
    }

    fn comma_or_end(&mut self, byte: u8) -> Result<Expected, DecodeError> {
        let next = match (self.inside(), byte) {
            (Some(Tag::List), b',') => Expected::Value,
            (Some(Tag::Dict), b',') => Expected::Key,
            (Some(Tag::List), b']') | (Some(Tag::Dict), b'}') => return Ok(self.close()),
            _ => return Err(self.unexpected(Expected::CommaOrEnd)),
        };
        self.pos += 1;
        Ok(next)
    }

    fn open(&mut self, tag: Tag, expected: Expected) -> Result<Expected, DecodeError> {
        if self.path.len() == MAX_DEPTH {
            return Err(malformed(format!("nesting deeper than {MAX_DEPTH}"), self.pos));
        }
        let container = self.doc.add(tag, self.pos, 0..0)?;
        self.attach(container)?;
        self.path.push(container);
        self.pos += 1;
        Ok(expected)
    }

    fn close(&mut self) -> Expected {
        self.path.pop();
        self.pos += 1;
        Expected::CommaOrEnd
    }

    fn attach(&mut self, value: NodeId) -> Result<(), DecodeError> {
        match self.path.last() {
            Some(container) => self.doc.append(*container, value, self.pos),
            None => {
                self.doc.root = value;
                Ok(())
            }
        }
    }

    fn scalar(&mut self, byte: u8, expected: Expected) -> Result<NodeId, DecodeError> {
        match byte {
            b'"' => return self.string(),
            b'0'..=b'9' => return self.number(),
            b'-' if self.source.get(self.pos + 1).is_some_and(u8::is_ascii_digit) => return self.number(),
            _ => {}
        }
        let rest = &self.source[self.pos..];
        for (word, value) in [("null", NodeId::NONE), ("true", NodeId::TRUE), ("false", NodeId::FALSE)] {
            if rest.starts_with(word.as_bytes()) {
                self.pos += word.len();
                return Ok(value);
            }
        }
        for (word, value) in [("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)] {
            if rest.starts_with(word.as_bytes()) {
                let start = self.pos;
                self.pos += word.len();
                return self.doc.add_float(start, value);
            }
        }
        Err(self.unexpected(expected))
    }

    fn number(&mut self) -> Result<NodeId, DecodeError> {
        let start = self.pos;
        self.pos += usize::from(self.source[start] == b'-');
        let first_digit = self.pos;
        // A leading zero is a whole integer part. Digits after it are an error, which the caller finds.
        let digits = if self.source[first_digit] == b'0' { 1 } else { self.digits(first_digit) };
        self.pos += digits;
        let mut float = false;
        if self.source.get(self.pos) == Some(&b'.') {
            let fraction = self.digits(self.pos + 1);
            if fraction > 0 {
                (self.pos, float) = (self.pos + 1 + fraction, true);
            }
        }
        if let Some(b'e' | b'E') = self.source.get(self.pos) {
            let sign = usize::from(matches!(self.source.get(self.pos + 1), Some(b'+' | b'-')));
            let exponent = self.digits(self.pos + 1 + sign);
            if exponent > 0 {
                (self.pos, float) = (self.pos + 1 + sign + exponent, true);
            }
        }
        if float {
            let value = self.doc.parse_float(&self.source[start..self.pos])?;
            return self.doc.add_float(start, value.unwrap_or(f64::NAN));
        }
        self.doc.add_decimal(start, start..self.pos, digits)
    }

    fn digits(&self, from: usize) -> usize {
        let rest = self.source.get(from..).unwrap_or_default();
        rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len())
    }

    fn string(&mut self) -> Result<NodeId, DecodeError> {
        let quote = self.pos;
        let start = quote + 1;
        let mut tag = Tag::Str;
        self.pos = start;
        loop {
            let rest = &self.source[self.pos..];
            let Some(run) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) else {
                return Err(malformed("unterminated string", quote));
            };
            self.pos += run;
            match rest[run] {
                b'"' => break,
                b'\\' => {
                    let Some((_, length)) = json_escape(&rest[run..]) else {
                        return Err(malformed("invalid escape, or half a surrogate pair, in a string", self.pos));
                    };
                    tag = Tag::JsonStr;
                    self.pos += length;
                }
                _ => return Err(malformed("unescaped control character in a string", self.pos)),
            }
        }
        let end = self.pos;
        self.pos += 1;
        self.doc.add(tag, quote, start..end)
    }

    /// Moves to the next byte that is not white space.
    fn skip_space(&mut self) -> Option<u8> {
        while let Some(byte) = self.source.get(self.pos) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(*byte);
            }
            self.pos += 1;
        }
        None
    }

    fn unexpected(&self, expected: Expected) -> DecodeError {
        malformed(format!("invalid JSON: {}", expected.describe(self.inside())), self.pos)
    }
}
