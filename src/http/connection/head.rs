//! Decodes the heads of requests, strictly: a proxy in front must never read a request differently (request smuggling).
//!
//! `Upgrade` (RFC 9110, section 7.8) is ignored.

use std::mem::MaybeUninit;

use actix_http::header::{self, HeaderName, HeaderValue};
use actix_http::{ConnectionType, Method, Request, Uri, Version};
use bytes::{Buf, Bytes, BytesMut};

use crate::http::Failure;
use crate::http::connection::framing::Framing;

/// The longest head, in bytes. Workers send a few hundred bytes, browsers and proxies up to 8 KiB.
pub const MAX_HEAD: usize = 16 << 10;

/// How many header fields a request may have.
const MAX_HEADERS: usize = 96;

/// How many bytes of malformed input an error shows.
const MAX_SHOWN: usize = 40;

/// A request without its body.
pub struct Head {
    pub request: Request,
    /// The framing of the body that follows, if any.
    pub body: Option<Framing>,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether the client may send another request.
    pub keep_alive: bool,
}

/// Decodes a head from the received bytes; `None` if more bytes are needed.
///
/// # Errors
/// The answer to a malformed request. The connection must then be closed, because it is unknown where the next request
/// starts.
pub fn decode(received: &mut BytesMut) -> Result<Option<Head>, Failure> {
    // Some clients send a line break after a body (RFC 9112, section 2.2). It counts as part of the head, which bounds
    // the number of line breaks.
    let blank = received.iter().take_while(|byte| is_line_break(**byte)).count();
    let begun = &received[blank..];
    match end(begun) {
        Some(end) if blank + end <= MAX_HEAD => {
            received.advance(blank);
            parse(received.split_to(end).freeze()).map(Some)
        }
        None if received.len() < MAX_HEAD => {
            // Reports an error as early as possible.
            let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
            let parsed = httparse::Request::new(&mut []).parse_with_uninit_headers(begun, &mut headers);
            parsed.map(|_| None).map_err(|error| malformed(error, begun))
        }
        _ => Err(Failure::head_too_large(MAX_HEAD)),
    }
}

/// Whether this is CR or LF.
pub fn is_line_break(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// The length of the head, including the empty line at its end.
fn end(received: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', received).find_map(|line_feed| match &received[line_feed + 1..] {
        [b'\n', ..] => Some(line_feed + 2),
        [b'\r', b'\n', ..] => Some(line_feed + 3),
        _ => None,
    })
}

fn parse(head: Bytes) -> Result<Head, Failure> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(&head, &mut headers) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(malformed(httparse::Error::NewLine, &head)),
        Err(error) => return Err(malformed(error, &head)),
    }
    // Clients by hand send LF alone. Among lines that end in CR LF, a proxy may take it for a part of a value, and what
    // follows it too.
    let mut have_cr = memchr::memchr_iter(b'\n', &head).map(|line_feed| head[..line_feed].ends_with(b"\r"));
    let first_has_cr = have_cr.next();
    if have_cr.any(|has_cr| Some(has_cr) != first_has_cr) {
        return Err(bad("some of its lines end in LF alone, and others in CR LF; end all of them in CR LF"));
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(malformed(httparse::Error::Token, &head));
    };
    let mut request = Request::new();
    let line = request.head_mut();
    line.method = Method::from_bytes(method.as_bytes()).map_err(|_| malformed(httparse::Error::Token, &head))?;
    line.version = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    line.uri = Uri::from_maybe_shared(head.slice_ref(target.as_bytes()))
        .map_err(|error| bad(&format!("{} is not a request target: {error}", shown(target.as_bytes()))))?;
    let mut fields = Fields::default();
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|error| bad(&error.to_string()))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| bad(&format!("the value of {name} has a control character")))?;
        fields.add(&name, &value, line.version)?;
        line.headers.append(name, value);
    }
    let is_new = line.version == Version::HTTP_11;
    let body = match (fields.length, fields.is_chunked) {
        (Some(_), true) => return Err(bad("it has both Content-Length and Transfer-Encoding; send only one of them")),
        (Some(0), _) => None,
        (Some(length), _) => Some(Framing::Length(length)),
        (None, true) => Some(Framing::chunked()),
        (None, false) if !is_new && line.method == Method::POST => {
            return Err(bad("it is HTTP/1.0 without Content-Length, so the length of the body is unknown"));
        }
        (None, false) => None,
    };
    if is_new && !fields.has_host {
        return Err(bad("the header Host is missing"));
    }
    let keep_alive = !fields.closes && (is_new || fields.keeps_alive);
    line.set_connection_type(if keep_alive { ConnectionType::KeepAlive } else { ConnectionType::Close });
    let expects_continue = fields.expects_continue && is_new && body.is_some();
    Ok(Head { request, body, expects_continue, keep_alive })
}

