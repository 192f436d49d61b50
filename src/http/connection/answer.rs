//! Encodes the heads of answers, and chunks.

use std::cell::RefCell;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use actix_http::body::BodySize;
use actix_http::{ResponseHead, StatusCode, Version, header};

use crate::http::{RequestId, X_REQUEST_ID};

/// How the body of an answer is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// There is no body.
    Nothing,
    /// This many bytes.
    Sized(u64),
    /// Chunks; an empty one ends the body.
    Chunked,
    /// Bytes until the end of the connection.
    UntilClose,
}

impl Writing {
    /// The framing of a body of `size` for a client of this HTTP version. An answer to HEAD (`is_head`) has no body.
    pub fn of(head: &ResponseHead, size: BodySize, version: Version, is_head: bool) -> Self {
        let has_none =
            head.status.is_informational() || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&head.status);
        match size {
            _ if is_head || has_none => Self::Nothing,
            BodySize::None | BodySize::Sized(0) => Self::Nothing,
            BodySize::Sized(len) => Self::Sized(len),
            BodySize::Stream if version == Version::HTTP_11 && head.chunked() => Self::Chunked,
            BodySize::Stream => Self::UntilClose,
        }
    }
}

/// Writes the head of an answer with a body of `size`, byte for byte as actix-http does, and the id of the request.
pub fn write_head(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    id: &RequestId,
    version: Version,
    size: BodySize,
    keep_alive: bool,
) {
    let is_new = version == Version::HTTP_11;
    out.extend_from_slice(if is_new { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.reason().as_bytes());
    out.extend_from_slice(b"\r\n");
    let size = if head.status.is_informational() || head.status == StatusCode::NO_CONTENT {
        None
    } else if head.status == StatusCode::NOT_MODIFIED {
        // A handler may set the length that a 200 would have.
        Some(BodySize::None)
    } else {
        Some(size)
    };
    match size {
        Some(BodySize::Sized(len)) => {
            out.extend_from_slice(b"content-length: ");
            write_number(out, len);
            out.extend_from_slice(b"\r\n");
        }
        Some(BodySize::Stream) if is_new && head.chunked() => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        _ => {}
    }
    match keep_alive {
        true if !is_new => out.extend_from_slice(b"connection: keep-alive\r\n"),
        false if is_new => out.extend_from_slice(b"connection: close\r\n"),
        _ => {}
    }
    // A handler that streams without chunks may set Content-Length itself.
    let keeps_length = match size {
        Some(BodySize::Stream) => !head.chunked(),
        _ => head.status == StatusCode::NOT_MODIFIED,
    };
    for (name, value) in &head.headers {
        match *name {
            header::CONNECTION | header::TRANSFER_ENCODING => continue,
            header::CONTENT_LENGTH if !keeps_length => continue,
            _ => {}
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(X_REQUEST_ID.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b"\r\n");
    if !head.headers.contains_key(header::DATE) {
        out.extend_from_slice(b"date: ");
        write_date(out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a chunk, which must not be empty.
pub fn write_chunk(out: &mut Vec<u8>, chunk: &[u8]) {
    write_display(out, format_args!("{:X}\r\n", chunk.len()));
    out.extend_from_slice(chunk);
    out.extend_from_slice(b"\r\n");
}

/// Writes the chunk that ends the body.
pub fn write_last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    write_display(out, format_args!("{number}"));
}

fn write_display(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a vector never fails.
    let _ = out.write_fmt(text);
}

/// Writes the current time. Each thread formats it once a second.
fn write_date(out: &mut Vec<u8>) {
    thread_local! {
        static FORMATTED: RefCell<(u64, Vec<u8>)> = const { RefCell::new((0, Vec::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    FORMATTED.with_borrow_mut(|(of, text)| {
        if *of != second || text.is_empty() {
            text.clear();
            write_display(text, format_args!("{}", httpdate::HttpDate::from(now)));
            *of = second;
        }
        out.extend_from_slice(text);
    });
}

#[cfg(test)]
mod tests {
    use actix_http::h1::{Codec, Message};
    use actix_http::{Response, ServiceConfig};
    use bytes::BytesMut;
    use tokio_util::codec::{Decoder, Encoder};

    use super::*;

    /// The head that actix-http writes.
    fn theirs(request: &str, response: Response<()>, size: BodySize) -> String {
        let mut codec = Codec::new(ServiceConfig::default());
        codec.decode(&mut BytesMut::from(request)).expect("a request").expect("a whole one");
        let mut out = BytesMut::new();
        codec.encode(Message::Item((response, size)), &mut out).expect("an answer");
        String::from_utf8(out.to_vec()).expect("ASCII")
    }

    fn ours(version: Version, keep_alive: bool, response: &Response<()>, size: BodySize) -> String {
        let mut out = Vec::new();
        let id = RequestId::generate();
        write_head(&mut out, response.head(), &id, version, size, keep_alive);
        let own = format!("x-request-id: {}\r\n", String::from_utf8_lossy(id.as_bytes()));
        String::from_utf8(out).expect("ASCII").replacen(&own, "", 1)
    }

    /// The lines without the date, which may differ by a second.
    fn dateless(head: &str) -> Vec<&str> {
        head.split("\r\n").map(|line| if line.starts_with("date: ") { "date" } else { line }).collect()
    }

    #[actix_web::test]
    async fn the_head_of_an_answer_is_the_one_that_actix_http_writes() {
        let statuses = [200, 204, 206, 304, 400, 401, 404, 413, 431, 500, 503, 599];
        let sizes = [BodySize::None, BodySize::Sized(0), BodySize::Sized(1234567), BodySize::Stream];
        for status in statuses {
            for size in sizes {
                for (version, connection, kept) in [
                    (Version::HTTP_11, "keep-alive", true),
                    (Version::HTTP_11, "close", false),
                    (Version::HTTP_10, "keep-alive", true),
                    (Version::HTTP_10, "close", false),
                ] {
                    if (version, size) == (Version::HTTP_10, BodySize::Stream) {
                        // actix-http sends chunks even to HTTP/1.0 clients
                        continue;
                    }
                    let response = || {
                        let mut response = Response::with_body(StatusCode::from_u16(status).expect("a status"), ());
                        for (name, value) in [("etag", "\"x\""), ("content-type", "text/plain"), ("x-many", "1")] {
                            let name = header::HeaderName::from_static(name);
                            response.headers_mut().append(name, header::HeaderValue::from_static(value));
                        }
                        response
                            .headers_mut()
                            .append(header::HeaderName::from_static("x-many"), header::HeaderValue::from_static("2"));
                        response
                    };
                    let request = format!("GET / {version:?}\r\nHost: x\r\nConnection: {connection}\r\n\r\n");
                    let theirs = theirs(&request, response(), size);
                    let ours = ours(version, kept, &response(), size);
                    let (mut theirs, mut ours) = (dateless(&theirs), dateless(&ours));
                    // the order of headers depends on a hash that differs from map to map
                    theirs.sort_unstable();
                    ours.sort_unstable();
                    assert_eq!(ours, theirs, "{status} {size:?} {version:?} {connection}");
                }
            }
        }
    }

    #[test]
    fn the_framing_of_a_body_depends_on_status_size_and_version() {
        let of = |status, size, version, is_head| Writing::of(&ResponseHead::new(status), size, version, is_head);
        let (new, old) = (Version::HTTP_11, Version::HTTP_10);
        assert_eq!(of(StatusCode::OK, BodySize::Sized(5), new, false), Writing::Sized(5));
        assert_eq!(of(StatusCode::OK, BodySize::Sized(5), new, true), Writing::Nothing);
        assert_eq!(of(StatusCode::OK, BodySize::Stream, new, false), Writing::Chunked);
        assert_eq!(of(StatusCode::OK, BodySize::Stream, old, false), Writing::UntilClose);
        assert_eq!(of(StatusCode::NO_CONTENT, BodySize::Sized(5), new, false), Writing::Nothing);
        assert_eq!(of(StatusCode::NOT_MODIFIED, BodySize::Sized(5), new, false), Writing::Nothing);
    }
}
