//! A range lies within the answer and is the one that its text says; conditions on entity tags are met as a reading of
//! the whole list has it.

use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::http::range::{self as answer, Selected};

const TAG: &[u8] = b"\"etag\"";

/// The range that a text means, with numbers of any length; `None` if it is not one range.
fn meant(text: &str, len: u64) -> Option<Selected> {
    let spec = text.split_once('=').filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"))?.1.trim();
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let number = |digits: &str| digits.parse::<u64>().ok().filter(|_| is_number(digits));
    let end = |last: u64| last.saturating_add(1).min(len);
    let (start, end) = match (number(first), number(last)) {
        (None, Some(suffix)) if first.is_empty() => (len - suffix.min(len), len),
        (Some(first), None) if last.is_empty() => (first, len),
        (Some(first), Some(last)) if first <= last => (first, end(last)),
        _ => return None,
    };
    Some(if start < end { Selected::Part { start, end } } else { Selected::Nothing })
}

/// The tags of a list, each with whether it is weak; `None` if the list is malformed.
fn tags(mut list: &[u8]) -> Option<Vec<(bool, &[u8])>> {
    let mut tags = Vec::new();
    loop {
        list = list.trim_ascii_start();
        let tag = list.strip_prefix(b"W/").unwrap_or(list);
        let is_weak = tag.len() < list.len();
        let inside = tag.strip_prefix(b"\"")?;
        let end = 2 + inside.iter().position(|byte| *byte == b'"')?;
        tags.push((is_weak, &tag[..end]));
        list = tag[end..].trim_ascii_start();
        match list.split_first() {
            None => return Some(tags),
            Some((b',', rest)) => list = rest,
            Some(_) => return None,
        }
    }
}

fn check_tags(list: &[u8]) {
    let headers = |name: HeaderName| -> Option<HeaderMap> {
        Some([(name, HeaderValue::from_bytes(list).ok()?)].into_iter().collect())
    };
    let (Some(r#match), Some(none)) = (headers(header::IF_MATCH), headers(header::IF_NONE_MATCH)) else { return };
    let Some(tags) = tags(list) else { return };
    let names = |weak: bool| tags.iter().any(|(is_weak, tag)| *tag == TAG && (weak || !is_weak));
    assert_eq!(answer::if_match(&r#match, "\"etag\""), names(false), "{}", list.escape_ascii());
    assert_eq!(answer::if_none_match(&none, "\"etag\""), !names(true), "{}", list.escape_ascii());
}

/// Takes the answer's length from the first line, `If-Range` from the second if that is not empty, and a `Range` from
/// each that follows. Each of these is a list of entity tags, too.
pub fn check(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let len = lines.next().and_then(|line| str::from_utf8(line).ok()?.parse().ok()).unwrap_or(1_000);
    let mut headers = HeaderMap::new();
    if let Some(Ok(value)) = lines.next().filter(|line| !line.is_empty()).map(HeaderValue::from_bytes) {
        headers.insert(header::IF_RANGE, value);
    }
    for range in lines {
        check_tags(range);
        if let Ok(value) = HeaderValue::from_bytes(&[b"bytes=", range].concat()) {
            headers.append(header::RANGE, value);
        }
    }
    let selected = answer::select(&headers, len, "\"etag\"");
    if let Selected::Part { start, end } = selected {
        assert!(start < end && end <= len, "{start} to {end} of {len}");
    }
    let ranges: Vec<_> = headers.get_all(header::RANGE).collect();
    let is_current = headers.get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == TAG);
    if let ([range], true) = (&ranges[..], is_current)
        && let Some(expected) = range.to_str().ok().and_then(|range| meant(range, len))
        && !range.as_bytes().contains(&b' ')
        && !range.as_bytes().contains(&b'\t')
    {
        assert_eq!(selected, expected, "{range:?} of {len}");
    } else if ranges.len() != 1 || !is_current {
        assert_eq!(selected, Selected::Whole);
    }
}
