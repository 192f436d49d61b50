//! A request is read the same however it arrives, and as a second, simpler reading of RFC 9112 has it: where its body
//! ends, above all.

use actix_http::HttpMessage;
use actix_http::header::HeaderMap;
use bytes::BytesMut;

use crate::http::framing::{Framing, Part};
use crate::http::head::{self, MAX_HEAD};
use crate::http::shown;

/// Lines of chunks may be as long as this, and longer.
const LONG_LINE: usize = 1_024;

/// A request as it was read.
#[derive(Debug, PartialEq)]
struct Read {
    line: (String, String, bool),
    headers: Vec<(String, Vec<u8>)>,
    body: Body,
    keep_alive: bool,
    expects_continue: bool,
    /// How many bytes were not taken.
    left: usize,
}

#[derive(Debug, PartialEq)]
enum Body {
    Whole(Vec<u8>),
    /// More bytes are needed, or the chunks are malformed. What was read before does not matter.
    Unfinished,
    Malformed,
}

/// The bytes of a stream that arrive at once.
struct Arriving<'a> {
    pieces: std::slice::Chunks<'a, u8>,
    received: BytesMut,
}

impl Arriving<'_> {
    fn more(&mut self) -> bool {
        let piece = self.pieces.next();
        self.received.extend_from_slice(piece.unwrap_or_default());
        piece.is_some()
    }
}

/// What is read of a stream; `None` if it has no whole head. `Err` if it is refused.
fn read(stream: &[u8], step: usize) -> Result<Option<Read>, ()> {
    let mut arriving = Arriving { pieces: stream.chunks(step), received: BytesMut::new() };
    let head = loop {
        match head::decode(&mut arriving.received) {
            Ok(Some(head)) => break head,
            Ok(None) if arriving.more() => {}
            Ok(None) => return Ok(None),
            Err(failure) => {
                let (status, text) = shown(failure);
                assert!([400, 431].contains(&status) && text.is_ascii() | text.contains('…'), "{status} {text}");
                return Err(());
            }
        }
    };
    let request = &head.request;
    let line =
        (request.method().to_string(), request.uri().to_string(), request.version() == actix_http::Version::HTTP_11);
    let headers = sorted(request.headers());
    let body = match head.body {
        Some(framing) => read_body(framing, &mut arriving),
        None => Body::Whole(Vec::new()),
    };
    while arriving.more() {}
    let left = if matches!(body, Body::Whole(_)) { arriving.received.len() } else { 0 };
    let (keep_alive, expects_continue) = (head.keep_alive, head.expects_continue);
    Ok(Some(Read { line, headers, body, keep_alive, expects_continue, left }))
}

fn sorted(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    // lines of one name stay in their order
    let mut all: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

fn read_body(mut framing: Framing, arriving: &mut Arriving<'_>) -> Body {
    let mut body = Vec::new();
    loop {
        match framing.decode(&mut arriving.received) {
            Ok(Some(Part::Bytes(bytes))) => body.extend_from_slice(&bytes),
            Ok(Some(Part::End)) => return Body::Whole(body),
            Ok(None) if arriving.more() => {}
            Ok(None) => return Body::Unfinished,
            Err(_) => return Body::Malformed,
        }
    }
}

/// The lines of a head without their ends, and the bytes behind it. `None` if it has no end.
fn lines(stream: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let mut rest = stream;
    while let [b'\r' | b'\n', behind @ ..] = rest {
        rest = behind;
    }
    let mut lines = Vec::new();
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        if line.is_empty() {
            return Some((lines, rest));
        }
        lines.push(line);
    }
}

/// Takes a line of chunks without its CR LF.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    let (line, behind) = rest.split_at(end);
    *rest = &behind[2..];
    line.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control()).then_some(line)
}

