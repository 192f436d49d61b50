//! The encodings of received strings.

use super::source::Parts;

/// The longest sequence of bytes that makes one code point: two escapes of JSON, which are a surrogate pair.
pub(super) const MAX_POINT_BYTES: usize = r"\ud83d\ude00".len();

/// How the bytes of a string encode its characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// UTF-8 in which lone surrogates are encoded like other code points (Python's `surrogatepass`).
    Utf8,
    /// The inside of a JSON string.
    Json,
    /// Python's codec `raw-unicode-escape`: Latin-1 with `\uXXXX` and `\UXXXXXXXX`.
    RawUnicode,
    /// The text between the quotes of Python 2's `repr` of an ASCII `str`.
    Escaped,
}

/// The code points of a string. Stops at the first invalid byte; the readers check for that beforehand.
#[derive(Clone, Debug)]
pub(super) struct CodePoints<'a> {
    spelling: Spelling,
    rest: Parts<'a>,
    /// Whether the next byte is the second of two backslashes. In raw-unicode-escape it does not start an escape.
    second_backslash: bool,
}

impl<'a> CodePoints<'a> {
    pub(super) fn new(spelling: Spelling, content: Parts<'a>) -> Self {
        CodePoints { spelling, rest: content, second_backslash: false }
    }

    /// What remains from the first invalid byte on; nothing if all are valid.
    pub(super) fn unreadable(mut self) -> Parts<'a> {
        while self.next().is_some() {}
        self.rest
    }
}

impl Iterator for CodePoints<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let rest = self.rest.peek(MAX_POINT_BYTES);
        let first = *rest.first()?;
        let (point, length) = match self.spelling {
            Spelling::Utf8 => utf8(rest)?,
            Spelling::Json if first == b'\\' => json_escape(rest)?,
            Spelling::Json => utf8(rest)?,
            Spelling::RawUnicode => {
                let escapes = first == b'\\' && !self.second_backslash;
                self.second_backslash = escapes && rest.get(1) == Some(&b'\\');
                match rest.get(1) {
                    Some(b'u') if escapes => (hex(rest.get(2..6)?)?, 6),
                    Some(b'U') if escapes => (hex(rest.get(2..10)?).filter(|point| *point <= 0x10_FFFF)?, 10),
                    _ => (u32::from(first), 1),
                }
            }
            Spelling::Escaped if first == b'\\' => string_escape(rest)?,
            Spelling::Escaped if first.is_ascii() => (u32::from(first), 1),
            Spelling::Escaped => return None,
        };
        self.rest.skip(length);
        Some(point)
    }
}

/// The code point at the start of UTF-8, which may be a surrogate, and its length in bytes.
fn utf8(bytes: &[u8]) -> Option<(u32, usize)> {
    let first = *bytes.first()?;
    let (length, bits) = match first {
        0..0x80 => return Some((u32::from(first), 1)),
        0x80..0xE0 => (2, first & 0x1F),
        0xE0..0xF0 => (3, first & 0x0F),
        _ => (4, first & 0x07),
    };
    let rest = bytes.get(1..length)?;
    Some((rest.iter().fold(u32::from(bits), |point, byte| point << 6 | u32::from(byte & 0x3F)), length))
}

/// Encodes code points, which may be surrogates, in UTF-8.
pub(super) fn to_utf8(points: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for point in points {
        match char::from_u32(point) {
            Some(char) => bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
            // A surrogate. Like all code points of 16 bits, it takes three bytes.
            None => bytes.extend([
                0xE0 | (point >> 12) as u8,
                0x80 | (point >> 6 & 0x3F) as u8,
                0x80 | (point & 0x3F) as u8,
            ]),
        }
    }
    bytes
}

/// Checks UTF-8 that may have encoded surrogates. `Ok(true)` if it has none, `Ok(false)` if it has some, `Err` with the
/// offset in the source of the first invalid byte.
pub(super) fn check_utf8(mut content: Parts) -> Result<bool, usize> {
    let mut plain = true;
    loop {
        content.skip_utf8();
        match content.peek(3) {
            [] => return Ok(plain),
            [0xED, 0xA0..=0xBF, 0x80..=0xBF, ..] => plain = false,
            _ => return Err(content.at()),
        }
        content.skip(3);
    }
}

/// The code point of the JSON escape at the start, and the length of the escape in bytes. A surrogate pair counts as
/// one escape; half a pair gives `None`.
pub(super) fn json_escape(bytes: &[u8]) -> Option<(u32, usize)> {
    let point = match bytes.get(1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return json_unicode_escape(bytes),
        _ => return None,
    };
    Some((point.into(), 2))
}

