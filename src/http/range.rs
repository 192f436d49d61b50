//! `Range` and `If-Range` (RFC 9110, sections 13.1.5 and 14), as far as a broken transfer needs them: one range.

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
    if headers.get(header::IF_RANGE).is_some_and(|condition| condition.as_bytes() != etag.as_bytes()) {
        return Selected::Whole;
    }
    range.to_str().ok().and_then(|range| parse(range, len)).unwrap_or(Selected::Whole)
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
