//! The framing of a request's body, by length or by chunks (RFC 9112, sections 6 and 7).

use bytes::{Bytes, BytesMut};

/// The longest line of a chunk size with its extensions, in bytes.
const MAX_SIZE_LINE: usize = 1 << 10;

/// The longest trailer section, in bytes. Trailers are ignored.
const MAX_TRAILERS: usize = 8 << 10;

/// The part of a body that has not been decoded yet.
#[derive(Debug, PartialEq, Eq)]
pub enum Framing {
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunked),
}

/// The next element of a chunked body.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunked {
    /// The size of a chunk.
    Size,
    /// This many bytes of a chunk.
    Data(u64),
    /// The line break after a chunk.
    DataEnd,
    /// A trailer, or the empty line that ends the body; this many bytes of trailers have been decoded.
    Trailers(usize),
    /// None: the chunks are malformed, so the end of the body is unknown.
    Broken,
}

/// A decoded part of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// At least one byte.
    Bytes(Bytes),
    /// The end.
    End,
}

impl Framing {
    /// A chunked body.
    pub fn chunked() -> Self {
        Self::Chunked(Chunked::Size)
    }

    /// How many bytes to receive next: few enough to receive little beyond the end of the body.
    pub fn wanted(&self) -> usize {
        match self {
            Self::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
            // Plus the line break, and a last chunk with its two line breaks.
            Self::Chunked(Chunked::Data(left)) => usize::try_from(*left).unwrap_or(usize::MAX).saturating_add(7),
            Self::Chunked(_) => MAX_SIZE_LINE,
        }
    }

    /// Decodes the next part of the body from the received bytes; `None` if more bytes are needed.
    ///
    /// # Errors
    /// The chunks are malformed.
    pub fn decode(&mut self, received: &mut BytesMut) -> Result<Option<Part>, String> {
        match self {
            Self::Length(0) => Ok(Some(Part::End)),
            Self::Length(left) => Ok(take(left, received).map(Part::Bytes)),
            Self::Chunked(state) => {
                let decoded = state.decode(received);
                if decoded.is_err() {
                    *state = Chunked::Broken;
                }
                decoded
            }
        }
    }
}

impl Chunked {
    fn decode(&mut self, received: &mut BytesMut) -> Result<Option<Part>, String> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = take_line(received, MAX_SIZE_LINE)? else { return Ok(None) };
                    *self = match chunk_size(&line)? {
                        0 => Self::Trailers(0),
                        size => Self::Data(size),
                    };
                }
                Self::Data(left) => {
                    let Some(bytes) = take(left, received) else { return Ok(None) };
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Some(Part::Bytes(bytes)));
                }
                Self::DataEnd => {
                    if received.first().is_some_and(|byte| *byte != b'\r') {
                        return Err("a chunk is longer than its size".to_owned());
                    }
                    if take_line(received, 0)?.is_none() {
                        return Ok(None);
                    }
                    *self = Self::Size;
                }
                Self::Trailers(len) => {
                    let Some(line) = take_line(received, MAX_TRAILERS.saturating_sub(*len))? else { return Ok(None) };
                    if line.is_empty() {
                        return Ok(Some(Part::End));
                    }
                    *len += line.len() + 2;
                }
                Self::Broken => return Err("an earlier chunk was malformed".to_owned()),
            }
        }
    }
}

/// Takes up to `left` bytes; `None` if none have been received.
fn take(left: &mut u64, received: &mut BytesMut) -> Option<Bytes> {
    let len = (received.len() as u64).min(*left);
    *left -= len;
    // Lossless: at most `received.len()`, which is a usize.
    (len > 0).then(|| received.split_to(len as usize).freeze())
}

