//! The header `Prefer` (RFC 7240).

use actix_web::http::header::{HeaderMap, HeaderName};

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Whether the client prefers what `token` stands for: a preference without a value. Its parameters do not matter. Of
/// several instances the first one counts. Malformed preferences are ignored.
pub fn has(headers: &HeaderMap, token: &str) -> bool {
    let preferences = headers.get_all(PREFER).flat_map(|line| split(line.as_bytes(), b','));
    let mut named = preferences.filter_map(parse).filter(|(name, _)| name.eq_ignore_ascii_case(token.as_bytes()));
    named.next().is_some_and(|(_, has_value)| !has_value)
}

/// The name of a preference, and whether it has a value. `None` if it is malformed.
fn parse(preference: &[u8]) -> Option<(&[u8], bool)> {
    let mut parts = split(preference, b';').map(<[u8]>::trim_ascii);
    let first = item(parts.next()?)?;
    // the grammar allows an empty parameter
    parts.all(|parameter| parameter.is_empty() || item(parameter).is_some()).then_some(first)
}

/// A name, and whether it has a value; an empty value is none.
fn item(text: &[u8]) -> Option<(&[u8], bool)> {
    let (name, value) = match text.iter().position(|&byte| byte == b'=') {
        None => (text, &b""[..]),
        Some(at) => (text[..at].trim_ascii_end(), text[at + 1..].trim_ascii_start()),
    };
    let has_value = !matches!(value, b"" | b"\"\"");
    let is_word = value.is_empty() || is_token(value) || is_quoted(value);
    (is_token(name) && is_word).then_some((name, has_value))
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Whether this is one quoted string.
fn is_quoted(text: &[u8]) -> bool {
    let Some(content) = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")) else { return false };
    let mut escaped = false;
    let is_closed = content.iter().any(|&byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    !is_closed && !escaped
}

/// The parts between separators that are outside quoted strings.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |&byte| {
        let was_escaped = std::mem::take(&mut escaped);
        match byte {
            b'"' if !was_escaped => quoted = !quoted,
            b'\\' if quoted && !was_escaped => escaped = true,
            _ => {}
        }
        byte == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn prefers(lines: &[&'static str]) -> bool {
        let headers = lines.iter().map(|line| (PREFER, HeaderValue::from_static(line))).collect();
        has(&headers, "blend-reference")
    }

    #[test]
    fn a_preference_is_found_in_lists_lines_and_any_case_and_with_parameters() {
        for lines in [
            &["blend-reference"][..],
            &["Blend-Reference"],
            &["respond-async, blend-reference"],
            &["respond-async,wait=10 ,\tblend-reference ,"],
            &["respond-async", "blend-reference"],
            &["blend-reference; foo=bar;x=\"a, b; c\""],
            &["blend-reference;"],
            &["blend-reference=\"\""],
            &["blend-reference ="],
            &["handling=\"lenient, \\\" \", blend-reference"],
        ] {
            assert!(prefers(lines), "{lines:?}");
        }
    }

    #[test]
    fn malformed_preferences_are_ignored_and_others_count() {
        for lines in [
            &["@@@, blend-reference"][..],
            &["a b, blend-reference"],
            &["=1", "blend-reference"],
            &[", ,blend-reference"],
        ] {
            assert!(prefers(lines), "{lines:?}");
        }
        for lines in [
            &[][..],
            &[""],
            &["blend-references"],
            &["blend reference"],
            &["blend-reference foo"],
            &["\"blend-reference\""],
            &["foo=\"a, blend-reference\""],
            &["foo=\"a, blend-reference"],
            &["foo; blend-reference"],
            &["blend-reference;=x"],
            &["blend-reference; a b"],
            &["blend-reference=other"],
            &["blend-reference=other, blend-reference"],
            &["blend-reference=\"x"],
        ] {
            assert!(!prefers(lines), "{lines:?}");
        }
    }
}
