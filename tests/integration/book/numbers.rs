//! The numbers in the book are those of the source code and of the benchmarks.

use super::chapters_for_users;
use super::markdown::{Document, code, in_repository, read};

/// The numbers in a text, without separators of thousands.
fn numbers(text: &str) -> Vec<String> {
    let is_part = |char: char| char.is_ascii_digit() || char == '.';
    let plain = text.replace(['_', ','], "");
    let words = plain.split(|char| !is_part(char)).map(|word| word.trim_matches('.'));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// A text with one space wherever it has white space.
fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_number_with_a_source_is_the_one_that_its_source_has() {
    let mut count = 0;
    for chapter in chapters_for_users() {
        for source in chapter.sources() {
            let at = format!("{}:{}", chapter.path, source.line);
            assert!(in_repository(&source.path).exists(), "{at}: there is no {}", source.path);
            let file = on_one_line(&read(&source.path));
            assert!(file.contains(&on_one_line(&source.text)), "{at}: {} does not have: {}", source.path, source.text);
            let comments = |text: &str| {
                let parts = text.split("<!--").map(|part| part.split_once("-->").map_or(part, |(_, after)| after));
                parts.collect::<String>()
            };
            let shown = numbers(&comments(&source.paragraph));
            let found = numbers(&source.text);
            assert!(found.iter().any(|number| shown.contains(number)), "{at}: none of {found:?} is among {shown:?}");
            count += 1;
        }
    }
    assert!(count > 20, "{count} numbers have a source");
}

/// The figures of `BENCHMARKS.md`: the name of a row, its unit if it has one, and the gateway's figure.
fn figures() -> Vec<[String; 2]> {
    let benchmarks = Document::read("BENCHMARKS.md");
    let median = |cell: &str| cell.split(" (").next().unwrap_or_default().to_owned();
    let rows = benchmarks.rows().filter_map(|(_, cells)| match cells[..] {
        // with a unit and a peer
        [name, unit, product, _, _, _, ..] => Some([name.to_owned(), format!("{} {unit}", median(product))]),
        // with the unit behind the figure
        [name, product, _, _] => {
            let unit = product.rsplit(") ").next().unwrap_or_default();
            Some([name.to_owned(), format!("{} {unit}", median(product))])
        }
        _ => None,
    });
    rows.collect()
}

#[test]
fn the_figures_of_the_benchmarks_are_those_of_the_last_run() {
    let known = figures();
    let mut count = 0;
    for chapter in chapters_for_users() {
        for (line, cells) in chapter.rows() {
            // a row whose first cell is a link to the benchmarks has the name of a row there, and its figure
            let Some(name) = cells[0].strip_prefix('[').and_then(|cell| cell.split_once("](../BENCHMARKS.md")) else {
                continue;
            };
            let name = name.0;
            let of_row: Vec<&str> = known.iter().filter(|row| row[0] == name).map(|row| row[1].as_str()).collect();
            assert!(!of_row.is_empty(), "{}:{line}: BENCHMARKS.md has no row {name:?}", chapter.path);
            assert!(of_row.contains(&cells[1]), "{}:{line}: {} should be {of_row:?}", chapter.path, cells[1]);
            count += 1;
        }
    }
    assert!(count >= 10, "{count} figures");
}

/// The rows of the settings' table: the flag and its default.
fn defaults() -> Vec<(String, String)> {
    let document = Document::read("docs/configuration.md");
    let rows = document.rows().filter(|(_, cells)| cells[0].starts_with("`--")).map(|(_, cells)| {
        let flag = code(cells[0]).next().expect("a flag").split(' ').next().expect("a flag").to_owned();
        (flag, code(cells[1]).next().unwrap_or_default().to_owned())
    });
    rows.collect()
}

/// `src/config/settings.rs` compares that table with the settings.
#[test]
fn a_default_in_the_text_is_that_of_the_setting() {
    let defaults = defaults();
    let mut count = 0;
    for chapter in chapters_for_users() {
        let text = on_one_line(&chapter.text);
        for (index, _) in text.match_indices(" by default)") {
            let (before, value) = text[..index].rsplit_once('(').expect("a parenthesis");
            let Some(flag) = code(before).last().filter(|flag| flag.starts_with("--") && before.ends_with("` ")) else {
                continue;
            };
            let default = defaults.iter().find(|(name, _)| name == flag).map(|(_, default)| default.as_str());
            assert_eq!(default, Some(value.trim_matches('`')), "{}: {flag} ({value} by default)", chapter.path);
            count += 1;
        }
    }
    assert!(count >= 8, "{count} defaults");
}
