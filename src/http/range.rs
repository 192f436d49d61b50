//! `Range`, `If-Range` and `If-Match` (RFC 9110, sections 13.1 and 14), as far as a broken transfer needs them: one range.

use actix_web::http::header::{self, HeaderMap};

/// Which part of an answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selected {
    /// All of it, with 200.
    Whole,
    /// The bytes from `start` up to, without, `end`, with 206.
    Part { start: u64, end: u64 },
    /// Nothing that is there: 416.
    Nothing,
}

/// The part that `headers` ask for of an answer of `len` bytes with this entity tag.
///
/// A header that is malformed, names another unit or several ranges is ignored, as the RFC allows.
pub fn select(headers: &HeaderMap, len: u64, etag: &str) -> Selected {
    let mut ranges = headers.get_all(header::RANGE);
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Selected::Whole };
    if if_range(headers, etag) == Some(false) {
        return Selected::Whole;
    }
    range.to_str().ok().and_then(|range| parse(range, len)).unwrap_or(Selected::Whole)
}

/// Whether `If-Range` names this entity tag: whoever sends it has bytes of this version. None where there is none.
pub fn if_range(headers: &HeaderMap, etag: &str) -> Option<bool> {
    let mut conditions = headers.get_all(header::IF_RANGE).peekable();
    conditions.peek()?;
    // neither a weak tag nor a date is ever equal to a strong tag
    Some(conditions.all(|condition| condition.as_bytes() == etag.as_bytes()))
}

/// Whether `If-Match` is absent, `*`, or names this entity tag.
pub fn if_match(headers: &HeaderMap, etag: &str) -> bool {
    let mut conditions = headers.get_all(header::IF_MATCH).peekable();
    if conditions.peek().is_none() {
        return true;
    }
    // a tag of this service holds no comma
    let mut tags = conditions.flat_map(|tags| tags.as_bytes().split(|&byte| byte == b','));
    tags.any(|tag| [b"*", etag.as_bytes()].contains(&tag.trim_ascii()))
}

fn parse(range: &str, len: u64) -> Option<Selected> {
    let (unit, set) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    if first.is_empty() {
        let suffix = number(last)?;
        return Some(match suffix {
            0 => Selected::Nothing,
            _ => part(len.saturating_sub(suffix), len, len),
        });
    }
    let start = number(first)?;
    let end = if last.is_empty() { len } else { number(last)?.checked_add(1)? };
    (start < end || last.is_empty()).then(|| part(start, end.min(len), len))
}

fn part(start: u64, end: u64, len: u64) -> Selected {
    if start < len { Selected::Part { start, end } } else { Selected::Nothing }
}

/// Digits alone: `u64::from_str` would take a sign too.
fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(range: &str) -> Selected {
        parse(range, 100).unwrap_or(Selected::Whole)
    }

    #[test]
    fn one_range_selects_the_bytes_that_it_names() {
        assert_eq!(selected("bytes=0-"), Selected::Part { start: 0, end: 100 });
        assert_eq!(selected("bytes=99-"), Selected::Part { start: 99, end: 100 });
        assert_eq!(selected("Bytes=10-19"), Selected::Part { start: 10, end: 20 });
        assert_eq!(selected("bytes=10-1000"), Selected::Part { start: 10, end: 100 });
        assert_eq!(selected("bytes=-1"), Selected::Part { start: 99, end: 100 });
        assert_eq!(selected("bytes=-1000"), Selected::Part { start: 0, end: 100 });
    }

    fn headers(name: header::HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), header::HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn if_range_names_a_version_by_its_strong_tag_alone() {
        let named = |values: &[&'static str]| if_range(&headers(header::IF_RANGE, values), "\"1-a\"");
        assert_eq!(named(&[]), None);
        assert_eq!(named(&["\"1-a\""]), Some(true));
        for other in ["W/\"1-a\"", "\"1-b\"", "1-a", "*", "\"1-b\", \"1-a\"", "Wed, 21 Oct 2015 07:28:00 GMT", ""] {
            assert_eq!(named(&[other]), Some(false), "{other}");
        }
        assert_eq!(named(&["\"1-a\"", "\"1-b\""]), Some(false));
    }

    #[test]
    fn if_match_names_a_version_by_its_strong_tag_in_a_list_or_by_a_star() {
        let matched = |values: &[&'static str]| if_match(&headers(header::IF_MATCH, values), "\"1-a\"");
        for list in [&[][..], &["*"], &["\"1-a\""], &["\"1-b\" ,\"1-a\""], &["\"1-b\"", "\"1-a\""]] {
            assert!(matched(list), "{list:?}");
        }
        for list in [&[""][..], &["W/\"1-a\""], &["\"1-b\""], &["1-a"], &["\"1-b\",\"1-c\""], &["\"1-a"]] {
            assert!(!matched(list), "{list:?}");
        }
    }

    #[test]
    fn a_range_behind_the_end_selects_nothing() {
        assert_eq!(selected("bytes=100-"), Selected::Nothing);
        assert_eq!(selected("bytes=100-200"), Selected::Nothing);
        assert_eq!(selected("bytes=-0"), Selected::Nothing);
    }

    #[test]
    fn what_is_no_single_range_of_bytes_is_ignored() {
        for range in [
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5",
            "bytes=a-",
            "bytes=+1-",
            "bytes=5-4",
            "bytes=1-2,4-5",
            "lines=1-",
            "bytes=1--2",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(selected(range), Selected::Whole, "{range}");
        }
    }
}
