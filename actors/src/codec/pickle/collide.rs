//! Keys that have one hash: a dict or a set compares each with all that came before it, and takes hours over a
//! megabyte of them. CPython puts chance into the hashes of str and bytes alone, so whoever knows how it hashes the
//! rest can choose them.

use std::hash::{DefaultHasher, Hasher};

use super::opcode as op;
use crate::codec::DecodeError;
use crate::codec::bounds::MAX_KEY_COMPARISONS;
use crate::codec::doc::{Doc, EdgeId, NodeId, Tag};
use crate::codec::error::{grouped, malformed};

/// CPython's modulus for the hashes of numbers, with which equal numbers of all types have equal hashes.
const MODULUS: u64 = (1 << 61) - 1;

/// Refuses keys that cost more comparisons than [`MAX_KEY_COMPARISONS`]. `hashed` is how many values all keys hold.
pub(super) fn check(doc: &Doc, hashed: usize) -> Result<(), DecodeError> {
    // Were each value a key of its own, all in one container, and had all one hash.
    if hashed.saturating_mul(hashed) / 2 <= MAX_KEY_COMPARISONS {
        return Ok(());
    }
    let containers = || doc.ids().filter(|id| matches!(doc.node(*id).tag, Tag::Dict | Tag::Set | Tag::FrozenSet));
    let chosen: usize = containers().map(|id| keys(doc, id).filter(|key| can_be_chosen(doc, *key)).count()).sum();
    if chosen.saturating_mul(hashed) / 2 <= MAX_KEY_COMPARISONS {
        return Ok(());
    }
    let hashes = hashes(doc);
    let (mut found, mut cost) = (Vec::new(), 0_usize);
    for id in containers() {
        found.clear();
        let chosen = keys(doc, id).filter(|key| can_be_chosen(doc, *key));
        found.extend(chosen.map(|key| (hashes[key.index()], usize::from(doc.node(key).hash_size))));
        found.sort_unstable();
        for alike in found.chunk_by(|(one, _), (other, _)| one == other) {
            let size = alike.last().map_or(0, |(_, size)| *size);
            cost = cost.saturating_add((alike.len() * (alike.len() - 1) / 2).saturating_mul(size));
        }
        if cost > MAX_KEY_COMPARISONS {
            let bound = grouped(MAX_KEY_COMPARISONS);
            let what = format!("dict keys or set items of equal hashes, which take more than {bound} comparisons,");
            return Err(malformed(what, doc.node(id).at()));
        }
    }
    Ok(())
}

/// A dict's keys or a set's items.
fn keys(doc: &Doc, container: NodeId) -> impl Iterator<Item = NodeId> {
    let step = if doc.node(container).tag == Tag::Dict { 2 } else { 1 };
    let first = doc.first(container);
    let edges = std::iter::successors(Some(first), |edge| Some(doc.next(*edge)));
    edges.take_while(|edge| *edge != EdgeId::END).step_by(step).map(|edge| doc.child(edge))
}

/// Whether there are many values that have one hash, and can be had without trying. Ints of up to 32 bits all differ.
fn can_be_chosen(doc: &Doc, key: NodeId) -> bool {
    match doc.node(key).tag {
        Tag::TextInt | Tag::BinaryInt => doc.node(key).range().len() >= 8,
        Tag::TextFloat | Tag::BinaryFloat | Tag::Tuple | Tag::FrozenSet => true,
        _ => false,
    }
}

/// A number for each value that is the same where CPython's hashes are; 0 for what has none. What is immutable only
/// holds what was made before it.
fn hashes(doc: &Doc) -> Vec<u64> {
    let mut hashes = Vec::with_capacity(doc.node_count());
    for id in doc.ids() {
        let hash = match doc.node(id).tag {
            Tag::None => 1 << 62,
            Tag::True => 1,
            Tag::SmallInt => doc.small_int(id).map_or(0, |value| signed(u64::from(value.unsigned_abs()), value < 0)),
            Tag::TextInt => decimal(doc.content(id)),
            Tag::BinaryInt => binary(doc.content(id)),
            Tag::TextFloat | Tag::BinaryFloat => doc.float(id).map_or(0, float),
            // Made by a call, and its content unknown.
            Tag::Bytes if doc.source[doc.node(id).at()] == op::REDUCE => 0,
            Tag::Bytes => stand_in(doc.content(id)),
            Tag::Str if doc.content(id).is_ascii() => stand_in(doc.content(id)),
            Tag::Tuple => tuple(doc, id, &hashes),
            // Combinations that have one hash are found too easily to tell any apart.
            Tag::FrozenSet => 0,
            _ => text(doc, id),
        };
        hashes.push(hash);
    }
    hashes
}

fn signed(hash: u64, negative: bool) -> u64 {
    match (if negative { hash.wrapping_neg() } else { hash }) as i64 {
        // Stands for an error in CPython.
        -1 => -2_i64 as u64,
        hash => hash as u64,
    }
}

