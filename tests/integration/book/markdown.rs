//! The project's Markdown, as far as the tests of the book need it: blocks of code and what their marks say, links,
//! headings, and where a number in the text comes from.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A file of the project that the book shows.
pub struct Document {
    /// From the repository's root.
    pub path: String,
    pub text: String,
    pub blocks: Vec<Block>,
    /// Each link and each picture: its line and its target.
    pub links: Vec<(usize, String)>,
    /// The names by which links find its headings.
    pub anchors: BTreeSet<String>,
}

/// A block of code.
pub struct Block {
    pub line: usize,
    pub language: String,
    pub marks: Vec<Mark>,
    pub text: String,
}

/// What a test does with a block, as the words behind its language say: ```` ```sh,run ````.
#[derive(Debug, PartialEq)]
pub enum Mark {
    /// `run`: the commands end with success, in the folder and after the blocks of the document before it.
    Run,
    /// `serve=PORT`: the command keeps running and accepts connections on this port. It ends with the document, or
    /// before the next command with the same port.
    Serve(u16),
    /// `output`: what the commands of the block before have printed. `…` stands for anything.
    Output,
    /// `file=NAME`: is written to this file, which a later block uses.
    File(String),
    /// `same=PATH`: these lines are in this file of the repository, one after the other.
    Same(String),
    /// `by=PATH`: this file of the repository, which a test runs, has each of these commands.
    By(String),
    /// `figure`: a drawing or a formula, and nothing to type.
    Figure,
}

/// Where a number in the text comes from: `<!-- from PATH: TEXT -->`.
pub struct Source {
    /// The first line of the paragraph.
    pub line: usize,
    /// A file of the repository, which contains the text.
    pub path: String,
    pub text: String,
    /// The paragraph or the row of a table around it.
    pub paragraph: String,
}

/// A path in the repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The content of a file of the repository.
#[track_caller]
pub fn read(path: &str) -> String {
    fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

impl Document {
    #[track_caller]
    pub fn read(path: &str) -> Self {
        let text = read(path);
        let mut document = Self {
            path: path.to_owned(),
            blocks: Vec::new(),
            links: Vec::new(),
            anchors: BTreeSet::new(),
            text: String::new(),
        };
        let line = |offset: usize| text[..offset].matches('\n').count() + 1;
        let (mut block, mut heading) = (None, None);
        for (event, range) in Parser::new_ext(&text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info = match &kind {
                        CodeBlockKind::Fenced(info) => info,
                        CodeBlockKind::Indented => panic!("{path}:{}: a block without ```", line(range.start)),
                    };
                    block = Some(Block::new(path, line(range.start), info));
                }
                Event::End(TagEnd::CodeBlock) => document.blocks.extend(block.take()),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push((line(range.start), dest_url.into_string()));
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let title = heading.take().unwrap_or_default();
                    document.add_anchor(&title);
                }
                Event::Text(part) | Event::Code(part) => {
                    if let Some(block) = &mut block {
                        block.text += &part;
                    } else if let Some(heading) = &mut heading {
                        heading.push_str(&part);
                    }
                }
                _ => {}
            }
        }
        document.text = text;
        document
    }

    /// As GitHub and mdBook make them.
    fn add_anchor(&mut self, title: &str) {
        let word = |char: char| char.is_alphanumeric() || char == '-' || char == '_';
        let title = title.trim().to_lowercase();
        let anchor: String =
            title.chars().filter_map(|char| if char == ' ' { Some('-') } else { word(char).then_some(char) }).collect();
        let another = (0..).map(|count| if count == 0 { anchor.clone() } else { format!("{anchor}-{count}") });
        let unused = another.into_iter().find(|anchor| !self.anchors.contains(anchor));
        self.anchors.extend(unused);
    }

    /// Its paragraphs and the rows of its tables, each with its first line, as one line of text. Blocks of code are
    /// among them.
    pub fn paragraphs(&self) -> Vec<(usize, String)> {
        let mut paragraphs: Vec<(usize, String)> = Vec::new();
        let mut goes_on = false;
        for (index, line) in self.text.lines().enumerate() {
            let is_row = line.starts_with('|');
            match paragraphs.last_mut().filter(|_| goes_on && !is_row) {
                Some((_, paragraph)) => {
                    paragraph.push(' ');
                    paragraph.push_str(line.trim());
                }
                None => paragraphs.push((index + 1, line.trim().to_owned())),
            }
            goes_on = !is_row && !line.trim().is_empty();
        }
        paragraphs
    }

    /// The sources of numbers that it names.
    pub fn sources(&self) -> Vec<Source> {
        // Markdown ends a paragraph there.
        let at_the_start = self.text.lines().position(|line| line.trim().starts_with("<!-- from"));
        assert_eq!(at_the_start, None, "{}: a line must not begin with a comment", self.path);
        let mut sources = Vec::new();
        for (line, paragraph) in self.paragraphs() {
            for comment in paragraph.split("<!-- from ").skip(1) {
                let whole = comment.split_once(" -->").and_then(|(comment, _)| comment.split_once(": "));
                let (path, text) =
                    whole.unwrap_or_else(|| panic!("{}:{line}: expected <!-- from PATH: TEXT -->", self.path));
                let [path, text] = [path, text].map(str::to_owned);
                sources.push(Source { line, path, text, paragraph: paragraph.clone() });
            }
        }
        sources
    }

    /// The rows of its tables, cell by cell, with their lines.
    pub fn rows(&self) -> impl Iterator<Item = (usize, Vec<&str>)> {
        let rows = self.text.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
        rows.map(|(index, line)| {
            let cells = line.trim().trim_matches('|').split(" | ").map(str::trim).collect();
            (index + 1, cells)
        })
    }
}

impl Block {
    #[track_caller]
    fn new(path: &str, line: usize, info: &str) -> Self {
        let mut words = info.split(',').map(str::trim);
        let language = words.next().unwrap_or_default().to_owned();
        let marks =
            words.map(|word| Mark::parse(word).unwrap_or_else(|| panic!("{path}:{line}: unknown mark {word:?}")));
        Self { line, language, marks: marks.collect(), text: String::new() }
    }
}

impl Mark {
    fn parse(word: &str) -> Option<Self> {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match (name, value) {
            ("run", "") => Some(Self::Run),
            ("output", "") => Some(Self::Output),
            ("figure", "") => Some(Self::Figure),
            ("serve", port) => port.parse().ok().map(Self::Serve),
            (_, "") => None,
            ("file", name) => Some(Self::File(name.to_owned())),
            ("same", path) => Some(Self::Same(path.to_owned())),
            ("by", path) => Some(Self::By(path.to_owned())),
            _ => None,
        }
    }
}

/// The code in a text: what stands between backquotes.
pub fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The path from the repository's root that a relative link in this document leads to.
pub fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
