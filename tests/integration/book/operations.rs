//! The chapter on operations has every alert and every metric that it should, and no log line that is never written.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::markdown::{Document, code, in_repository, read};

const CHAPTER: &str = "docs/operations.md";

#[test]
fn every_alert_is_explained() {
    let rules = read("deploy/alerts.yml");
    let alerts: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let document = Document::read(CHAPTER);
    let explained = document.rows().filter_map(|(_, cells)| code(cells[0]).next());
    let explained: BTreeSet<&str> = explained.filter(|name| name.starts_with("Gateway")).collect();
    assert_eq!(explained, alerts);
}

#[test]
fn every_metric_to_watch_is_a_metric() {
    let metrics = Document::read("docs/metrics.md");
    let known: BTreeSet<&str> = metrics.rows().filter_map(|(_, cells)| code(cells[0]).next()).collect();
    let document = Document::read(CHAPTER);
    let mut count = 0;
    for (line, cells) in document.rows().filter(|(_, cells)| cells[0].starts_with("`user_http_server_")) {
        for name in code(cells[0]) {
            let name = name.strip_prefix("user_http_server_").unwrap_or(name);
            let name = name.split('{').next().unwrap_or_default();
            assert!(known.contains(name), "{CHAPTER}:{line}: {name} is not in docs/metrics.md");
            count += 1;
        }
    }
    assert!(count >= 10, "{count} metrics");
}

/// Whether a text has these parts one after the other, within the length of a log line.
fn has_in_order(text: &str, parts: &[&str]) -> bool {
    const LINE: usize = 400;
    let [first, rest @ ..] = parts else { return false };
    text.match_indices(first).any(|(at, _)| {
        let mut line: String = text[at..].chars().take(LINE).skip(first.chars().count()).collect();
        rest.iter().all(|part| {
            let after = line.find(part).map(|at| line[at + part.len()..].to_owned());
            after.inspect(|after| line.clone_from(after)).is_some()
        })
    })
}

/// The source files of the program and of the actors, each on one line, without comments and without the line breaks in
/// string literals.
fn sources() -> Vec<String> {
    fn collect(folder: &Path, sources: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("a folder of the repository") {
            let path = entry.expect("an entry of a folder").path();
            if path.is_dir() {
                collect(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
                let lines = lines.map(|line| line.strip_suffix('\\').unwrap_or(line));
                sources.push(lines.collect::<Vec<_>>().concat());
            }
        }
    }
    let mut sources = Vec::new();
    for folder in ["src", "actors/src"] {
        collect(&in_repository(folder), &mut sources);
    }
    sources
}

#[test]
fn every_log_line_is_one_that_the_gateway_writes() {
    let sources = sources();
    let document = Document::read(CHAPTER);
    let (mut count, mut table) = (0, false);
    for (line, cells) in document.rows() {
        match cells[0] {
            "log line" => table = true,
            "alert" | "metric" => table = false,
            _ => {}
        }
        let Some(text) = code(cells[0]).next().filter(|_| table) else { continue };
        let parts: Vec<&str> = text.split('…').map(str::trim).filter(|part| !part.is_empty()).collect();
        let is_written = sources.iter().any(|source| has_in_order(source, &parts));
        assert!(is_written, "{CHAPTER}:{line}: the gateway never writes {text:?}");
        count += 1;
    }
    assert!(count >= 15, "{count} log lines");
}
