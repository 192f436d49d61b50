//! A key and an id of a request are what their rules allow, byte for byte, and two requests have the same message id if
//! and only if user, key and body are the same.

use std::collections::HashMap;

use actix_web::http::header::{HeaderMap, HeaderName};
use user_http_actors::{IdempotencyKey, RequestKey};

use crate::http::request_id::{RequestId, X_REQUEST_ID};
use crate::http::{idempotency, lines_of, shown};

/// The only line of the header.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let all: Vec<&[u8]> = headers.get_all(name).map(|value| value.as_bytes()).collect();
    if let [one] = all[..] { Some(one) } else { None }
}

fn check_key(lines: &[&[u8]]) {
    let name = HeaderName::from_static("idempotency-key");
    let headers = lines_of(name.clone(), lines.iter().copied());
    let trimmed = only(&headers, &name).map(|line| {
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
        let start = line.iter().take_while(|byte| is_space(byte)).count();
        let end = line.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
        &line[start..end]
    });
    let is_key = |key: &&[u8]| (1..=255).contains(&key.len()) && key.iter().all(|byte| (0x20..0x7f).contains(byte));
    let count = headers.get_all(&name).count();
    match idempotency::key(&headers) {
        Ok(key) => assert_eq!(key, if count == 0 { None } else { trimmed.filter(is_key) }),
        Err(failure) => {
            let (status, text) = shown(failure);
            assert!(count > 1 || trimmed.is_some_and(|key| !is_key(&key)), "{text}");
            assert!(status == 400 && text.contains("Idempotency-Key"), "{status} {text}");
        }
    }
}

fn check_id(lines: &[&[u8]]) {
    let headers = lines_of(X_REQUEST_ID, lines.iter().copied());
    let id = RequestId::of(&headers);
    let given = only(&headers, &X_REQUEST_ID);
    match given.filter(|id| (1..=128).contains(&id.len()) && id.iter().all(|byte| (0x21..0x7f).contains(byte))) {
        Some(given) => assert_eq!(id.as_bytes(), given),
        None => {
            let text = str::from_utf8(id.as_bytes()).expect("text");
            let made = uuid::Uuid::parse_str(text).expect("a UUID");
            assert!(made.get_version_num() == 4 && made.to_string() == text, "{text}");
        }
    }
}

/// Cuts the bytes into user, key and body at each pair of places among the first ones.
fn check_message_ids(data: &[u8]) {
    /// More places make no other cases, only more of them.
    const PLACES: usize = 6;
    let mut seen = HashMap::new();
    let end = data.len().min(PLACES);
    for (first, second) in (0..=end).flat_map(|first| (first..=end).map(move |second| (first, second))) {
        let mut body_sha256 = [0; 32];
        body_sha256.iter_mut().zip(&data[second..]).for_each(|(to, from)| *to = *from);
        let (user, key) = (&data[..first], &data[first..second]);
        let id = IdempotencyKey::new(user, RequestKey { key, body_sha256 }).message_id();
        let earlier = seen.insert(id, (user, key, body_sha256));
        assert!(earlier.is_none_or(|earlier| earlier == (user, key, body_sha256)), "{earlier:?}");
        assert_eq!(id.get_version_num(), 8);
    }
}

/// Each line is one of the headers.
pub fn check(data: &[u8]) {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    check_key(&lines);
    check_id(&lines);
    check_message_ids(data);
}
