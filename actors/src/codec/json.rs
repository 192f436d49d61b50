//! Reads JSON as Python's `json.loads` does, except that a lone surrogate is refused.

mod encoding;
mod write;

use super::bounds::MAX_DEPTH;
use super::doc::{Doc, NodeId, Tag};
use super::error::malformed;
use super::source::{Parts, Source};
use super::text::{MAX_POINT_BYTES, json_escape};
use super::{DecodeError, Effort};

pub(super) use write::{NoJson, write};

/// The length of the longest word that is a value, in bytes.
const MAX_WORD_BYTES: usize = "-Infinity".len();

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
pub(super) fn read(body: &Source, effort: Effort) -> Result<Doc, DecodeError> {
    let source = encoding::to_utf8(body)?;
    let doc = Doc::new(source.clone(), effort)?;
    Reader { rest: source.parts(0..source.len()), source: &source, doc, path: Vec::new() }.read()
}

struct Reader<'a> {
    source: &'a Source,
    /// What has not been read.
    rest: Parts<'a>,
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
                    self.rest.skip(1);
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
        self.rest.skip(1);
        Ok(next)
    }

    fn open(&mut self, tag: Tag, expected: Expected) -> Result<Expected, DecodeError> {
        if self.path.len() == MAX_DEPTH {
            return Err(malformed(format!("nesting deeper than {MAX_DEPTH}"), self.rest.at()));
        }
        let container = self.doc.add(tag, self.rest.at(), 0..0)?;
        self.attach(container)?;
        self.path.push(container);
        self.rest.skip(1);
        Ok(expected)
    }

    fn close(&mut self) -> Expected {
        self.path.pop();
        self.rest.skip(1);
        Expected::CommaOrEnd
    }

    fn attach(&mut self, value: NodeId) -> Result<(), DecodeError> {
        match self.path.last() {
            Some(container) => self.doc.append(*container, value, self.rest.at()),
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
            b'-' if matches!(self.rest.peek(2), [_, b'0'..=b'9', ..]) => return self.number(),
            _ => {}
        }
        let start = self.rest.at();
        let rest = self.rest.peek(MAX_WORD_BYTES);
        for (word, value) in [("null", NodeId::NONE), ("true", NodeId::TRUE), ("false", NodeId::FALSE)] {
            if rest.starts_with(word.as_bytes()) {
                self.rest.skip(word.len());
                return Ok(value);
            }
        }
        for (word, value) in [("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)] {
            if rest.starts_with(word.as_bytes()) {
                self.rest.skip(word.len());
                return self.doc.add_float(start, value);
            }
        }
        Err(self.unexpected(expected))
    }

    fn number(&mut self) -> Result<NodeId, DecodeError> {
        let start = self.rest.at();
        if self.rest.peek(1).starts_with(b"-") {
            self.rest.skip(1);
        }
        // A leading zero is a whole integer part. Digits after it are an error, which the caller finds.
        let digits = match self.rest.peek(1) {
            [b'0', ..] => {
                self.rest.skip(1);
                1
            }
            _ => self.digits(),
        };
        let mut float = false;
        if let [b'.', b'0'..=b'9', ..] = self.rest.peek(2) {
            self.rest.skip(1);
            self.digits();
            float = true;
        }
        let exponent = match self.rest.peek(3) {
            [b'e' | b'E', b'0'..=b'9', ..] => Some(1),
            [b'e' | b'E', b'+' | b'-', b'0'..=b'9', ..] => Some(2),
            _ => None,
        };
        if let Some(before_digits) = exponent {
            self.rest.skip(before_digits);
            self.digits();
            float = true;
        }
        let range = start..self.rest.at();
        if float {
            let value = self.doc.parse_float(&self.source.read(range))?;
            return self.doc.add_float(start, value.unwrap_or(f64::NAN));
        }
        self.doc.add_decimal(start, range, digits)
    }

    /// Skips digits, and returns how many.
    fn digits(&mut self) -> usize {
        let start = self.rest.at();
        self.rest.skip_to(|byte| !byte.is_ascii_digit());
        self.rest.at() - start
    }

    fn string(&mut self) -> Result<NodeId, DecodeError> {
        let quote = self.rest.at();
        self.rest.skip(1);
        let start = self.rest.at();
        let mut tag = Tag::Str;
        loop {
            let found = self.rest.skip_to(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
            let at = self.rest.at();
            match found {
                None => return Err(malformed("unterminated string", quote)),
                Some(b'"') => {
                    self.rest.skip(1);
                    return self.doc.add(tag, quote, start..at);
                }
                Some(b'\\') => {
                    let Some((_, length)) = json_escape(self.rest.peek(MAX_POINT_BYTES)) else {
                        return Err(malformed("invalid escape, or half a surrogate pair, in a string", at));
                    };
                    tag = Tag::JsonStr;
                    self.rest.skip(length);
                }
                Some(_) => return Err(malformed("unescaped control character in a string", at)),
            }
        }
    }

    /// Moves to the next byte that is not white space.
    fn skip_space(&mut self) -> Option<u8> {
        self.rest.skip_to(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
    }

    fn unexpected(&self, expected: Expected) -> DecodeError {
        malformed(format!("invalid JSON: {}", expected.describe(self.inside())), self.rest.at())
    }
}
