//! `Range`, `If-Range`, `If-Match` and `If-None-Match` (RFC 9110, sections 13.1 and 14), as far as a resumed transfer
//! and a cache need them: one range.

use actix_web::http::header::{self, ByteRangeSpec, HeaderMap, HeaderName};

/// Which part of a message the client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selected {
    /// All of it, with 200.
    Whole,
    /// The bytes `start..end`, with 206.
    Part { start: u64, end: u64 },
    /// A part after the end: 416.
    Nothing,
}

/// The part that `headers` select of a message of `len` bytes with this entity tag.
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

/// Whether `If-Range` names this entity tag, which proves that the client has bytes of this version. `None` without the
/// header.
///
/// Tags are compared as bytes, which is the strong comparison that the RFC asks for. actix-web's typed header is not
/// used, because it reads only the first of several header lines.
pub fn if_range(headers: &HeaderMap, etag: &str) -> Option<bool> {
    let mut conditions = headers.get_all(header::IF_RANGE).peekable();
    conditions.peek()?;
    // A weak tag or a date never equals a strong tag.
    Some(conditions.all(|condition| condition.as_bytes() == etag.as_bytes()))
}

/// The entity tag, without its quotes, of the version that the client has a part of and wants another part of: with
/// `Range`, and a strong `If-Range`.
pub fn resumed(headers: &HeaderMap) -> Option<&str> {
    let mut conditions = headers.get_all(header::IF_RANGE);
    let (Some(condition), None) = (conditions.next(), conditions.next()) else { return None };
    let tag = condition.to_str().ok()?.strip_prefix('"')?.strip_suffix('"')?;
    headers.contains_key(header::RANGE).then_some(tag)
}

/// Whether `If-Match` is absent, `*`, or names this entity tag. actix-web's typed header is not used, because it does
/// not distinguish a malformed header, which matches nothing, from an absent one.
pub fn if_match(headers: &HeaderMap, etag: &str) -> bool {
    !headers.contains_key(header::IF_MATCH)
        || tags(headers, header::IF_MATCH).any(|tag| [b"*", etag.as_bytes()].contains(&tag))
}

/// Whether `If-None-Match` is absent, or neither `*` nor a list with this entity tag, weak or strong.
pub fn if_none_match(headers: &HeaderMap, etag: &str) -> bool {
    !tags(headers, header::IF_NONE_MATCH)
        .any(|tag| [b"*", etag.as_bytes()].contains(&tag.strip_prefix(b"W/").unwrap_or(tag)))
}

/// The members of a list of entity tags. The tags of this service contain no comma, and a part of another tag that
/// contains one lacks a quote.
fn tags(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers.get_all(name).flat_map(|tags| tags.as_bytes().split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

/// The part that a `Range` header selects of `len` bytes; `None` if the header is to be ignored.
///
/// [`ByteRangeSpec`] reads one range. actix-web's `Range` is not used for the whole header: it accepts the unit only in
/// lower case, and drops malformed members of a list, so that a list of two could look like a single range.
fn parse(range: &str, len: u64) -> Option<Selected> {
    let (unit, spec) = range.split_once('=')?;
    // The parser of numbers would accept a sign.
    if !unit.trim().eq_ignore_ascii_case("bytes") || spec.contains('+') {
        return None;
    }
    let spec: ByteRangeSpec = spec.trim().parse().ok()?;
    Some(match spec.to_satisfiable_range(len) {
        Some((first, last)) => Selected::Part { start: first, end: last + 1 },
        None => Selected::Nothing,
    })
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
    fn a_transfer_is_resumed_with_a_range_and_one_strong_tag() {
        let with = |range: bool, tags: &[&'static str]| {
            let mut headers = headers(header::IF_RANGE, tags);
            if range {
                headers.insert(header::RANGE, header::HeaderValue::from_static("bytes=5-"));
            }
            resumed(&headers).map(str::to_owned)
        };
        assert_eq!(with(true, &["\"1-a\""]).as_deref(), Some("1-a"));
        assert_eq!(with(false, &["\"1-a\""]), None);
        for other in [&[][..], &["W/\"1-a\""], &["1-a"], &["\""], &["\"1-a\"", "\"1-a\""]] {
            assert_eq!(with(true, other), None, "{other:?}");
        }
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
    fn if_none_match_fails_for_a_version_in_a_list_weak_or_strong_or_for_a_star() {
        let is_other = |values: &[&'static str]| if_none_match(&headers(header::IF_NONE_MATCH, values), "\"1-a\"");
        for list in [&["*"][..], &["\"1-a\""], &["W/\"1-a\""], &["\"1-b\" ,W/\"1-a\""], &["\"1-b\"", "\"1-a\""]] {
            assert!(!is_other(list), "{list:?}");
        }
        for list in [&[][..], &[""], &["\"1-b\""], &["1-a"], &["w/\"1-a\""], &["\"1-b,1-a\""], &["\"x,\"1-a"]] {
            assert!(is_other(list), "{list:?}");
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
