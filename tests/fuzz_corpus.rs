//! The fuzz targets, on the inputs kept in `fuzz/corpus`.

use std::fs;

#[path = "../fuzz/checks/configuration.rs"]
mod configuration;
#[path = "../fuzz/checks/digests.rs"]
mod digests;
#[path = "../fuzz/checks/fields.rs"]
mod fields;
#[path = "../fuzz/checks/frames.rs"]
mod frames;
#[path = "../fuzz/checks/heads.rs"]
mod heads;
#[path = "../fuzz/checks/http.rs"]
mod http;
#[path = "../fuzz/checks/json.rs"]
mod json;
#[path = "../fuzz/checks/origins.rs"]
mod origins;
#[path = "../fuzz/checks/pickle.rs"]
mod pickle;
#[path = "../fuzz/checks/preferences.rs"]
mod preferences;
#[path = "../fuzz/checks/range.rs"]
mod range;
#[path = "../fuzz/checks/recovery.rs"]
mod recovery;
#[path = "../fuzz/checks/tokens.rs"]
mod tokens;
#[path = "../fuzz/checks/urls.rs"]
mod urls;
#[path = "../fuzz/checks/windows.rs"]
mod windows;

/// Fewer inputs than this are not what is kept.
const FEW: usize = 100;

fn replay(target: &str, check: fn(&[u8])) {
    let path = format!("{}/fuzz/corpus/{target}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    for line in text.lines() {
        println!("{line}");
        check(&unescaped(line));
    }
    assert!(text.lines().count() > FEW, "{path} has few inputs");
}

/// What stands for these bytes in a bytes literal.
fn unescaped(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'\\' => match rest.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'\\') => b'\\',
                Some(b'x') => rest.by_ref().take(2).fold(0, |byte, digit| byte << 4 | hex(digit, line)),
                _ => panic!("wrong escape: {line}"),
            },
            byte => byte,
        };
        bytes.push(byte);
    }
    bytes
}

fn hex(digit: u8, line: &str) -> u8 {
    char::from(digit).to_digit(16).unwrap_or_else(|| panic!("wrong escape: {line}")) as u8
}

#[test]
fn inputs_are_read_as_they_are_written() {
    assert_eq!(unescaped(r"a'b\x00\xff\\x41\n\r\t é"), b"a'b\x00\xff\\x41\n\r\t \xc3\xa9");
}

#[test]
fn pickles_are_read_again_as_they_are_passed_on() {
    replay("pickle", pickle::check);
}

#[test]
fn json_is_written_the_same_twice() {
    replay("json", json::check);
}

#[test]
fn bodies_in_files_are_read_as_bodies_in_memory_are() {
    replay("pickle", windows::check);
    replay("json", windows::check);
}

#[test]
fn ranges_lie_within_the_answer() {
    replay("range", range::check);
}

#[test]
fn configurations_are_read_or_refused_with_words() {
    replay("configuration", configuration::check);
}

#[test]
fn frames_are_the_same_however_they_arrive_and_headers_are_readable() {
    replay("frames", frames::check);
}

#[test]
fn preferences_are_found_where_the_grammar_has_them() {
    replay("preferences", preferences::check);
}

#[test]
fn keys_and_ids_of_requests_are_what_their_rules_allow() {
    replay("fields", fields::check);
}

#[test]
fn bodies_pass_if_their_headers_name_no_other_digest() {
    replay("digests", digests::check);
}

#[test]
fn requests_are_read_the_same_however_they_arrive() {
    replay("heads", heads::check);
}

#[test]
fn token_files_make_the_tokens_of_their_lines_valid_or_are_refused_without_a_word_of_them() {
    replay("tokens", tokens::check);
}

#[test]
fn urls_are_shown_without_their_password() {
    replay("urls", urls::check);
}

#[test]
fn segments_are_opened_with_what_is_whole_in_them_or_refused() {
    replay("recovery", recovery::check);
}

#[test]
fn requests_pass_as_those_of_own_pages_only_if_a_browser_agrees() {
    replay("origins", origins::check);
}