/// The header fields that concern the connection and the body.
#[derive(Default)]
struct Fields {
    has_host: bool,
    length: Option<u64>,
    is_chunked: bool,
    closes: bool,
    keeps_alive: bool,
    expects_continue: bool,
}

impl Fields {
    fn add(&mut self, name: &HeaderName, value: &HeaderValue, version: Version) -> Result<(), Failure> {
        let bytes = value.as_bytes();
        match *name {
            header::HOST if self.has_host => return Err(bad("the header Host is given twice")),
            header::HOST if !is_host(bytes) => {
                return Err(bad(&format!("Host {} is not a name or an address, with or without a port", shown(bytes))));
            }
            header::HOST => self.has_host = true,
            header::CONTENT_LENGTH => {
                let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                let length = digits.and_then(|digits| digits.parse().ok());
                let length = length.ok_or_else(|| bad(&format!("Content-Length {} is not a length", shown(bytes))))?;
                if self.length.replace(length).is_some() {
                    return Err(bad("Content-Length is given twice"));
                }
            }
            header::TRANSFER_ENCODING => {
                if version != Version::HTTP_11 {
                    return Err(bad("Transfer-Encoding belongs to HTTP/1.1, but the request is HTTP/1.0"));
                }
                if self.is_chunked || !bytes.eq_ignore_ascii_case(b"chunked") {
                    let text = format!("Transfer-Encoding {} is not supported, only \"chunked\", once", shown(bytes));
                    return Err(bad(&text));
                }
                self.is_chunked = true;
            }
            header::CONNECTION => {
                for option in bytes.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    self.closes |= option.eq_ignore_ascii_case(b"close");
                    self.keeps_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            header::EXPECT => {
                let mut expectations = bytes.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                self.expects_continue |= expectations.any(|one| one.eq_ignore_ascii_case(b"100-continue"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a `Host` has only the characters of an authority (RFC 3986, section 3.2). It may be empty, and the guards of
/// hosts refuse one with user information.
fn is_host(value: &[u8]) -> bool {
    value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]@".contains(byte))
}

fn bad(what: &str) -> Failure {
    Failure::bad_request(format!("the request cannot be read: {what}"))
}

fn malformed(error: httparse::Error, head: &[u8]) -> Failure {
    let line = head.split(|byte| is_line_break(*byte)).next().unwrap_or_default();
    match error {
        httparse::Error::TooManyHeaders => Failure::too_many_headers(MAX_HEADERS),
        // The first two bytes of a TLS handshake.
        _ if head.starts_with(b"\x16\x03") => bad("it is TLS, but this port speaks plain HTTP; use http://"),
        httparse::Error::HeaderName | httparse::Error::HeaderValue => {
            bad(&format!("a header is malformed ({error}); expected NAME: VALUE on one line"))
        }
        _ => bad(&format!("it begins with {}; expected METHOD TARGET HTTP/1.1", shown(line))),
    }
}

/// Received bytes as an error shows them: escaped and truncated.
fn shown(bytes: &[u8]) -> String {
    let cut = if bytes.len() > MAX_SHOWN { "…" } else { "" };
    format!("\"{}{cut}\"", bytes[..bytes.len().min(MAX_SHOWN)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use actix_http::HttpMessage;

    use super::*;

    fn head(text: &str) -> Head {
        let mut received = BytesMut::from(text);
        let decoded = decode(&mut received).unwrap_or_else(|failure| panic!("{text:?}: {failure:?}"));
        assert!(received.is_empty(), "{text:?}: {received:?}");
        decoded.unwrap_or_else(|| panic!("{text:?} is not a whole head"))
    }

    fn refusal(text: &str) -> String {
        match decode(&mut BytesMut::from(text)) {
            Err(failure) => format!("{failure:?}"),
            Ok(head) => panic!("{text:?} is accepted: {}", head.is_some()),
        }
    }

    #[test]
    fn a_head_is_decoded_once_it_is_complete_and_the_bytes_behind_it_stay() {
        let text = "\r\n\nPOST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-Y: z\r\n\r\n";
        let mut received = BytesMut::new();
        for (at, byte) in text.bytes().enumerate() {
            assert!(decode(&mut received).expect("nothing wrong").is_none(), "after {at} bytes");
            received.extend_from_slice(&[byte]);
        }
        received.extend_from_slice(b"abcGET");
        let head = decode(&mut received).expect("nothing wrong").expect("a head");
        assert_eq!(&received[..], b"abcGET");
        assert_eq!((head.request.method(), head.request.path()), (&Method::POST, "/a"));
        assert_eq!(head.request.uri().query(), Some("b=c"));
        assert_eq!(head.request.headers().get("x-y").map(HeaderValue::as_bytes), Some(&b"z"[..]));
        assert_eq!(head.body, Some(Framing::Length(3)));
        assert!(head.keep_alive && !head.expects_continue);
    }

    #[test]
    fn a_head_of_lines_that_all_end_in_lf_alone_is_decoded() {
        let head = head("GET /a HTTP/1.1\nHost: x\nX-Y: z\n\n");
        assert_eq!(head.request.headers().get("x-y").map(HeaderValue::as_bytes), Some(&b"z"[..]));
    }

    #[test]
    fn keep_alive_depends_on_version_and_header() {
        for (version, connection, kept) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: keep-alive, CLOSE\r\n", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
        ] {
            let head = head(&format!("GET / HTTP/{version}\r\nHost: x\r\n{connection}\r\n"));
            assert_eq!(head.keep_alive, kept, "{version} {connection}");
        }
    }

    #[test]
    fn upgrade_is_ignored() {
        for offer in ["websocket", "h2c", "TLS/1.0, websocket"] {
            let text = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\nContent-Length: 7\r\n\r\n";
            let head = head(&format!("POST / HTTP/1.1\r\nHost: x\r\nUpgrade: {offer}\r\n{text}"));
            assert_eq!((head.body, head.keep_alive), (Some(Framing::Length(7)), true), "{offer}");
        }
        assert_eq!(head("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n").body, None);
    }

    #[test]
    fn a_request_that_a_proxy_could_read_differently_is_refused_with_the_reason() {
        for (rest, reason) in [
            ("HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n", "both Content-Length"),
            ("HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n", "both Content-Length"),
            ("HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n", "given twice"),
            ("HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n", "not a length"),
            ("HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n", "not a length"),
            ("HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n", "not a length"),
            ("HTTP/1.1\r\nHost: x\r\nContent-Length: 0x3\r\n", "not a length"),
            ("HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n", "not a length"),
            ("HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n", "not a length"),
            ("HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n", "not supported"),
            ("HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n", "not supported"),
            ("HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n", "malformed"),
            ("HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "once"),
            ("HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n", "belongs to HTTP/1.1"),
            ("HTTP/1.0\r\nHost: x\r\n", "length of the body"),
            ("HTTP/1.1\r\nHost: x\r\nHost: y\r\n", "Host is given twice"),
            ("HTTP/1.1\r\nX: y\r\n", "Host is missing"),
            ("HTTP/1.1\r\nHost: ###\r\n", "Host \\\"###\\\" is not a name"),
            ("HTTP/1.1\r\nHost: x y\r\n", "is not a name"),
            ("HTTP/1.1\r\nHost: x/y\r\n", "is not a name"),
            ("HTTP/1.1\r\nHost: caf\u{e9}\r\n", "is not a name"),
            ("HTTP/1.1\nHost: x\r\n", "LF alone"),
            ("HTTP/1.1\r\nHost: x\r\nA: b\nContent-Length: 3\r\n", "LF alone"),
            ("HTTP/1.1\r\nHost: x\r\nA: b\n", "LF alone"),
            ("HTTP/1.1\r\nHost: x\r\n\n", "LF alone"),
            ("HTTP/1.1\nHost: x\nA: b\r\nContent-Length: 3\n", "LF alone"),
            ("HTTP/1.1\r\nHost: x\r\nA: b\r\n folded: 1\r\n", "malformed"),
            ("HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n", "malformed"),
            ("HTTP/1.1\r\nHost: x\r\nA: b\rContent-Length: 3\r\n", "malformed"),
            ("HTTP/1.1\r\nHost: x\r\n: 3\r\n", "malformed"),
            ("HTTP/2.0\r\nHost: x\r\n", "expected METHOD TARGET HTTP/1.1"),
            ("\r\nHost: x\r\n", "expected METHOD TARGET HTTP/1.1"),
        ] {
            let text = refusal(&format!("POST / {rest}\r\n"));
            assert!(text.contains(reason) && text.contains("BAD_REQUEST") | text.contains("400"), "{rest:?}: {text}");
        }
    }

    #[test]
    fn input_that_is_not_http_is_refused_before_more_of_it_arrives() {
        assert!(refusal("\x16\x03\x01\x02\x00\x01\x00").contains("TLS"));
        assert!(refusal("SSH-2.0-OpenSSH_9.2\r\n").contains("SSH-2.0-OpenSSH"));
        assert!(refusal("{\"a\": 1}").contains("expected METHOD"));
    }

    #[test]
    fn a_head_longer_than_the_bound_is_refused_complete_or_not() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n", "x".repeat(MAX_HEAD));
        assert!(refusal(&long).contains("16384 bytes"));
        assert!(refusal(&format!("{long}\r\n")).contains("16384 bytes"));
        assert!(refusal(&"\r\n".repeat(MAX_HEAD / 2)).contains("16384 bytes"));
        let longest = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(MAX_HEAD - 27));
        assert_eq!(longest.len(), MAX_HEAD);
        head(&longest);
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS - 1));
        assert_eq!(head(&many).request.headers().len(), MAX_HEADERS);
        let more = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS));
        assert!(refusal(&more).contains("96 headers"));
    }
}
