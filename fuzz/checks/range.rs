//! A range lies within the answer, whatever the headers say.

use actix_web::http::header::{self, HeaderMap, HeaderValue};

#[path = "../../src/http/range.rs"]
mod answer;

/// Takes the answer's length from the first line, `If-Range` from the second if that is not empty, and a `Range` from
/// each that follows.
pub fn check(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let len = lines.next().and_then(|line| str::from_utf8(line).ok()?.parse().ok()).unwrap_or(1_000);
    let mut headers = HeaderMap::new();
    if let Some(Ok(value)) = lines.next().filter(|line| !line.is_empty()).map(HeaderValue::from_bytes) {
        headers.insert(header::IF_RANGE, value);
    }
    for range in lines {
        if let Ok(value) = HeaderValue::from_bytes(&[b"bytes=", range].concat()) {
            headers.append(header::RANGE, value);
        }
    }
    if let answer::Selected::Part { start, end } = answer::select(&headers, len, "\"etag\"") {
        assert!(start < end && end <= len, "{start} to {end} of {len}");
    }
}
