//! Refuses hash floods: dict keys and set items that slow down CPython's tables because their hashes are equal or their
//! probe sequences overlap. A megabyte of them can keep `pickle.loads` busy for hours.

use super::hash::{Hashes, weight};
use super::table::{DictTable, Exceeded, SetTable, Work, probe_ns};
use crate::codec::DecodeError;
use crate::codec::bounds::{
    KEY_WORK_BASE_NS, KEY_WORK_BRIEF_NS, KEY_WORK_BYTES_PER_VALUE, KEY_WORK_NS_PER_BYTE, SET_WORK_NS,
};
use crate::codec::doc::{Doc, NodeId, Tag};
use crate::codec::error::malformed;

/// The time that CPython needs to hash one value of a tuple, or
/// [`INT_BYTES_PER_HASHED_VALUE`](crate::codec::bounds::INT_BYTES_PER_HASHED_VALUE) bytes of an int, in nanoseconds, if
/// it is in the processor's caches.
const HASH_NS: u64 = 10;

/// The time for a str or bytes key in addition to what its probes and its length cost, in nanoseconds.
const PLAIN_KEY_NS: u64 = 20;

/// Refuses keys that would keep CPython busy for longer than the message's length allows; see [`KEY_WORK_BASE_NS`].
pub(super) fn check(doc: &Doc) -> Result<(), DecodeError> {
    let values = doc.node_count() + doc.edge_count();
    let bytes = doc.source.len().min(values * KEY_WORK_BYTES_PER_VALUE) as u64;
    let full = KEY_WORK_BASE_NS + KEY_WORK_NS_PER_BYTE * bytes;
    let bound = if doc.is_brief() { full.min(KEY_WORK_BRIEF_NS) } else { full };
    let mut work = Work::up_to(bound);
    fill_all(doc, &mut work).map_err(|(Exceeded, at)| match bound < full {
        true => DecodeError::TakesLonger,
        false => {
            let bound = full / 1_000_000;
            malformed(format!("dict keys or set items that keep `pickle.loads` busy for more than {bound} ms"), at)
        }
    })
}

/// Fills all tables as CPython does. The error has the offset of the container at which the bound was exceeded.
fn fill_all(doc: &Doc, work: &mut Work) -> Result<(), (Exceeded, usize)> {
    let mut needed = vec![false; doc.node_count()];
    let mut filled = Vec::new();
    // How many values are hashed. A key counts each time it is used, because CPython does not cache the hash of a
    // tuple; in `distinct` it counts once.
    let (mut hashed, mut distinct) = (0, 0);
    for id in doc.ids() {
        let at = |exceeded| (exceeded, doc.node(id).at());
        match doc.node(id).tag {
            Tag::Set | Tag::FrozenSet => work.charge(SET_WORK_NS).map_err(at)?,
            Tag::Dict => {}
            _ => continue,
        }
        // CPython randomizes the hashes of str and bytes, so nobody can choose them. A table of only these is never
        // slow.
        if doc.node(id).tag != Tag::FrozenSet && keys(doc, id).all(|key| is_plain(doc, key)) {
            fill_plain(doc, id, work).map_err(at)?;
            continue;
        }
        for key in keys(doc, id) {
            let size = u64::from(doc.node(key).hash_size);
            hashed += size;
            if !std::mem::replace(&mut needed[key.index()], true) {
                distinct += size;
            }
        }
        filled.push(id);
    }
    if filled.is_empty() {
        return Ok(());
    }
    work.spread_over(distinct);
    work.charge((HASH_NS + work.miss_ns()) * hashed).map_err(|exceeded| (exceeded, 0))?;
    // A tuple holds only values that were made before it.
    for id in doc.ids().rev().filter(|id| doc.node(*id).tag == Tag::Tuple) {
        if needed[id.index()] {
            doc.items(id).for_each(|item| needed[item.index()] = true);
        }
    }
    let mut hashes = Hashes::of(doc);
    for id in doc.ids().filter(|id| needed[id.index()] || doc.node(*id).tag == Tag::FrozenSet) {
        hashes.add(doc, id, work).map_err(|exceeded| (exceeded, doc.node(id).at()))?;
    }
    for id in filled {
        fill(doc, id, &hashes, work).map_err(|exceeded| (exceeded, doc.node(id).at()))?;
    }
    Ok(())
}

fn fill(doc: &Doc, id: NodeId, hashes: &Hashes, work: &mut Work) -> Result<(), Exceeded> {
    match doc.node(id).tag {
        Tag::Dict => {
            let mut table = DictTable::default();
            for key in keys(doc, id) {
                table.insert(key, hashes.get(key), work)?;
            }
        }
        Tag::Set => {
            let mut table = SetTable::default();
            for key in keys(doc, id) {
                table.insert(key, hashes.get(key), work)?;
            }
        }
        // A frozenset was filled when its hash was computed.
        _ => {}
    }
    Ok(())
}

/// Charges for a table of keys whose hashes nobody can choose. On average they cost the same.
fn fill_plain(doc: &Doc, id: NodeId, work: &mut Work) -> Result<(), Exceeded> {
    let (mut count, mut weights) = (0_u64, 0_u64);
    for key in keys(doc, id) {
        count += 1;
        weights += u64::from(weight(doc.node(key).len()));
    }
    let slots = (count as usize * 2).next_power_of_two();
    work.charge(count * (PLAIN_KEY_NS + 3 * probe_ns(slots)) + weights * PLAIN_KEY_NS)
}

fn is_plain(doc: &Doc, key: NodeId) -> bool {
    let node = doc.node(key);
    node.is_str() || matches!(node.tag, Tag::Bytes | Tag::EncodedBytes)
}

/// A dict's keys or a set's items.
fn keys(doc: &Doc, container: NodeId) -> impl Iterator<Item = NodeId> {
    doc.items(container).step_by(if doc.node(container).tag == Tag::Dict { 2 } else { 1 })
}
