//! Each promise of the book names the tests that check it, and those tests exist.
//!
//! A test is named with its file: `` `tests/integration/kill.rs`: `its_name`, `another_name` ``. A file in the same
//! folder as the one before it needs no folder.

use std::process::Command;

use super::chapters_for_users;
use super::markdown::{in_repository, read};

/// The tests that a paragraph or a row names: file and name.
fn named_in(paragraph: &str) -> Vec<(String, String)> {
    let mut named = Vec::new();
    let (mut folder, mut file) = (String::new(), None);
    // Text and code take turns.
    let parts: Vec<&str> = paragraph.split('`').collect();
    let is_name =
        |code: &str| code.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_');
    for (index, code) in parts.iter().enumerate().skip(1).step_by(2) {
        let before = parts[index - 1].trim();
        if code.ends_with(".rs") {
            if let Some((path, _)) = code.rsplit_once('/').filter(|_| in_repository(code).exists()) {
                folder = path.to_owned();
                file = Some((*code).to_owned());
            } else {
                file = Some(format!("{folder}/{code}"));
            }
        } else if let Some(file) = file.as_ref().filter(|_| is_name(code) && (before == ":" || before == ",")) {
            named.push((file.clone(), (*code).to_owned()));
        } else {
            file = None;
        }
    }
    named
}

/// The names of all tests of this program, with their modules.
fn own_tests() -> String {
    let this = std::env::current_exe().expect("this program");
    let output = Command::new(this).args(["--list", "--format", "terse"]).output().expect("this program");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The tests of the Python client, which are in Python, are named by their files.
#[test]
fn every_promise_names_its_tests() {
    let mut count = 0;
    for chapter in chapters_for_users() {
        let (mut is_promise, mut before) = (false, 0);
        for (line, cells) in chapter.rows() {
            let last = cells.last().expect("a cell");
            if line != before + 1 {
                is_promise = *last == "tested by";
            } else if is_promise && !last.starts_with("---") && !last.contains(".py`") {
                assert!(!named_in(last).is_empty(), "{}:{line}: this promise names no test: {last}", chapter.path);
                count += 1;
            }
            before = line;
        }
    }
    assert!(count > 100, "{count} promises");
}

#[test]
fn every_test_that_a_document_names_exists() {
    let own = own_tests();
    let (mut missing, mut count) = (Vec::new(), 0);
    for chapter in chapters_for_users() {
        for (line, paragraph) in chapter.paragraphs() {
            for (file, name) in named_in(&paragraph) {
                count += 1;
                let is_here = in_repository(&file).exists() && read(&file).contains(&format!("fn {name}("));
                // The others are in programs of their own.
                let is_run = !file.starts_with("tests/integration/") || own.contains(&format!("::{name}: test\n"));
                if !is_here || !is_run {
                    missing.push(format!("{}:{line}: {file}: {name}", chapter.path));
                }
            }
        }
    }
    assert!(missing.is_empty(), "these tests do not exist:\n{}", missing.join("\n"));
    assert!(count > 60, "{count} tests are named");
}
