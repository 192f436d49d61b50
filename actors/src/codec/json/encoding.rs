//! The encoding of a JSON document: UTF-8, UTF-16 or UTF-32.
//!
//! RFC 8259 asks for UTF-8 between systems. The other two are accepted because the contract says that JSON is read as
//! Python's `json` reads it, and `json.loads` detects all three in bytes (`json.detect_encoding`).

use bytes::Bytes;

use crate::codec::DecodeError;
use crate::codec::error::malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Utf16 { big_endian: bool },
    Utf32 { big_endian: bool },
}

/// The document in UTF-8, without a byte order mark.
pub(super) fn to_utf8(body: Bytes) -> Result<Bytes, DecodeError> {
    let (encoding, mark) = detect(&body);
    let text = body.slice(mark..);
    match encoding {
        Encoding::Utf8 => match str::from_utf8(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(malformed("invalid UTF-8", error.valid_up_to())),
        },
        Encoding::Utf16 { big_endian } => {
            let (units, rest) = text.as_chunks::<2>();
            let units = units.iter().map(|unit| match big_endian {
                true => u16::from_be_bytes(*unit),
                false => u16::from_le_bytes(*unit),
            });
            let text: Result<String, _> = char::decode_utf16(units).collect();
            text.ok().filter(|_| rest.is_empty()).map(Bytes::from).ok_or_else(|| wrong("UTF-16"))
        }
        Encoding::Utf32 { big_endian } => {
            let (units, rest) = text.as_chunks::<4>();
            let points = units.iter().map(|unit| match big_endian {
                true => u32::from_be_bytes(*unit),
                false => u32::from_le_bytes(*unit),
            });
            let text: Option<String> = points.map(char::from_u32).collect();
            text.filter(|_| rest.is_empty()).map(Bytes::from).ok_or_else(|| wrong("UTF-32"))
        }
    }
}

fn wrong(encoding: &str) -> DecodeError {
    DecodeError::Malformed(format!("the body looks like JSON in {encoding}, but is not valid {encoding}"))
}

/// The encoding, and the length of the byte order mark.
fn detect(body: &[u8]) -> (Encoding, usize) {
    let utf16 = |big_endian| Encoding::Utf16 { big_endian };
    let utf32 = |big_endian| Encoding::Utf32 { big_endian };
    match *body {
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
