//! Guesses what a refused body is, and how to send it correctly. A readable body is never refused because of a guess.

use std::borrow::Cow;
use std::ops::Range;

use super::Format;
use super::source::Source;

/// How many bytes of a body are examined.
const LOOKED_AT: usize = 1_024;

/// The shortest text that may count as base64, in bytes. Shorter ones may be words.
const MIN_BASE64_BYTES: usize = 16;

const AS_PICKLE: &str =
    "send it with Content-Type: application/octet-stream (over AMQP, with the header DATA_FORMAT: BYTES)";
const AS_JSON: &str = "send it with Content-Type: application/json (over AMQP, without the header DATA_FORMAT)";

/// File formats by their first bytes.
const MAGIC: [(&[u8], Kind); 9] = [
    (b"\x1f\x8b", Kind::Compressed("gzip")),
    (b"\x28\xb5\x2f\xfd", Kind::Compressed("zstd")),
    (b"BZh", Kind::Compressed("bzip2")),
    (b"\xfd7zXZ\0", Kind::Compressed("xz")),
    (b"PK\x03\x04", Kind::Compressed("zip")),
    (b"\x89PNG", Kind::Alone("a PNG image")),
    (b"\xff\xd8\xff", Kind::Alone("a JPEG image")),
    (b"\x76\x2f\x31\x01", Kind::Alone("an OpenEXR image")),
    (b"BLENDER", Kind::Alone("a .blend file")),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pickle,
    Json,
    Compressed(&'static str),
    /// A file that should be part of a message.
    Alone(&'static str),
    Multipart,
    UrlEncoded,
    Html,
    Base64,
}

/// What is examined of a body, or of a str or bytes in it.
pub(super) struct Sample<'a> {
    /// The first [`LOOKED_AT`] bytes.
    start: Cow<'a, [u8]>,
    last: Option<u8>,
}

impl<'a> Sample<'a> {
    /// The sample of a range of the source.
    pub(super) fn of(source: &'a Source, range: Range<usize>) -> Sample<'a> {
        let start = source.read(range.start..range.end.min(range.start + LOOKED_AT));
        Sample { start, last: (!range.is_empty()).then(|| source.byte(range.end - 1)) }
    }
}

/// What a body that could not be read in `format` seems to be, and how to send it correctly.
pub(super) fn remedy(format: Format, body: &Sample) -> Option<String> {
    let kind = magic(&body.start).or_else(|| text(&body.start)).or_else(|| pickle(body))?;
    Some(match kind {
        Kind::Pickle if format == Format::Json => format!("the body looks like a pickle: {AS_PICKLE}"),
        Kind::Json if format == Format::Pickle => format!("the body looks like JSON: {AS_JSON}"),
        Kind::Pickle | Kind::Json => return None,
        Kind::Compressed(how) => format!("the body is compressed ({how}): send it uncompressed"),
        Kind::Alone(what) => {
            format!("the body is {what}, not a message: put its bytes into a message, and send that as a pickle")
        }
        Kind::Multipart => {
            "the body is a form (multipart/form-data, as sent by curl -F or files= of requests): send only the \
                            message, as curl --data-binary @FILE does"
                .to_owned()
        }
        Kind::UrlEncoded => {
            "the body is a form (application/x-www-form-urlencoded, as sent by data= of requests): send JSON, as \
                             json= does"
                .to_owned()
        }
        Kind::Html => "the body is HTML or XML: send JSON or a pickle".to_owned(),
        Kind::Base64 => "the body looks like base64: send the decoded bytes".to_owned(),
    })
}

/// What is wrong with a str or bytes that should be a message and contains an encoded one. `None` if it contains none.
pub(super) fn twice_encoded(content: &Sample) -> Option<&'static str> {
    match text(&content.start).or_else(|| pickle(content)) {
        Some(Kind::Json) => Some("it contains JSON: encode the message once, not twice"),
        Some(Kind::Pickle) => Some("it contains a pickle: pickle the message once, not twice"),
        _ => None,
    }
}

fn magic(start: &[u8]) -> Option<Kind> {
    let known = MAGIC.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, kind)| *kind);
    // The header of zlib is a big-endian number that is a multiple of 31; its first byte is usually 0x78.
    known.or_else(|| match start {
        [0x78, second, ..] if (0x7800 + u16::from(*second)).is_multiple_of(31) => Some(Kind::Compressed("zlib")),
        _ => None,
    })
}