fn json_unicode_escape(bytes: &[u8]) -> Option<(u32, usize)> {
    let high = hex(bytes.get(2..6)?)?;
    match high {
        0xD800..0xDC00 => {
            let low = hex(bytes.get(6..12)?.strip_prefix(b"\\u")?)?;
            let low = low.checked_sub(0xDC00).filter(|low| *low < 0x400)?;
            Some((0x1_0000 + ((high - 0xD800) << 10) + low, 12))
        }
        0xDC00..0xE000 => None,
        _ => Some((high, 6)),
    }
}

/// The code point of an escape that Python 2's `repr` writes, and its length in bytes. `None` if it is not ASCII.
fn string_escape(bytes: &[u8]) -> Option<(u32, usize)> {
    let point = match bytes.get(1)? {
        b'\\' => '\\',
        b'\'' => '\'',
        b'"' => '"',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'x' => return Some((hex(bytes.get(2..4)?).filter(|point| *point < 0x80)?, 4)),
        _ => return None,
    };
    Some((point.into(), 2))
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::codec::source::Source;

    fn points(spelling: Spelling, bytes: &[u8]) -> Option<Vec<u32>> {
        let source = Source::Memory(Bytes::copy_from_slice(bytes));
        let points = CodePoints::new(spelling, source.parts(0..bytes.len()));
        points.clone().unreadable().peek(1).is_empty().then(|| points.collect())
    }

    fn of(text: &str) -> Option<Vec<u32>> {
        Some(text.chars().map(u32::from).collect())
    }

    #[test]
    fn raw_unicode_escapes_are_read_as_python_reads_them() {
        let read = |bytes| points(Spelling::RawUnicode, bytes);
        assert_eq!(read(br"a\b"), of(r"a\b"));
        assert_eq!(read(br"\\u0041"), of(r"\\u0041"), "the second backslash starts no escape");
        assert_eq!(read(br"\\\u0041"), of(r"\\A"));
        assert_eq!(read(br"\x\"), of(r"\x\"));
        assert_eq!(read(b"\xe9"), of("é"), "other bytes are Latin-1");
        assert_eq!(read(br"\ud83d\ude00"), Some(vec![0xD83D, 0xDE00]), "surrogates are not joined");
        for wrong in [&br"\u12"[..], br"\u12g4", br"\U00110000", br"\U+0000041"] {
            assert_eq!(read(wrong), None);
        }
    }

    #[test]
    fn json_escapes_join_surrogate_pairs_and_refuse_halves() {
        assert_eq!(points(Spelling::Json, br"\ud83d\ude00\n\/"), of("😀\n/"));
        for wrong in [&br"\ud83d"[..], br"\ude00\ud83d", br"\ud83dx", br"\ud83d\u0041", br"\x", br"\u+123"] {
            assert_eq!(points(Spelling::Json, wrong), None);
        }
    }

    #[test]
    fn utf8_lets_surrogates_through_and_nothing_else() {
        let check_utf8 = |bytes| {
            let source = Source::Memory(Bytes::copy_from_slice(bytes));
            check_utf8(source.parts(0..bytes.len()))
        };
        assert_eq!(check_utf8("aé😀".as_bytes()), Ok(true));
        assert_eq!(check_utf8(b"a\xed\xa0\xbd\xed\xb8\x80b"), Ok(false));
        assert_eq!(check_utf8(b"ab\xff"), Err(2));
        assert_eq!(check_utf8(b"\xed\xa0"), Err(0));
        assert_eq!(check_utf8(b"\xc0\x80"), Err(0));
        assert_eq!(points(Spelling::Utf8, b"\xed\xa0\xbda"), Some(vec![0xD83D, 0x61]));
        assert_eq!(to_utf8([0xD83D, 0x61, 0xFFFD, 0x1F600].into_iter()), b"\xed\xa0\xbda\xef\xbf\xbd\xf0\x9f\x98\x80");
    }

    #[test]
    fn strings_of_python_2_are_ascii() {
        let read = |bytes| points(Spelling::Escaped, bytes);
        assert_eq!(read(br"it\'s\x41\t\\"), of("it'sA\t\\"));
        for wrong in [&br"\x80"[..], br"\q", br"\x4", b"\xe9", b"\\"] {
            assert_eq!(read(wrong), None);
        }
    }
}
