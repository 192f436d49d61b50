//! The hashes that CPython gives to values. It randomizes only those of str and bytes. All others are known, so an
//! attacker can choose keys by their hashes.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher, RandomState};

use num_bigint::{BigInt, Sign};

use super::table::{Exceeded, Key, SetTable, Work};
use crate::codec::doc::{Doc, NodeId, Tag};

/// CPython's modulus for the hashes of numbers. Equal numbers have equal hashes, whatever their types.
const MODULUS: u64 = (1 << 61) - 1;

/// How many bytes CPython compares in the time that it takes to compare two small scalars.
const BYTES_PER_COMPARISON: usize = 512;

/// CPython compares an int of up to this many bits with a float by converting it to a float.
const DOUBLE_BITS: u64 = 48;

/// The length of the largest float as an int, in bits.
const MAX_FLOAT_BITS: u64 = 1_024;

/// How many nanoseconds of filling a frozenset count as one comparison of scalars when two frozensets are compared.
/// CPython then looks up each item of one in the other, which takes no longer than filling it did.
const SCALAR_NS: u64 = 16;

/// The part of a value's identity that is not its content. Two values have the same kind and content exactly if CPython
/// finds one when it looks for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Number { negative: bool, shift: i64 },
    NaN,
    None,
    Str { width: usize },
    Bytes,
    Tuple,
    FrozenSet,
}

/// The keys of hashable values.
pub(super) struct Hashes {
    /// Random, as CPython's is: nobody can choose strs by the hashes that they have here.
    random: RandomState,
    /// For each value the index of its key; 0 if it has none.
    numbers: Vec<u32>,
    keys: Vec<Key>,
}

impl Hashes {
    pub(super) fn of(doc: &Doc) -> Hashes {
        Hashes { random: RandomState::new(), numbers: vec![0; doc.node_count()], keys: vec![Key::default()] }
    }

    pub(super) fn get(&self, id: NodeId) -> Key {
        self.keys[self.numbers[id.index()] as usize]
    }

    /// Computes the key of a value; those of its items must be known. Filling a frozenset is part of that.
    pub(super) fn add(&mut self, doc: &Doc, id: NodeId, work: &mut Work) -> Result<(), Exceeded> {
        let key = match doc.node(id).tag {
            Tag::Tuple => self.tuple(doc, id),
            Tag::FrozenSet => self.frozenset(doc, id, work)?,
            _ => self.scalar(doc, id),
        };
        self.numbers[id.index()] = self.keys.len() as u32;
        self.keys.push(key);
        Ok(())
    }

    fn identity(&self, kind: Kind, content: &[u8]) -> u64 {
        self.random.hash_one((kind, content))
    }

    fn scalar(&self, doc: &Doc, id: NodeId) -> Key {
        let node = doc.node(id);
        match node.tag {
            Tag::True => self.small(1),
            Tag::False => self.small(0),
            Tag::SmallInt => self.small(doc.small_int(id).unwrap_or_default()),
            Tag::TextInt | Tag::BinaryInt => {
                let content = doc.content(id);
                let hash = if node.tag == Tag::TextInt { decimal(&content) } else { binary(&content) };
                let value = doc.int(id).unwrap_or_default();
                Key {
                    hash,
                    identity: self.int(&value),
                    weight: weight(node.range().len()),
                    long_ints: conversion_weight(value.bits()),
                    ..Key::default()
                }
            }
            Tag::Float => {
                let value = doc.float(id).unwrap_or_default();
                let bits = if value.is_finite() { value.abs().log2().max(0.0) as u64 + 1 } else { 1 };
                Key {
                    hash: float(value),
                    identity: self.float(id, value),
                    weight: 1,
                    large_floats: conversion_weight(bits),
                    ..Key::default()
                }
            }
            Tag::Bytes | Tag::EncodedBytes => {
                let content = match doc.encoded(id) {
                    Some(text) => doc.code_points(text).into_iter().flatten().map(|point| point as u8).collect(),
                    None => doc.content(id),
                };
                self.randomized(Kind::Bytes, &content)
            }
            _ if node.is_str() => {
                let (width, content) = text(doc, id);
                self.randomized(Kind::Str { width }, &content)
            }
            // None. Before CPython 3.12 its hash depends on the address at which CPython was loaded.
            _ => Key { hash: 0xFCA8_6420, identity: self.identity(Kind::None, &[]), weight: 1, ..Key::default() },
        }
    }

    fn small(&self, value: i32) -> Key {
        let hash = signed(u64::from(value.unsigned_abs()), value < 0);
        let identity = self.number(value < 0, value.unsigned_abs().into(), 0);
        Key { hash, identity, weight: 1, ..Key::default() }
    }

    /// The key of a str or bytes. CPython hashes the bytes in which it stores a str, so a str and a bytes of the same
    /// content have the same hash.
    fn randomized(&self, kind: Kind, content: &[u8]) -> Key {
        let mut hasher = self.random.build_hasher();
        hasher.write(content);
        let hash = if content.is_empty() { 0 } else { hasher.finish() };
        Key {
            hash,
            identity: self.identity(kind, content),
            weight: weight(content.len()),
            random: !content.is_empty(),
            ..Key::default()
        }
    }

