//! `Idempotency-Key`: the header that makes the retry of a `POST /` safe.

use actix_web::http::header::{HeaderMap, HeaderName};

use crate::http::error::Failure;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// In the answer to a retry of a request that was accepted before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The longest key in bytes. Fixed by the wire contract.
const MAX_LEN: usize = 255;

/// The key of a request, if it has one: the value of the header as it stands, without the white space around it. Quotes
/// are part of the key.
///
/// # Errors
/// 400 if the header is given more than once, or is no key.
pub fn key(headers: &HeaderMap) -> Result<Option<&[u8]>, Failure> {
    let mut values = headers.get_all(KEY);
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.as_bytes().trim_ascii();
    let wrong = match values.count() {
        0 if key.is_empty() => "not empty".to_owned(),
        0 if key.len() > MAX_LEN => format!("not of {}", key.len()),
        0 => match key.iter().find(|byte| !matches!(byte, 0x20..=0x7e)) {
            None => return Ok(Some(key)),
            Some(byte) => format!("without the byte 0x{byte:02x}"),
        },
        more => format!("not {} times", more + 1),
    };
    let text = format!("Idempotency-Key must be given once, with 1 to {MAX_LEN} printable ASCII characters, {wrong}");
    Err(Failure::bad_request(text))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn checked(values: &[&[u8]]) -> Result<Option<Vec<u8>>, String> {
        let header = |value: &&[u8]| (KEY, HeaderValue::from_bytes(value).expect("a header"));
        let headers: HeaderMap = values.iter().map(header).collect();
        key(&headers).map(|key| key.map(<[u8]>::to_vec)).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn a_key_has_1_to_255_printable_characters_and_no_white_space_around_it() {
        let longest = [b'k'; 255];
        for (value, key) in [
            (&b"7"[..], &b"7"[..]),
            (b" \t a b~!\" \t", b"a b~!\""),
            (b"\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", b"\"8e03978e-40d5-43dd-bc93-6894a57f9324\""),
            (&longest, &longest),
        ] {
            assert_eq!(checked(&[value]), Ok(Some(key.to_vec())));
        }
        assert_eq!(checked(&[]), Ok(None));
    }

    #[test]
    fn anything_else_is_refused_with_what_is_wrong() {
        for (values, why) in [
            (&[&b""[..]][..], "not empty"),
            (&[b" \t "], "not empty"),
            (&[&[b'k'; 256]], "not of 256"),
            (&[b"a\tb"], "without the byte 0x09"),
            (&[b"caf\xc3\xa9"], "without the byte 0xc3"),
            (&[b"7", b"7"], "not 2 times"),
            (&[b"", b"7", b"8"], "not 3 times"),
        ] {
            let text = checked(values).expect_err("no key");
            assert!(text.contains(why) && text.contains("1 to 255 printable ASCII characters"), "{text}");
        }
    }
}
