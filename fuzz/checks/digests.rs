//! A body passes exactly if its headers name no other digest than its own, and what is sent as a digest is read again.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::http::digest::{Algorithm, Digests, Expected, Hasher, member};
use crate::http::shown;

const HEADERS: [&str; 2] = ["content-digest", "repr-digest"];

fn digests(body: &[u8]) -> Digests {
    let mut hasher = Hasher::of([Algorithm::Sha256, Algorithm::Sha512]);
    body.chunks(7).for_each(|part| hasher.update(part));
    hasher.finish()
}

/// The bytes between the colons of a byte sequence; `None` if it is none.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in text {
        bits = bits << 6 | DIGITS.iter().position(|known| known == digit)? as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Some(bytes)
}

/// The digests of a header without strings, the last of each name: its value without whitespace is cut at the commas.
/// `None` if a value is no byte sequence.
fn simple(value: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut named: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
    for member in value.split(|byte| *byte == b',') {
        let text = member.trim_ascii();
        let name: Vec<u8> = text.iter().copied().take_while(|byte| !b"=;".contains(byte)).collect();
        let rest = &text[name.len()..];
        let sequence = rest.strip_prefix(b"=:").and_then(|rest| rest.split(|byte| *byte == b':').next());
        named.retain(|(earlier, _)| *earlier != name);
        named.push((name, sequence.and_then(decoded)));
    }
    named.into_iter().map(|(name, digest)| Some((name, digest?))).collect()
}

fn check_headers(headers: &HeaderMap, body: &[u8]) {
    let computed = digests(body);
    let expected = match Expected::of(headers) {
        Ok(expected) => expected,
        Err(failure) => {
            let (status, text) = shown(failure);
            assert!(status == 400 && text.contains("-Digest is malformed"), "{status} {text}");
            return;
        }
    };
    let refusal = expected.check(&computed).err().map(shown);
    if let Some((status, text)) = &refusal {
        assert!(*status == 400 && text.matches("sha-").count() == 2, "{status} {text}");
    }
    let mut all = Vec::new();
    for name in HEADERS {
        let lines: Vec<&[u8]> = headers.get_all(name).map(|line| line.as_bytes()).collect();
        let value = lines.join(&b", "[..]);
        if value.contains(&b'"') {
            return;
        }
        if !value.trim_ascii().is_empty() {
            all.extend(simple(&value).expect("accepted, so each is a byte sequence"));
        }
    }
    let of_name = |name: &[u8]| match name {
        b"sha-256" => computed.get(Algorithm::Sha256),
        b"sha-512" => computed.get(Algorithm::Sha512),
        _ => None,
    };
    let mut known = all.iter().filter_map(|(name, digest)| Some((of_name(name)?, digest)));
    assert_eq!(refusal.is_none(), known.all(|(computed, digest)| computed == digest), "{headers:?}");
}

/// The digest of these bytes passes, and no longer with a bit flipped.
fn check_own(data: &[u8]) {
    let computed = digests(data);
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let own = computed.get(algorithm).expect("computed");
        let value = |digest: &[u8]| HeaderValue::from_str(&member(algorithm, digest)).expect("a value");
        for name in HEADERS {
            let headers = |digest: &[u8]| [(HeaderName::from_static(name), value(digest))].into_iter().collect();
            let expected = Expected::of(&headers(own)).expect("well-formed");
            assert!(expected.algorithms().eq([algorithm]) && expected.check(&computed).is_ok());
            let mut other = own.to_vec();
            let at = data.first().map_or(0, |byte| usize::from(*byte));
            other[at / 8 % own.len()] ^= 1 << (at % 8);
            assert!(Expected::of(&headers(&other)).expect("well-formed").check(&computed).is_err());
        }
    }
}

/// Lines up to an empty one are of the headers in turn, with `@` for the SHA-256 of the body and `#` for its SHA-512;
/// the body follows.
pub fn check(data: &[u8]) {
    let (lines, body) = match data.windows(2).position(|two| two == b"\n\n") {
        Some(at) => (&data[..at], &data[at + 2..]),
        None => (data, &b""[..]),
    };
    let computed = digests(body);
    let [sha256, sha512] =
        [Algorithm::Sha256, Algorithm::Sha512].map(|of| member(of, computed.get(of).expect("computed")));
    let mut headers = HeaderMap::new();
    for (number, line) in lines.split(|byte| *byte == b'\n').enumerate() {
        let parts = line.iter().flat_map(|byte| match byte {
            b'@' => sha256.as_bytes(),
            b'#' => sha512.as_bytes(),
            byte => std::slice::from_ref(byte),
        });
        if let Ok(value) = HeaderValue::from_bytes(&parts.copied().collect::<Vec<u8>>()) {
            headers.append(HeaderName::from_static(HEADERS[number % 2]), value);
        }
    }
    check_headers(&headers, body);
    check_own(data);
}
