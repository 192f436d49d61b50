//! The encoding of a JSON document: UTF-8, UTF-16 or UTF-32.
//!
//! RFC 8259 asks for UTF-8 between systems. The other two are accepted because the contract says that JSON is read as
//! Python's `json` reads it, and `json.loads` detects all three in bytes (`json.detect_encoding`).

use crate::codec::DecodeError;
use crate::codec::error::malformed;
use crate::codec::source::Source;

/// How many bytes show the encoding.
const DETECTED_BY: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Utf16 { big_endian: bool },
    Utf32 { big_endian: bool },
}

/// The document in UTF-8, without a byte order mark. A document in another encoding is converted as a whole, in memory.
/// Those in files are decoded by the threads of the pool alone, so there are no more of them than threads.
pub(super) fn to_utf8(body: &Source) -> Result<Source, DecodeError> {
    let (encoding, mark) = detect(&body.read(0..body.len().min(DETECTED_BY)));
    let text = body.without_first(mark);
    let whole = || text.read(0..text.len());
    match encoding {
        Encoding::Utf8 => {
            let mut parts = text.parts(0..text.len());
            parts.skip_utf8();
            let valid = parts.at();
            if valid == text.len() { Ok(text) } else { Err(malformed("invalid UTF-8", valid)) }
        }
        Encoding::Utf16 { big_endian } => {
            let whole = whole();
            let (units, rest) = whole.as_chunks::<2>();
            let units = units.iter().map(|unit| match big_endian {
                true => u16::from_be_bytes(*unit),
                false => u16::from_le_bytes(*unit),
            });
            let text: Result<String, _> = char::decode_utf16(units).collect();
            text.ok().filter(|_| rest.is_empty()).map(Source::from).ok_or_else(|| wrong("UTF-16"))
        }
        Encoding::Utf32 { big_endian } => {
            let whole = whole();
            let (units, rest) = whole.as_chunks::<4>();
            let points = units.iter().map(|unit| match big_endian {
                true => u32::from_be_bytes(*unit),
                false => u32::from_le_bytes(*unit),
            });
            let text: Option<String> = points.map(char::from_u32).collect();
            text.filter(|_| rest.is_empty()).map(Source::from).ok_or_else(|| wrong("UTF-32"))
        }
    }
}

fn wrong(encoding: &str) -> DecodeError {
    DecodeError::Malformed(format!("the body looks like JSON in {encoding}, but is not valid {encoding}"))
}

/// The encoding of a body that starts so, and the length of the byte order mark.
fn detect(start: &[u8]) -> (Encoding, usize) {
    let utf16 = |big_endian| Encoding::Utf16 { big_endian };
    let utf32 = |big_endian| Encoding::Utf32 { big_endian };
    match *start {
        [0, 0, 0xFE, 0xFF, ..] => (utf32(true), 4),
        [0xFF, 0xFE, 0, 0, ..] => (utf32(false), 4),
        [0xFE, 0xFF, ..] => (utf16(true), 2),
        [0xFF, 0xFE, ..] => (utf16(false), 2),
        [0xEF, 0xBB, 0xBF, ..] => (Encoding::Utf8, 3),
        // Without a mark: the first character is ASCII, so the position of its zero bytes shows the encoding.
        [0, 0, _, _, ..] => (utf32(true), 0),
        [0, _, _, _, ..] | [0, _] => (utf16(true), 0),
        [_, 0, 0, 0, ..] => (utf32(false), 0),
        [_, 0, _, _, ..] | [_, 0] => (utf16(false), 0),
        _ => (Encoding::Utf8, 0),
    }
}