fn decimal(text: &[u8]) -> u64 {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let residue = digits.chunks(16).fold(0_u128, |residue, chunk| {
        let value = chunk.iter().fold(0_u128, |value, digit| value * 10 + u128::from(digit - b'0'));
        (residue * 10_u128.pow(chunk.len() as u32) + value) % u128::from(MODULUS)
    });
    signed(residue as u64, digits.len() < text.len())
}

/// Of two's complement, the lowest byte first.
fn binary(bytes: &[u8]) -> u64 {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    // The magnitude of a negative number is one more than the number with all bits inverted.
    let residue = bytes.rchunks(4).fold(0_u128, |residue, chunk| {
        let digits = chunk
            .iter()
            .rev()
            .fold(0_u128, |digits, byte| digits << 8 | u128::from(if negative { !byte } else { *byte }));
        ((residue << (8 * chunk.len())) + digits) % u128::from(MODULUS)
    });
    signed((residue as u64 + u64::from(negative)) % MODULUS, negative)
}

fn float(value: f64) -> u64 {
    if !value.is_finite() {
        return if value.is_nan() { 0 } else { signed(314_159, value < 0.0) };
    }
    let bits = value.abs().to_bits();
    let (exponent, fraction) = ((bits >> 52) as i64, bits & ((1 << 52) - 1));
    let (mantissa, exponent) = if exponent == 0 { (fraction, -1074) } else { (fraction | 1 << 52, exponent - 1075) };
    // 2^61 is 1.
    let turns = exponent.rem_euclid(61);
    signed(((u128::from(mantissa) << turns) % u128::from(MODULUS)) as u64, value < 0.0)
}

/// As CPython has hashed tuples since 3.8.
fn tuple(doc: &Doc, id: NodeId, hashes: &[u64]) -> u64 {
    const PRIMES: [u64; 3] = [11_400_714_785_074_694_791, 14_029_467_366_897_019_727, 2_870_177_450_012_600_261];
    let (mut hash, mut length) = (PRIMES[2], 0_u64);
    for item in keys(doc, id) {
        // A container that has no hash may come later; the tuple then has none either.
        let lane = hashes.get(item.index()).copied().unwrap_or_default();
        hash = hash.wrapping_add(lane.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0]);
        length += 1;
    }
    hash.wrapping_add(length ^ PRIMES[2] ^ 3_527_539)
}

/// A str has the hash of the bytes that CPython keeps it in, and so that of a bytes object of the same content.
fn text(doc: &Doc, id: NodeId) -> u64 {
    let Some(points) = doc.code_points(id) else { return 0 };
    let width = points.clone().max().map_or(1, |point| match point {
        0..0x100 => 1,
        0x100..0x1_0000 => 2,
        _ => 4,
    });
    let content: Vec<u8> = points.flat_map(|point| point.to_le_bytes().into_iter().take(width)).collect();
    stand_in(&content)
}

/// In place of a hash that nobody can foretell.
fn stand_in(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_hashes_that_cpython_gives_them() {
        assert_eq!(decimal(b"123456789012345678901234567890"), 248_789_772_095_949_448);
        assert_eq!(decimal(b"-123456789012345678901234567890") as i64, -248_789_772_095_949_448);
        assert_eq!(decimal(b"2305843009213693951"), 0);
        assert_eq!(decimal(b"-1") as i64, -2);
        assert_eq!(binary(&[]), 0);
        assert_eq!(binary(&[0xFF; 9]) as i64, -2);
        assert_eq!(binary(&2_i128.pow(64).to_le_bytes()), 8);
        assert_eq!(binary(&i128::MIN.to_le_bytes()) as i64, -32);
        assert_eq!(binary(&(1_i128 - (1 << 61)).to_le_bytes()), 0);
        assert_eq!(float(0.1), 230_584_300_921_369_408);
        assert_eq!(float(5e-324), 16_777_216);
        assert_eq!(float(f64::MAX), 2_234_066_890_152_476_671);
        assert_eq!(float(-2.5) as i64, -1_152_921_504_606_846_978);
        assert_eq!(float(2_f64.powi(61)), 1);
        assert_eq!(float(f64::NEG_INFINITY) as i64, -314_159);
    }

    #[test]
    fn tuples_have_the_hashes_that_cpython_gives_them() {
        let of = |opcodes: &'static [u8]| {
            let pickle = crate::codec::pickle::read(opcodes.into()).expect("a pickle");
            hashes(&pickle.doc)[pickle.doc.root.index()] as i64
        };
        assert_eq!(of(b")."), 5_740_354_900_026_072_187);
        assert_eq!(of(b"K\x01K\x02\x86."), -3_550_055_125_485_641_917);
        assert_eq!(of(b"G\x3f\xf8\0\0\0\0\0\0K\x02K\x03\x86\x86."), 5_043_971_494_856_347_220);
    }
}
