//! A range lies within the answer, whatever the headers say.

#![no_main]
#![allow(dead_code, reason = "the module's own tests are not built here")]

use actix_web::http::header::{self, HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

#[path = "../../src/http/range.rs"]
mod range;

fuzz_target!(|input: (u64, Vec<&[u8]>, Option<&[u8]>)| {
    let (len, ranges, condition) = input;
    let mut headers = HeaderMap::new();
    for range in ranges {
        if let Ok(value) = HeaderValue::from_bytes(&[b"bytes=", range].concat()) {
            headers.append(header::RANGE, value);
        }
    }
    if let Some(Ok(value)) = condition.map(HeaderValue::from_bytes) {
        headers.insert(header::IF_RANGE, value);
    }
    if let range::Selected::Part { start, end } = range::select(&headers, len, "\"etag\"") {
        assert!(start < end && end <= len, "{start} to {end} of {len}");
    }
});