    /// The identity of a number, whatever its type: its sign, an odd integer, and the power of two to multiply that by.
    fn number(&self, negative: bool, magnitude: u64, shift: i64) -> u64 {
        let zeros = if magnitude == 0 { 0 } else { magnitude.trailing_zeros() };
        let shift = if magnitude == 0 { 0 } else { shift + i64::from(zeros) };
        let bytes = (magnitude >> zeros).to_le_bytes();
        let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.identity(Kind::Number { negative, shift }, &bytes[..len])
    }

    fn int(&self, value: &BigInt) -> u64 {
        let (sign, magnitude) = (value.sign(), value.magnitude());
        let zeros = magnitude.trailing_zeros().unwrap_or(0);
        let bytes = if sign == Sign::NoSign { Vec::new() } else { (magnitude >> zeros).to_bytes_le() };
        self.identity(Kind::Number { negative: sign == Sign::Minus, shift: zeros as i64 }, &bytes)
    }

    fn float(&self, id: NodeId, value: f64) -> u64 {
        if value.is_nan() {
            // A NaN is found only as the same object.
            return self.identity(Kind::NaN, &id.index().to_le_bytes());
        }
        if value.is_infinite() {
            return self.number(value < 0.0, 1, i64::MAX - 1);
        }
        let (mantissa, exponent) = parts(value);
        self.number(value < 0.0, mantissa, exponent)
    }

    /// Hashes a tuple as CPython does since 3.8.
    fn tuple(&self, doc: &Doc, id: NodeId) -> Key {
        const PRIMES: [u64; 3] = [11_400_714_785_074_694_791, 14_029_467_366_897_019_727, 2_870_177_450_012_600_261];
        let (mut hash, mut length) = (PRIMES[2], 0_u64);
        let mut sum = Sum::default();
        let mut identities = self.random.build_hasher();
        for item in doc.items(id).map(|item| self.get(item)) {
            hash = hash.wrapping_add(item.hash.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0]);
            length += 1;
            identities.write_u64(item.identity);
            sum.add(&item);
        }
        let hash = match hash.wrapping_add(length ^ PRIMES[2] ^ 3_527_539) {
            u64::MAX => 1_546_275_796,
            hash => hash,
        };
        sum.key(hash, self.identity(Kind::Tuple, &identities.finish().to_le_bytes()))
    }

    fn frozenset(&self, doc: &Doc, id: NodeId, work: &mut Work) -> Result<Key, Exceeded> {
        let before = work.spent();
        let mut table = SetTable::default();
        for item in doc.items(id) {
            table.insert(item, self.get(item), work)?;
        }
        let mut hash = 0;
        let (mut sum, mut count, mut identities) = (Sum::default(), 0_u64, 0_u64);
        for key in table.keys() {
            hash ^= shuffled(key.hash);
            identities = identities.wrapping_add(self.random.hash_one(key.identity));
            count += 1;
            sum.add(key);
        }
        sum.0.weight =
            sum.0.weight.saturating_add(u32::try_from((work.spent() - before) / SCALAR_NS).unwrap_or(u32::MAX));
        hash ^= (count + 1).wrapping_mul(1_927_868_237);
        hash ^= (hash >> 11) ^ (hash >> 25);
        let hash = match hash.wrapping_mul(69_069).wrapping_add(907_133_923) {
            u64::MAX => 590_923_713,
            hash => hash,
        };
        Ok(sum.key(hash, self.identity(Kind::FrozenSet, &identities.to_le_bytes())))
    }
}

/// Sums up the keys of the items of an immutable container.
#[derive(Default)]
struct Sum(Key);

impl Sum {
    fn add(&mut self, item: &Key) {
        let Self(sum) = self;
        sum.weight = sum.weight.saturating_add(item.weight);
        sum.long_ints = sum.long_ints.saturating_add(item.long_ints);
        sum.large_floats = sum.large_floats.saturating_add(item.large_floats);
        sum.random |= item.random;
    }

    fn key(self, hash: u64, identity: u64) -> Key {
        Key { hash, identity, weight: self.0.weight.saturating_add(1), ..self.0 }
    }
}

/// What it costs to compare values of so many bytes, in comparisons of small scalars.
pub(super) fn weight(length: usize) -> u32 {
    u32::try_from(1 + length / BYTES_PER_COMPARISON).unwrap_or(u32::MAX)
}

/// What it costs in addition to compare an int with a float, both of so many bits, in comparisons of small scalars:
/// CPython converts the float to an int.
fn conversion_weight(bits: u64) -> u32 {
    if bits <= DOUBLE_BITS { 0 } else { 3 + bits.min(MAX_FLOAT_BITS) as u32 / 128 }
}

fn shuffled(hash: u64) -> u64 {
    ((hash ^ 89_869_747) ^ (hash << 16)).wrapping_mul(3_644_798_167)
}

