//! Writes values as JSON that Python's `json.loads` reads back as the same values.

use std::io::Write;

use crate::codec::bounds::{BRIEF_JSON_BYTES, MAX_DEPTH, MAX_JSON_BASE_BYTES, MAX_JSON_RATIO, MAX_PEER_INT_DIGITS};
use crate::codec::doc::{Doc, NodeId, Tag};
use crate::codec::pieces::Pieces;
use crate::codec::walk::{Position, Step, Walk};

/// Why a value is not written as JSON.
#[derive(Debug)]
pub(in crate::codec) enum NoJson {
    /// It has no JSON form, or none within the bounds: bytes, a set, NaN or an infinity, a key that is not a str, a
    /// lone surrogate, an integer too long for the peers' `json`, a container inside itself, too much sharing.
    NoForm,
    /// Writing it would block an event loop for too long.
    TakesLonger,
}

/// Writes a value; a tuple becomes a list. A repeated key is written each time, so all of its values need a JSON form.
pub(in crate::codec) fn write(doc: &Doc, value: NodeId, out: &mut Pieces) -> Result<(), NoJson> {
    let length = doc.source.len() as u64;
    let limit = MAX_JSON_BASE_BYTES + MAX_JSON_RATIO * length;
    let brief = if doc.is_brief() { BRIEF_JSON_BYTES } else { limit };
    // Bytes read. The input of a value may be longer than its JSON, and shared values are read several times.
    let mut read = 0;
    let mut walk = Walk::from(doc, value);
    while let Some(step) = walk.next() {
        let amount = out.len().max(read);
        if walk.depth() > MAX_DEPTH || amount > limit {
            return Err(NoJson::NoForm);
        }
        if amount > brief {
            return Err(NoJson::TakesLonger);
        }
        match step {
            Step::Enter { node, position, .. } => {
                read += doc.node(node).len() as u64;
                match position {
                    Position::Item { first: false } | Position::Key { first: false } => out.put(b", "),
                    Position::Value => out.put(b": "),
                    _ => {}
                }
                if matches!(position, Position::Key { .. }) && !doc.node(node).is_str() {
                    return Err(NoJson::NoForm);
                }
                match doc.node(node).tag {
                    Tag::List | Tag::Tuple => out.put(b"["),
                    Tag::Dict => out.put(b"{"),
                    _ => scalar(doc, node, out)?,
                }
            }
            Step::Leave(node) if doc.node(node).tag == Tag::Dict => out.put(b"}"),
            Step::Leave(_) => out.put(b"]"),
        }
    }
    Ok(())
}

fn scalar(doc: &Doc, id: NodeId, out: &mut Pieces) -> Result<(), NoJson> {
    let node = doc.node(id);
    match node.tag {
        Tag::None => out.put(b"null"),
        Tag::True => out.put(b"true"),
        Tag::False => out.put(b"false"),
        Tag::SmallInt => out.put(doc.small_int(id).ok_or(NoJson::NoForm)?.to_string().as_bytes()),
        Tag::TextInt => {
            let content = doc.content(id);
            let digits = content.strip_prefix(b"-").unwrap_or(&content).len();
            if digits > MAX_PEER_INT_DIGITS {
                return Err(NoJson::NoForm);
            }
            out.keep(node.range());
        }
        Tag::BinaryInt => {
            // Checked before the conversion, because that takes time: an int with so many bytes has too many digits,
            // unless it is padded.
            if node.range().len() > MAX_PEER_INT_DIGITS {
                return Err(NoJson::NoForm);
            }
            let text = doc.int(id).ok_or(NoJson::NoForm)?.to_string();
            if text.trim_start_matches('-').len() > MAX_PEER_INT_DIGITS {
                return Err(NoJson::NoForm);
            }
            out.put(text.as_bytes());
        }
        Tag::Float => {
            let float = doc.float(id).filter(|float| float.is_finite()).ok_or(NoJson::NoForm)?;
            // Rust's `Debug` writes the shortest digits that give the same float, and always a point or an exponent.
            out.put(format!("{float:?}").as_bytes());
        }
        Tag::JsonStr => {
            out.put(b"\"");
            out.keep(node.range());
            out.put(b"\"");
        }
        Tag::Str => plain_string(doc, id, out),
        Tag::RawUnicodeStr | Tag::EscapedStr => {
            let text = doc.text(id).ok_or(NoJson::NoForm)?;
            let mut quoted = Vec::with_capacity(text.len() + 2);
            serde_json::to_writer(&mut quoted, &text).map_err(|_| NoJson::NoForm)?;
            out.put(&quoted);
        }
        _ => return Err(NoJson::NoForm),
    }
    Ok(())
}

/// Writes a str that is kept in UTF-8: copies it, and escapes what JSON requires.
fn plain_string(doc: &Doc, id: NodeId, out: &mut Pieces) {
    let range = doc.node(id).range();
    let mut kept = range.start;
    out.put(b"\"");
    let mut rest = doc.source.parts(range.clone());
    while let Some(byte) = rest.skip_to(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        out.keep(kept..rest.at());
        rest.skip(1);
        kept = rest.at();
        match byte {
            b'"' | b'\\' => out.put(&[b'\\', byte]),
            _ => {
                let mut escape = [0; 6];
                // Cannot fail: the escape has six bytes.
                let _ = write!(&mut escape[..], "\\u{byte:04x}");
                out.put(&escape);
            }
        }
    }
    out.keep(kept..range.end);
    out.put(b"\"");
}