/// The chunked body at the start of these bytes, and how many are behind it; `None` if they do not have one.
fn chunked(mut rest: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    loop {
        let line = String::from_utf8_lossy(take_line(&mut rest)?);
        let digits = line.split(';').next().unwrap_or_default().trim_end_matches([' ', '\t']);
        let add = |len: u64, digit: char| len.checked_mul(16)?.checked_add(digit.to_digit(16)?.into());
        let len = usize::try_from(digits.chars().try_fold(0, add).filter(|_| !digits.is_empty())?).ok()?;
        if len == 0 {
            while !take_line(&mut rest)?.is_empty() {}
            return Some((body, rest.len()));
        }
        body.extend_from_slice(rest.get(..len)?);
        rest = rest[len..].strip_prefix(b"\r\n")?;
    }
}

/// Compares with what its lines say by themselves.
fn check_lines(stream: &[u8], read: &Read) {
    let (lines, rest) = lines(stream).expect("a head that was read has an end");
    let head = stream[..stream.len() - rest.len()].trim_ascii_start();
    let crs = head.windows(2).filter(|two| *two == b"\r\n").count();
    assert!(crs == 0 || crs == head.iter().filter(|byte| **byte == b'\n').count(), "lines end in two ways");
    let (first, fields) = lines.split_first().expect("a line");
    let (method, target, is_new) = &read.line;
    let version = if *is_new { "1.1" } else { "1.0" };
    let words: Vec<&[u8]> = first.split(|byte| *byte == b' ').collect();
    assert_eq!(words.len(), 3, "{}", first.escape_ascii());
    assert_eq!((words[0], words[2]), (method.as_bytes(), format!("HTTP/{version}").as_bytes()));
    // what is not a path may be shown in another form
    assert!(!words[1].starts_with(b"/") || words[1].starts_with(target.as_bytes()), "{target}");

    let mut headers = Vec::new();
    for field in fields {
        let colon = field.iter().position(|byte| *byte == b':').expect("a colon");
        let (name, value) = (&field[..colon], field[colon + 1..].trim_ascii());
        assert!(!name.is_empty() && name.iter().all(|byte| byte.is_ascii_graphic()), "{}", field.escape_ascii());
        assert!(value.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control()), "{}", field.escape_ascii());
        headers.push((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()));
    }
    headers.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(headers, read.headers);

    let named = |name| headers.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.as_slice());
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let lengths: Vec<String> = named("content-length").map(text).collect();
    let codings: Vec<String> = named("transfer-encoding").map(text).collect();
    assert!(named("host").count() <= 1 && (named("host").count() == 1 || !is_new));
    assert!(lengths.len() + codings.len() <= 1, "one framing at most");
    let expected = match (lengths.first(), codings.first()) {
        (Some(length), _) => {
            assert!(!length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()), "{length}");
            let length: u64 = length.parse().expect("a number");
            usize::try_from(length).ok().and_then(|len| Some((rest.get(..len)?.to_vec(), rest.len() - len)))
        }
        (None, Some(coding)) => {
            assert!(*is_new && coding.eq_ignore_ascii_case("chunked"), "{coding}");
            chunked(rest)
        }
        (None, None) => Some((Vec::new(), rest.len())),
    };
    match (&read.body, expected) {
        (Body::Whole(body), Some((expected, left))) => assert_eq!((body, read.left), (&expected, left)),
        (Body::Malformed, None) => assert!(!codings.is_empty()),
        // it may have a line that is too long
        (Body::Malformed, Some(_)) => assert!(rest.len() > LONG_LINE, "{}", rest.escape_ascii()),
        (Body::Unfinished, None) => {}
        (body, expected) => panic!("{body:?} instead of {expected:?}"),
    }
    assert!(
        read.keep_alive || !is_new || named("connection").any(|value| text(value).to_lowercase().contains("close"))
    );
    assert!(!read.expects_continue || (*is_new && lengths.len() + codings.len() == 1));
}

pub fn check(data: &[u8]) {
    let whole = read(data, data.len().max(1));
    if let Ok(Some(read)) = &whole {
        check_lines(data, read);
    }
    for step in [1, 3, 17] {
        let pieces = read(data, step);
        // the end of a head that is too long may not have arrived
        if data.len() < MAX_HEAD {
            assert_eq!(pieces, whole, "in pieces of {step}: {}", data.escape_ascii());
        }
    }
}