/// Takes a line without its CR LF; `None` if its end has not been received. A bare LF is an error, because proxies
/// disagree on whether it ends a line.
fn take_line(received: &mut BytesMut, max: usize) -> Result<Option<BytesMut>, String> {
    let Some(end) = memchr::memchr(b'\n', received) else {
        // Plus the CR.
        return if received.len() > max + 1 { Err(format!("a line is longer than {max} bytes")) } else { Ok(None) };
    };
    let mut line = received.split_to(end + 1);
    line.truncate(end);
    let has_cr = line.last() == Some(&b'\r');
    line.truncate(end.saturating_sub(1));
    if !has_cr || line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err("a line has a control character, or does not end in CR LF".to_owned());
    }
    if line.len() > max { Err(format!("a line is longer than {max} bytes")) } else { Ok(Some(line)) }
}

fn chunk_size(line: &[u8]) -> Result<u64, String> {
    let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    let digits = std::str::from_utf8(size).ok().filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or_else(|| {
        let shown = size[..size.len().min(20)].escape_ascii();
        format!("the size of a chunk is \"{shown}\"; expected a hexadecimal number of at most 64 bits")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of a message and the bytes after it, if they arrive in pieces of `step` bytes.
    fn decode(mut framing: Framing, text: &str, step: usize) -> Result<(String, String), String> {
        let (mut body, mut received) = (Vec::new(), BytesMut::new());
        let mut pieces = text.as_bytes().chunks(step);
        loop {
            match framing.decode(&mut received)? {
                Some(Part::Bytes(bytes)) => body.extend_from_slice(&bytes),
                Some(Part::End) => {
                    pieces.for_each(|piece| received.extend_from_slice(piece));
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    return Ok((text(&body), text(&received)));
                }
                None => received.extend_from_slice(pieces.next().ok_or("it never ends")?),
            }
        }
    }

    #[test]
    fn a_body_ends_after_its_length_or_its_last_chunk_however_it_arrives() {
        let chunks = "5\r\nhello\r\n1;name=\"v;\"\r\n,\r\n06 \t\r\n world\r\n000\r\nField: x\r\nOther: y\r\n\r\nGET";
        for step in 1..=chunks.len() {
            assert_eq!(decode(Framing::chunked(), chunks, step), Ok(("hello, world".into(), "GET".into())), "{step}");
            assert_eq!(decode(Framing::Length(5), "helloGET", step), Ok(("hello".into(), "GET".into())), "{step}");
        }
        assert_eq!(decode(Framing::Length(0), "GET", 1), Ok((String::new(), "GET".into())));
    }

    #[test]
    fn a_body_whose_end_a_proxy_could_see_elsewhere_is_refused() {
        let long = "1;".to_owned() + &"x".repeat(MAX_SIZE_LINE) + "\r\n";
        let trailers = "0\r\n".to_owned() + &"a: b\r\n".repeat(MAX_TRAILERS / 4) + "\r\n";
        let endless = "0\r\n".to_owned() + &"a".repeat(MAX_TRAILERS + 2);
        for chunks in [
            "\r\n",
            "zz\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1 1\r\n",
            "ffffffffffffffffff\r\n",
            "10000000000000000\r\n",
            "1\na\r\n0\r\n\r\n",
            "1;a\nb\r\na\r\n0\r\n\r\n",
            "1;a\rb\r\na\r\n0\r\n\r\n",
            "1\r\nab\r\n0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\na0\r\n\r\n",
            "0\r\n\n",
            "0\r\nField: x\n\r\n",
            &long,
            &trailers,
            &endless,
        ] {
            for step in [1, 7, chunks.len()] {
                let decoded = decode(Framing::chunked(), chunks, step);
                let shown = chunks[..chunks.len().min(40)].escape_debug();
                assert!(decoded.as_ref().is_err_and(|why| why != "it never ends"), "{shown}: {decoded:?}");
            }
        }
    }

    #[test]
    fn a_malformed_body_stays_malformed() {
        let mut framing = Framing::chunked();
        assert!(framing.decode(&mut BytesMut::from("x\r\n0\r\n\r\n")).is_err());
        assert!(framing.decode(&mut BytesMut::from("0\r\n\r\n")).is_err());
    }
}
