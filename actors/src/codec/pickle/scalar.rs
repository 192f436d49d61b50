//! Reads the operands of opcodes that make scalars, and adds the values to the document.

use std::ops::Range;

use super::operand::Operands;
use super::rewrite::{Rewrite, Rewrites};
use crate::codec::DecodeError;
use crate::codec::bounds::MAX_PEER_INT_DIGITS;
use crate::codec::doc::{Doc, NodeId, Tag};
use crate::codec::error::malformed;
use crate::codec::text::{CodePoints, Spelling, check_utf8};

/// The error for non-ASCII strs of Python 2. `pickle.loads` decodes them as ASCII, so the user manager could not load
/// them.
const PYTHON_2_BYTES: &str =
    "Python 2 str that is not ASCII (in Python 2, send bytes as bytearray(...) and text as unicode)";

/// A str in UTF-8.
pub(super) fn unicode(operands: &Operands, doc: &mut Doc, range: Range<usize>) -> Result<NodeId, DecodeError> {
    let tag = match check_utf8(operands.source().parts(range.clone())) {
        Ok(true) => Tag::Str,
        Ok(false) => Tag::SurrogateStr,
        Err(at) => return Err(malformed("str that is not UTF-8", at)),
    };
    doc.add(tag, operands.at(), range)
}

/// A str of Python 2, which `pickle.loads` decodes as ASCII by default.
pub(super) fn python_2_str(operands: &Operands, doc: &mut Doc, range: Range<usize>) -> Result<NodeId, DecodeError> {
    if !operands.source().parts(range.clone()).all(<[u8]>::is_ascii) {
        return Err(operands.refuse(PYTHON_2_BYTES));
    }
    doc.add(Tag::Str, operands.at(), range)
}

/// UNICODE: a str in the encoding `raw-unicode-escape`.
pub(super) fn raw_unicode(operands: &mut Operands, doc: &mut Doc) -> Result<NodeId, DecodeError> {
    let range = operands.line()?;
    spelled(operands, doc, Tag::RawUnicodeStr, Spelling::RawUnicode, range)
}

/// STRING: a quoted str of Python 2.
pub(super) fn quoted_string(operands: &mut Operands, doc: &mut Doc) -> Result<NodeId, DecodeError> {
    let line = operands.line()?;
    let is_quoted = line.len() >= 2
        && match operands.source().byte(line.start) {
            quote @ (b'\'' | b'"') => operands.source().byte(line.end - 1) == quote,
            _ => false,
        };
    if !is_quoted {
        return Err(operands.refuse("string without quotes"));
    }
    spelled(operands, doc, Tag::EscapedStr, Spelling::Escaped, line.start + 1..line.end - 1)
}

fn spelled(
    operands: &Operands,
    doc: &mut Doc,
    tag: Tag,
    spelling: Spelling,
    range: Range<usize>,
) -> Result<NodeId, DecodeError> {
    let content = operands.source().parts(range.clone());
    if content.clone().all(|part| part.is_ascii() && !part.contains(&b'\\')) {
        return doc.add(Tag::Str, operands.at(), range);
    }
    let mut rest = CodePoints::new(spelling, content).unreadable();
    match rest.peek(2) {
        [] => doc.add(tag, operands.at(), range),
        // Python 2's `repr` writes bytes beyond ASCII as \x80 to \xff.
        [b'\\', b'x', ..] if spelling == Spelling::Escaped => Err(malformed(PYTHON_2_BYTES, rest.at())),
        _ => Err(malformed("invalid escape in a string", rest.at())),
    }
}

/// INT: an int or a bool.
pub(super) fn text_int(operands: &mut Operands, doc: &mut Doc, rewrites: &mut Rewrites) -> Result<NodeId, DecodeError> {
    let line = operands.line()?;
    match operands.source().parts(line.clone()).peek(3) {
        b"00" => Ok(NodeId::FALSE),
        b"01" => Ok(NodeId::TRUE),
        _ => decimal(operands, doc, rewrites, line),
    }
}

/// LONG: an int with or without a final `L`.
pub(super) fn text_long(
    operands: &mut Operands,
    doc: &mut Doc,
    rewrites: &mut Rewrites,
) -> Result<NodeId, DecodeError> {
    let line = operands.line()?;
    let suffix = usize::from(!line.is_empty() && operands.source().byte(line.end - 1) == b'L');
    decimal(operands, doc, rewrites, line.start..line.end - suffix)
}

fn decimal(
    operands: &Operands,
    doc: &mut Doc,
    rewrites: &mut Rewrites,
    range: Range<usize>,
) -> Result<NodeId, DecodeError> {
    let mut digits = operands.source().parts(range.clone());
    if digits.peek(1).starts_with(b"-") {
        digits.skip(1);
    }
    let length = range.end - digits.at();
    let plain = match digits.peek(2) {
        [b'0'] => range.len() == 1,
        [b'1'..=b'9', ..] => digits.all(|part| part.iter().all(u8::is_ascii_digit)),
        _ => false,
    };
    if !plain {
        return Err(operands.refuse("int that is not written in decimal"));
    }
    let id = doc.add_decimal(operands.at(), range, length)?;
    if length > MAX_PEER_INT_DIGITS {
        rewrites.push(Rewrite::TextInt(id), operands.at())?;
    }
    Ok(id)
}

/// FLOAT: a decimal float.
pub(super) fn text_float(operands: &mut Operands, doc: &mut Doc) -> Result<NodeId, DecodeError> {
    let range = operands.line()?;
    let content = operands.source().read(range);
    let number = content.strip_prefix(b"-").unwrap_or(&content);
    let named = matches!(number, b"inf" | b"nan");
    let value = doc.parse_float(&content)?;
    // Rust accepts more words and signs than Python does, so the start of the text is checked too.
    match value {
        Some(value) if named || number.first().is_some_and(u8::is_ascii_digit) && value.is_finite() => {
            doc.add_float(operands.at(), value)
        }
        _ => Err(operands.refuse("float that is not written in decimal, or too large")),
    }
}
