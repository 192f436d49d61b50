//! Builds the texts of errors.

use std::fmt::Display;

use super::DecodeError;

/// How many characters of a name from the input an error shows.
pub(super) const MAX_SHOWN_CHARS: usize = 64;

/// An error with the offset at which it occurred.
pub(super) fn malformed(what: impl Display, at: usize) -> DecodeError {
    DecodeError::Malformed(format!("{what} at byte {}", grouped(at)))
}

/// `4102` as `4,102`.
pub(super) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A name from the input, made safe for an error: short, on one line, and without characters that control a terminal or
/// forge a log line.
pub(super) fn shown(name: impl IntoIterator<Item = char>) -> String {
    let mut name = name.into_iter();
    let mut text: String = name.by_ref().take(MAX_SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if name.next().is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(4_102), "4,102");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn a_name_cannot_forge_a_log_line() {
        let text = shown("os\n2026 ERROR \u{1b}[31m\u{202e}x".chars());
        assert_eq!(text, "os\\n2026 ERROR \\u{1b}[31m\\u{202e}x");
        assert_eq!(shown("x".repeat(1_000).chars()).chars().count(), MAX_SHOWN_CHARS + 1);
    }
}
