//! Each promise of the book names the tests that check it, and those tests exist.
//!
//! A test is named with its file: `` `tests/integration/kill.rs`: `its_name`, `another_name` ``. A file in the same
//! folder as the one before it needs no folder.

use std::process::Command;

use super::chapters_for_users;
use super::markdown::{Document, in_repository, read};

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

#[test]
fn every_promise_names_its_tests() {
    for (path, promises) in [("docs/delivery.md", 60), ("docs/upgrading.md", 4), ("SECURITY.md", 35)] {
        let document = Document::read(path);
        let (mut count, mut in_table) = (0, false);
        let mut before = 0;
        for (line, cells) in document.rows() {
            let last = cells.last().expect("a cell");
            if line != before + 1 {
                in_table = *last == "tested by";
                before = line;
                continue;
            }
            before = line;
            if in_table && !last.starts_with("---") {
                assert!(!named_in(last).is_empty(), "{path}:{line}: this promise names no test: {last}");
                count += 1;
            }
        }
        assert!(count >= promises, "{path}: {count} promises");
    }
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
