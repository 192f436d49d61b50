//! Text from elsewhere, such as a worker's `USER_ID`, made safe for a terminal: it cannot hold control sequences, and
//! cannot look like more than one line or one column.

use std::borrow::Cow;
use std::fmt::Write;

/// A word in a table: as it is if it consists of visible characters, else [`quoted`].
pub fn word(text: &str) -> Cow<'_, str> {
    let is_plain = |char: char| is_visible(char) && char != ' ' && char != '"';
    if !text.is_empty() && text.chars().all(is_plain) { text.into() } else { quoted(text).into() }
}

/// The text in quotes, as TOML and JSON write it. Each character that is not visible is escaped.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if is_visible(char) => quoted.push(char),
            char => push_escaped(&mut quoted, char),
        }
    }
    quoted.push('"');
    quoted
}

/// A text of several words on one line. Each character that is not visible is escaped.
pub fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if is_visible(char) { line.push(char) } else { push_escaped(&mut line, char) }
    }
    line
}

/// Whether a character shows itself and nothing else: no control character, no direction mark, no unusual space, and
/// none of the letters and symbols that look like one: the fillers of Hangul and the empty Braille pattern.
fn is_visible(char: char) -> bool {
    match char {
        '"' | '\'' | '\\' => true,
        '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' => false,
        char => char.escape_debug().len() == 1,
    }
}

fn push_escaped(text: &mut String, char: char) {
    let number = u32::from(char);
    // writing to a string never fails
    let _ = if number <= 0xffff { write!(text, "\\u{number:04x}") } else { write!(text, "\\U{number:08x}") };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_move_the_cursor_or_fake_a_line_is_escaped() {
        for (text, word_, line_) in [
            ("job-1", "job-1", "job-1"),
            ("blends/a b.blend", "\"blends/a b.blend\"", "blends/a b.blend"),
            ("", "\"\"", ""),
            ("\u{1b}[2J", "\"\\u001b[2J\"", "\\u001b[2J"),
            ("a\nb\tc\r", "\"a\\u000ab\\u0009c\\u000d\"", "a\\u000ab\\u0009c\\u000d"),
            // CSI in one character, a direction mark, a no-break space, a tag
            ("\u{9b}31m", "\"\\u009b31m\"", "\\u009b31m"),
            ("a\u{202e}b", "\"a\\u202eb\"", "a\\u202eb"),
            ("a\u{a0}b", "\"a\\u00a0b\"", "a\\u00a0b"),
            ("\u{3164}\u{2800}", "\"\\u3164\\u2800\"", "\\u3164\\u2800"),
            ("\u{e0041}", "\"\\U000e0041\"", "\\U000e0041"),
            ("say \"hi\\\"", "\"say \\\"hi\\\\\\\"\"", "say \"hi\\\""),
            ("größe", "größe", "größe"),
        ] {
            assert_eq!((word(text).as_ref(), line(text).as_str()), (word_, line_), "{text:?}");
        }
    }
}
