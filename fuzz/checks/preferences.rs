//! A preference is found in `Prefer` exactly where the grammar of RFC 7240 has it.

use actix_web::http::header::HeaderName;

use crate::http::{lines_of, prefer};

const PREFERENCE: &str = "blend-reference";

/// Reads a text from its start to its end.
struct Text<'a>(&'a [u8]);

impl Text<'_> {
    fn next_is(&mut self, byte: u8) -> bool {
        let is_next = self.0.first() == Some(&byte);
        self.0 = &self.0[usize::from(is_next)..];
        is_next
    }

    fn skip_space(&mut self) {
        while self.next_is(b' ') || self.next_is(b'\t') {}
    }

    fn token(&mut self) -> Option<Vec<u8>> {
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let len = self.0.iter().take_while(|byte| is_part(byte)).count();
        let (token, rest) = self.0.split_at(len);
        self.0 = rest;
        (len > 0).then(|| token.to_ascii_lowercase())
    }

    /// The length of a quoted string's content, once its first quote has been read.
    fn quoted(&mut self) -> Option<usize> {
        let mut len = 0;
        while !self.next_is(b'"') {
            self.next_is(b'\\');
            self.0 = self.0.get(1..)?;
            len += 1;
        }
        Some(len)
    }

    /// A name, and whether it has a value that is not empty.
    fn item(&mut self) -> Option<(Vec<u8>, bool)> {
        let name = self.token()?;
        self.skip_space();
        if !self.next_is(b'=') {
            return Some((name, false));
        }
        self.skip_space();
        let has_value = if self.next_is(b'"') { self.quoted()? > 0 } else { self.token().is_some() };
        self.skip_space();
        Some((name, has_value))
    }

    /// A whole preference.
    fn preference(mut self) -> Option<(Vec<u8>, bool)> {
        self.skip_space();
        let first = self.item()?;
        while self.next_is(b';') {
            self.skip_space();
            if !self.0.is_empty() && self.0[0] != b';' {
                self.item()?;
            }
        }
        self.0.is_empty().then_some(first)
    }
}

/// Where the members of a list end: at commas that stand in no quoted string.
fn members(line: &[u8]) -> Vec<&[u8]> {
    let (mut members, mut start, mut at) = (Vec::new(), 0, 0);
    while at < line.len() {
        match line[at] {
            b',' => {
                members.push(&line[start..at]);
                start = at + 1;
            }
            b'"' => {
                at += 1;
                while at < line.len() && line[at] != b'"' {
                    at += if line[at] == b'\\' { 2 } else { 1 };
                }
            }
            _ => {}
        }
        at += 1;
    }
    members.push(&line[start..]);
    members
}

fn is_found(lines: &[&[u8]]) -> bool {
    prefer::has(&lines_of(HeaderName::from_static("prefer"), lines.iter().copied()), PREFERENCE)
}

/// Each line is one of the header.
pub fn check(data: &[u8]) {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let found = is_found(&lines);
    let headers = lines_of(HeaderName::from_static("prefer"), lines.iter().copied());
    let read = headers.get_all("prefer").flat_map(|line| members(line.as_bytes()));
    let mut named =
        read.filter_map(|member| Text(member).preference()).filter(|(name, _)| name == PREFERENCE.as_bytes());
    assert_eq!(found, named.next().is_some_and(|(_, has_value)| !has_value), "{}", data.escape_ascii());

    let upper: Vec<Vec<u8>> = lines.iter().map(|line| line.to_ascii_uppercase()).collect();
    assert_eq!(is_found(&upper.iter().map(Vec::as_slice).collect::<Vec<_>>()), found, "the case decides");
    let others = [&[b"respond-async, wait=10".as_slice()][..], &lines].concat();
    assert_eq!(is_found(&others), found, "another preference decides");
}
