//! The book (the chapters of `docs/SUMMARY.md`, the README among them) cannot lie: what it shows is run, compared with
//! what the program prints, or found in the files that it comes from.

mod links;
mod markdown;
mod numbers;
mod operations;
mod promises;
mod routes;
mod session;
mod worker;

use std::collections::BTreeSet;

use markdown::{Document, Mark, in_repository, read, resolve};
use session::Beside;

/// Chapters whose blocks are not checked here: those for who changes the gateway, whose commands build and test it, and
/// that of the Python client, whose own tests run its examples (`clients/python/tests/test_package.py`).
const CHECKED_ELSEWHERE: [&str; 5] =
    ["ARCHITECTURE.md", "BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md", "clients/python/README.md"];

/// Runs each document in a test of its own, in a module that says what it needs.
macro_rules! run_documents {
    ($($need:ident with $beside:ident { $($test:ident: $path:literal,)* })*) => {
        $(mod $need {
            use super::session::{Beside, run};

            $(#[test]
            fn $test() {
                run($path, Beside::$beside);
            })*
        })*

        /// The documents that are run.
        const RUN: &[(&str, Beside)] = &[$($(($path, Beside::$beside),)*)*];
    };
}

run_documents! {
    python with Nothing {
        the_readme_works: "README.md",
        administration_works: "docs/administration.md",
        backup_works: "docs/backup.md",
        the_command_line_works: "docs/command-line.md",
        logging_works: "docs/logging.md",
        quickstart_works: "docs/quickstart.md",
        newer_clients_works: "docs/newer-clients.md",
        security_works: "docs/tls-and-tokens.md",
        the_wire_contract_works: "docs/wire-contract.md",
        embedding_works: "docs/embedding.md",
        sizing_works: "docs/sizing.md",
        status_page_works: "docs/status-page.md",
    }
    rabbitmq with RabbitMq {
        rabbitmq_works: "docs/rabbitmq.md",
        settings_work: "docs/configuration.md",
    }
    prometheus with Nothing {
        metrics_can_be_scraped: "docs/metrics.md",
    }
    blender with Nothing {
        the_examples_render: "examples/README.md",
        the_worker_of_thirty_lines_renders_a_frame: "docs/writing-a-worker.md",
    }
}

/// The chapters of the book, in their order.
fn chapters() -> Vec<Document> {
    let summary = Document::read("docs/SUMMARY.md");
    let paths = summary.links.iter().map(|(_, target)| resolve(&summary.path, target));
    paths.map(|path| Document::read(&path)).collect()
}

/// Those whose blocks and numbers are checked here.
fn chapters_for_users() -> impl Iterator<Item = Document> {
    chapters().into_iter().filter(|chapter| !CHECKED_ELSEWHERE.contains(&chapter.path.as_str()))
}

#[test]
fn every_document_is_a_chapter() {
    let mut known = BTreeSet::new();
    for chapter in chapters() {
        assert!(known.insert(chapter.path.clone()), "{} is twice in docs/SUMMARY.md", chapter.path);
    }
    let documents = links::documents();
    let missing = documents.iter().filter(|path| path.starts_with("docs/") && *path != "docs/SUMMARY.md");
    let missing: Vec<&String> = missing.filter(|path| !known.contains(*path)).collect();
    assert!(missing.is_empty(), "not in docs/SUMMARY.md: {missing:?}");
}

#[test]
fn every_block_says_how_it_is_checked() {
    let mut wrong = Vec::new();
    for chapter in chapters_for_users() {
        let mut files: Vec<(usize, &str)> = Vec::new();
        for (index, block) in chapter.blocks.iter().enumerate() {
            let at = format!("{}:{}", chapter.path, block.line);
            let runs = block.marks.iter().any(|mark| matches!(mark, Mark::Run | Mark::Serve(_)));
            if block.marks.is_empty() {
                wrong.push(format!(
                    "{at}: no mark says how this block is checked; tests/integration/book/markdown.rs has them"
                ));
            }
            if block.marks.contains(&Mark::Figure) && block.language != "text" {
                wrong.push(format!("{at}: only text can be a figure"));
            }
            if runs && !RUN.iter().any(|(path, _)| *path == chapter.path) {
                wrong.push(format!("{at}: no test runs this document; add it to tests/integration/book.rs"));
            }
            let before = index.checked_sub(1).map(|before| &chapter.blocks[before].marks);
            if block.marks.contains(&Mark::Output) && before.is_none_or(|marks| !marks.contains(&Mark::Run)) {
                wrong.push(format!("{at}: the block before an output must be one that runs"));
            }
            files.retain(|(_, name)| !runs || !block.text.contains(name));
            for mark in &block.marks {
                if let Mark::File(name) = mark {
                    files.push((block.line, name));
                }
            }
        }
        wrong
            .extend(files.iter().map(|(line, name)| format!("{}:{line}: no block after it uses {name}", chapter.path)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_taken_from_a_file_is_in_that_file() {
    for chapter in chapters_for_users() {
        for block in &chapter.blocks {
            let at = format!("{}:{}", chapter.path, block.line);
            for mark in &block.marks {
                match mark {
                    Mark::Same(path) => {
                        let file = read(path);
                        let [file, shown] = [&file, &block.text].map(|text| lines(text));
                        let is_in = file.windows(shown.len().max(1)).any(|lines| lines == shown);
                        assert!(is_in, "{at}: these lines are not in {path}:\n{}", block.text);
                    }
                    Mark::By(path) => {
                        let is_test = ["tests/", "actors/tests/", ".ci/"].iter().any(|folder| path.starts_with(folder));
                        assert!(is_test, "{at}: {path} is nothing that the tests run");
                        let file = read(path);
                        for command in lines(&block.text) {
                            let command = command.split("  #").next().unwrap_or_default().trim();
                            assert!(file.contains(command), "{at}: {path} does not have: {command}");
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The lines of a text, without indentation, empty ones and comments of a whole line.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn the_documents_that_are_run_are_chapters() {
    for (path, _) in RUN {
        assert!(in_repository(path).exists() && chapters_for_users().any(|chapter| chapter.path == *path), "{path}");
    }
}
