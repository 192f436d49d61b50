//! Formats values for log lines.

use std::fmt::Write;

use super::bounds::{MAX_LABEL_CHARS, MAX_PREVIEW_BYTES};
use super::doc::{Doc, NodeId, Tag};
use super::walk::{Position, Step, Walk};

/// The start of a str, for logs and lists. Empty for any other type.
pub(super) fn label(doc: &Doc, id: NodeId) -> String {
    doc.chars_lossy(id).map(|chars| chars.take(MAX_LABEL_CHARS).collect()).unwrap_or_default()
}

/// A value in at most [`MAX_PREVIEW_BYTES`] bytes, on one line.
pub(super) fn preview(doc: &Doc, value: NodeId) -> String {
    const CUT: &str = "…";
    let mut text = String::new();
    let mut walk = Walk::from(doc, value);
    // Stops as soon as the text is too long. It is then cut so that the ellipsis fits.
    while text.len() <= MAX_PREVIEW_BYTES
        && let Some(step) = walk.next()
    {
        match step {
            Step::Enter { node, position, .. } => {
                match position {
                    Position::Item { first: false } | Position::Key { first: false } => text.push_str(", "),
                    Position::Value => text.push_str(": "),
                    _ => {}
                }
                enter(doc, node, &mut text);
            }
            Step::Leave(node) => text.push(brackets(doc.node(node).tag).1),
        }
    }
    if text.len() > MAX_PREVIEW_BYTES {
        let end = text.floor_char_boundary(MAX_PREVIEW_BYTES - CUT.len());
        text.truncate(end);
        text.push_str(CUT);
    }
    text
}

fn brackets(tag: Tag) -> (char, char) {
    match tag {
        Tag::List => ('[', ']'),
        Tag::Tuple => ('(', ')'),
        _ => ('{', '}'),
    }
}

fn enter(doc: &Doc, id: NodeId, text: &mut String) {
    let node = doc.node(id);
    // Writing into a String does not fail.
    let _ = match node.tag {
        Tag::None => write!(text, "None"),
        Tag::True => write!(text, "True"),
        Tag::False => write!(text, "False"),
        Tag::SmallInt => write!(text, "{}", doc.small_int(id).unwrap_or_default()),
        Tag::TextInt => {
            text.extend(doc.content(id).iter().take(MAX_PREVIEW_BYTES + 1).copied().map(char::from));
            Ok(())
        }
        Tag::BinaryInt if node.range().len() <= 16 => write!(text, "{}", doc.int(id).unwrap_or_default()),
        Tag::BinaryInt => write!(text, "<int of {} bytes>", node.range().len()),
        Tag::Float => write!(text, "{:?}", doc.float(id).unwrap_or(f64::NAN)),
        Tag::Bytes | Tag::EncodedBytes => write!(text, "<{} bytes>", node.len()),
        Tag::ByteArray => write!(text, "<bytearray of {} bytes>", node.range().len()),
        _ if node.is_container() => {
            text.push(brackets(node.tag).0);
            Ok(())
        }
        _ => {
            let chars = doc.chars_lossy(id).into_iter().flatten().take(MAX_PREVIEW_BYTES + 1);
            write!(text, "{:?}", chars.collect::<String>())
        }
    };
}
