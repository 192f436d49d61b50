//! Values as JSON that Python's `json.loads` reads back as the same values.

use std::io::Write;

use crate::codec::bounds::{BRIEF_JSON_BYTES, MAX_DEPTH, MAX_JSON_BASE_BYTES, MAX_JSON_RATIO, MAX_PEER_INT_DIGITS};
use crate::codec::doc::{Doc, NodeId, Tag};
use crate::codec::pieces::Pieces;
use crate::codec::walk::{Place, Step, Walk};

/// Why no JSON is written.
#[derive(Debug)]
pub(in crate::codec) enum NoJson {
    /// A value has no JSON form, or none that is within bounds: bytes, a set, a float that is no finite number, a key
    /// that is no str, a surrogate that stands alone, an integer too long for the peers' `json`, a container inside
    /// itself, too much sharing.
    NoForm,
    /// It would take longer than an event loop has time.
    TakesLonger,
}

/// Writes a value; a tuple as a list. A repeated key is written as often as it came, and every value under it needs a
/// JSON form.
pub(in crate::codec) fn write(doc: &Doc, value: NodeId, out: &mut Pieces) -> Result<(), NoJson> {
    let length = doc.source.len() as u64;
    let limit = MAX_JSON_BASE_BYTES + MAX_JSON_RATIO * length;
    let brief = if doc.is_brief() { BRIEF_JSON_BYTES } else { limit };
    // What is read, as often as it is: there are long spellings of short values.
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
            Step::Enter { node, place, .. } => {
                read += doc.node(node).len() as u64;
                match place {
                    Place::Item { first: false } | Place::Key { first: false } => out.put(b", "),
                    Place::Value => out.put(b": "),
                    _ => {}
                }
                if matches!(place, Place::Key { .. }) && !doc.node(node).is_str() {
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
            let digits = doc.content(id).strip_prefix(b"-").unwrap_or(doc.content(id)).len();
            if digits > MAX_PEER_INT_DIGITS {
                return Err(NoJson::NoForm);
            }
            out.keep(node.range());
        }
        Tag::BinaryInt => {
            // A byte holds less than 2.41 digits, so three for each digit are enough to rule it out beforehand.
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
            // The shortest digits that give the same float, and always a point or an exponent.
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

/// A string in UTF-8: all but what must be escaped is passed on.
fn plain_string(doc: &Doc, id: NodeId, out: &mut Pieces) {
    let range = doc.node(id).range();
    let mut kept = range.start;
    out.put(b"\"");
    for at in range.clone() {
        let byte = doc.source[at];
        if !matches!(byte, b'"' | b'\\' | 0..0x20) {
            continue;
        }
        out.keep(kept..at);
        kept = at + 1;
        match byte {
            b'"' | b'\\' => out.put(&[b'\\', byte]),
            _ => {
                let mut escape = [0; 6];
                // Six bytes are what it takes.
                let _ = write!(&mut escape[..], "\\u{byte:04x}");
                out.put(&escape);
            }
        }
    }
    out.keep(kept..range.end);
    out.put(b"\"");
}
