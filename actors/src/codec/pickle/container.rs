//! Makes and fills containers, and checks that dict keys and set items are hashable.

use super::reduce::check_plain;
use crate::codec::DecodeError;
use crate::codec::bounds::{MAX_DEPTH, MAX_KEY_VALUES};
use crate::codec::doc::{Doc, NodeId, Tag};
use crate::codec::error::{grouped, malformed};

/// Makes a container with these items. For a dict, keys and values alternate. `at` is the offset of the opcode.
pub(super) fn build(doc: &mut Doc, tag: Tag, values: &[NodeId], at: usize) -> Result<NodeId, DecodeError> {
    let id = doc.add(tag, at, 0..0)?;
    fill(doc, id, values, at)?;
    if matches!(tag, Tag::Tuple | Tag::FrozenSet) {
        sum_up_hash(doc, id, at)?;
    }
    Ok(id)
}

/// Adds items to a container, which must have the type `tag`.
pub(super) fn add(doc: &mut Doc, tag: Tag, container: NodeId, values: &[NodeId], at: usize) -> Result<(), DecodeError> {
    let found = doc.node(container).tag;
    if found != tag {
        let (found, wanted) = (found.type_name(), tag.type_name());
        return Err(malformed(format!("opcode adds items of {wanted} to {found}"), at));
    }
    fill(doc, container, values, at)
}

fn fill(doc: &mut Doc, container: NodeId, values: &[NodeId], at: usize) -> Result<(), DecodeError> {
    let tag = doc.node(container).tag;
    if tag == Tag::Dict && !values.len().is_multiple_of(2) {
        return Err(malformed("dict key without a value", at));
    }
    for (index, child) in values.iter().copied().enumerate() {
        check_plain(doc, child)?;
        if matches!(tag, Tag::Set | Tag::FrozenSet) || tag == Tag::Dict && index.is_multiple_of(2) {
            check_key(doc, child, at)?;
        }
        doc.append(container, child, at)?;
    }
    Ok(())
}

/// Refuses a dict key or set item that is unhashable or has too many values.
pub(super) fn check_key(doc: &Doc, id: NodeId, at: usize) -> Result<(), DecodeError> {
    let node = doc.node(id);
    if node.hash_size == 0 {
        let found = node.tag.type_name();
        return Err(malformed(format!("unhashable dict key or set item ({found})"), at));
    }
    if usize::from(node.hash_size) > MAX_KEY_VALUES {
        let bound = grouped(MAX_KEY_VALUES);
        return Err(malformed(format!("dict key or set item with more than {bound} values"), at));
    }
    Ok(())
}

/// Sets what it takes to hash a tuple or a frozenset. That follows from what its items take.
pub(super) fn sum_up_hash(doc: &mut Doc, id: NodeId, at: usize) -> Result<(), DecodeError> {
    let (mut depth, mut size, mut hashable) = (0, 1_u16, true);
    for item in doc.items(id) {
        let item = doc.node(item);
        depth = depth.max(item.hash_depth);
        size = size.saturating_add(item.hash_size);
        hashable &= item.hash_size > 0;
    }
    let Some(depth) = depth.checked_add(1) else {
        return Err(malformed(format!("nesting deeper than {MAX_DEPTH}"), at));
    };
    doc.set_hash(id, depth, if hashable { size } else { 0 });
    Ok(())
}