fn signed(hash: u64, negative: bool) -> u64 {
    match (if negative { hash.wrapping_neg() } else { hash }) as i64 {
        // In CPython, -1 means an error.
        -1 => -2_i64 as u64,
        hash => hash as u64,
    }
}

fn decimal(text: &[u8]) -> u64 {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let residue = digits.chunks(16).fold(0_u128, |residue, chunk| {
        let value = chunk.iter().fold(0_u128, |value, digit| value * 10 + u128::from(digit & 0xF));
        (residue * 10_u128.pow(chunk.len() as u32) + value) % u128::from(MODULUS)
    });
    signed(residue as u64, digits.len() < text.len())
}

/// The hash of an int in little-endian two's complement.
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

/// The magnitude of a finite float: an integer, and the exponent of the power of two to multiply it by.
fn parts(value: f64) -> (u64, i64) {
    let bits = value.abs().to_bits();
    let (exponent, fraction) = ((bits >> 52) as i64, bits & ((1 << 52) - 1));
    if exponent == 0 { (fraction, -1074) } else { (fraction | 1 << 52, exponent - 1075) }
}

fn float(value: f64) -> u64 {
    if !value.is_finite() {
        // Since CPython 3.10 the hash of a NaN depends on its address.
        return if value.is_nan() { 0 } else { signed(314_159, value < 0.0) };
    }
    let (mantissa, exponent) = parts(value);
    // 2^61 is 1 modulo MODULUS.
    let turns = exponent.rem_euclid(61);
    signed(((u128::from(mantissa) << turns) % u128::from(MODULUS)) as u64, value < 0.0)
}

/// A str as CPython stores it: the number of bytes for each character, and all bytes.
fn text(doc: &Doc, id: NodeId) -> (usize, Cow<'_, [u8]>) {
    if doc.node(id).tag == Tag::Str {
        let content = doc.content(id);
        if content.is_ascii() {
            return (1, content);
        }
    }
    let Some(points) = doc.code_points(id) else { return (1, Cow::default()) };
    let width = points.clone().max().map_or(1, |point| match point {
        0..0x100 => 1,
        0x100..0x1_0000 => 2,
        _ => 4,
    });
    (width, points.flat_map(|point| point.to_le_bytes().into_iter().take(width)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::source::Source;

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

    /// The key of a pickle's value.
    fn key(hashes: &mut Hashes, pickle: &crate::codec::pickle::Pickle) -> Key {
        let doc = &pickle.doc;
        let mut work = Work::up_to(u64::MAX);
        for id in doc.ids().filter(|id| doc.node(*id).hash_size > 0) {
            hashes.add(doc, id, &mut work).expect("within bounds");
        }
        hashes.get(doc.root)
    }

    fn read(opcodes: &'static [u8]) -> crate::codec::pickle::Pickle {
        crate::codec::pickle::read(&Source::Memory(opcodes.into()), crate::codec::Effort::Full).expect("a pickle")
    }

    #[test]
    fn tuples_and_frozensets_have_the_hashes_that_cpython_gives_them() {
        let of = |opcodes| {
            let pickle = read(opcodes);
            key(&mut Hashes::of(&pickle.doc), &pickle).hash as i64
        };
        assert_eq!(of(b")."), 5_740_354_900_026_072_187);
        assert_eq!(of(b"K\x01K\x02\x86."), -3_550_055_125_485_641_917);
        assert_eq!(of(b"G\x3f\xf8\0\0\0\0\0\0K\x02K\x03\x86\x86."), 5_043_971_494_856_347_220);
        assert_eq!(of(b"(\x91."), 133_146_708_735_736);
        assert_eq!(of(b"(K\x01\x91."), -558_064_481_276_695_278);
        assert_eq!(of(b"(K\x01K\x02K\x01\x91."), -1_826_646_154_956_904_602);
        assert_eq!(of(b"(K\x01K\x02K\x03\x91."), -272_375_401_224_217_160);
        assert_eq!(of(b"(K\x01K\x02K\x03)\x91."), 1_980_428_773_795_854_158);
    }

    #[test]
    fn equal_values_are_known_however_they_are_written() {
        let one = read(b"(K\x01I01\nL1L\n\x8a\x01\x01G\x3f\xf0\0\0\0\0\0\0F1.0\nt.");
        let large = read(
            b"(\x8a\x09\0\0\0\0\0\0\0\0\x01L18446744073709551616L\nG\x43\xf0\0\0\0\0\0\0F18446744073709551616.0\nt.",
        );
        let text = read(b"(X\x02\0\0\0\xc3\xa9V\xe9\nV\\u00e9\nt.");
        for pickle in [one, large, text] {
            let mut hashes = Hashes::of(&pickle.doc);
            key(&mut hashes, &pickle);
            let items: Vec<Key> = pickle.doc.items(pickle.doc.root).map(|id| hashes.get(id)).collect();
            assert!(items.iter().all(|item| (item.hash, item.identity) == (items[0].hash, items[0].identity)));
        }
    }
}