fn text(start: &[u8]) -> Option<Kind> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let lower = start[..start.len().min(100)].to_ascii_lowercase();
    match start {
        [b'{' | b'[', ..] => Some(Kind::Json),
        [b'<', next, ..] if matches!(next, b'!' | b'?') || next.is_ascii_alphabetic() => Some(Kind::Html),
        [b'-', b'-', ..] if lower.windows(12).any(|part| part == b"content-disp") => Some(Kind::Multipart),
        _ if is_base64(start) => Some(Kind::Base64),
        _ if is_form(start) => Some(Kind::UrlEncoded),
        _ => None,
    }
}

/// Pickles of protocol 2 and later begin with the protocol number. At protocols 0 and 1, what `pickle.dumps` writes for
/// a container begins with one of a few opcodes and ends with STOP.
fn pickle(body: &Sample) -> Option<Kind> {
    let is_pickle = match *body.start {
        [0x80, 2..=5, ..] => true,
        [b'(' | b'}' | b']' | b')' | b'c', _, ..] => body.last == Some(b'.'),
        _ => false,
    };
    is_pickle.then_some(Kind::Pickle)
}

/// Whether this is a form: `NAME=…`, without white space.
fn is_form(start: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.+%[]".contains(byte);
    let name = start.iter().position(|byte| *byte == b'=').map(|end| &start[..end]);
    name.is_some_and(|name| !name.is_empty() && name.iter().all(is_part)) && start.iter().all(u8::is_ascii_graphic)
}

/// Whether this is base64 of JSON, of a pickle, or of gzip.
fn is_base64(start: &[u8]) -> bool {
    let digit = |byte: &u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    };
    let [a, b, c, d, ..] = start else { return false };
    let [Some(a), Some(b), Some(c), Some(d)] = [a, b, c, d].map(digit) else { return false };
    let first = [a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d];
    let holds = matches!(first, [b'{', b'"' | b' ' | b'\n' | b'\r' | b'\'', _] | [0x80, 2..=5, _] | [0x1f, 0x8b, _])
        || matches!(&first, b"(dp" | b"}q\0");
    holds
        && start.len() >= MIN_BASE64_BYTES
        && start.iter().all(|byte| digit(byte).is_some() || matches!(byte, b'=' | b'\r' | b'\n'))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn remedy(format: Format, body: &'static [u8]) -> Option<String> {
        super::remedy(format, &Sample::of(&Source::Memory(Bytes::from_static(body)), 0..body.len()))
    }

    fn twice_encoded(content: &'static [u8]) -> Option<&'static str> {
        super::twice_encoded(&Sample::of(&Source::Memory(Bytes::from_static(content)), 0..content.len()))
    }

    #[test]
    fn what_is_sent_as_it_should_be_has_no_remedy() {
        for body in [&b"{\"USER_ID\": 1"[..], b"[", b"\xef\xbb\xbf{", b"hello", b"a = b", b"-1", b"\"text\"", b"", b"x"]
        {
            assert_eq!(remedy(Format::Json, body), None, "{}", body.escape_ascii());
        }
        for body in [&b"\x80\x04}."[..], b"(dp0\n.", b"}.", b"I1\n.", b"", b"x"] {
            assert_eq!(remedy(Format::Pickle, body), None, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn words_are_no_base64_and_no_form() {
        for body in
            [&b"eyJhIjox"[..], b"continue-with-words", b"eyeglasses of words", b"gASV", b"=x", b"a b=c", b"a=b c"]
        {
            assert!(!is_base64(body), "{}", body.escape_ascii());
        }
        assert!(is_base64(b"eyJVU0VSX0lEIjogIm1lIn0=") && is_base64(b"gASVEAAAAAAAAAB9lIwB\r\nYZSMAWKUcy4=\n"));
        assert!(is_form(b"USER_ID=me&MAIN_DATA=%7B%7D") && !is_form(b"a b=c") && !is_form(b"=x"));
    }

    #[test]
    fn a_message_within_a_str_or_bytes_is_seen() {
        assert!(twice_encoded(br#"{\"USER_ID\": 1}"#).is_some_and(|why| why.contains("JSON")));
        assert!(twice_encoded(b"\x80\x04}.").is_some_and(|why| why.contains("pickle")));
        assert_eq!(twice_encoded(b"hello"), None);
    }
}
