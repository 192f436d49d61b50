//! Searches for the start of a commit behind a record that cannot be read, in time that depends on the length of the
//! file alone.
//!
//! The sender of a body chooses its bytes. Every few of them may look like a header with a long meta, and a checksum
//! over each of these would take minutes. So the checksum of a range is derived from those of two prefixes. A CRC is
//! linear: if `a` is that of a prefix, `b` that of the same prefix and `n` bytes more, and `salt` any CRC, then
//! continuing `salt` with these `n` bytes gives `(salt ^ a) · x^(8n) ^ b`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{BEGINS_COMMIT, RECORD_HEADER, u32_at, u64_at};
use crate::store::{MAX_META, check_bounds};

/// How many bytes are searched at a time.
const SEARCHED_TOGETHER: u64 = 1 << 20;

/// The distance between prefixes whose CRCs are kept, in bytes. Those between are computed when they are needed.
const STEP: usize = 64;

/// The polynomial of CRC-32C without its highest term. Bit 31 is the coefficient of x^0, bit 0 that of x^31.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// The polynomial 1.
const ONE: u32 = 1 << 31;

/// The polynomial x^8.
const ONE_BYTE: u32 = 1 << 23;

/// Whether `file` has, anywhere behind `offset`, a sound header of a record that begins a commit. Headers with a meta
/// of more than [`MAX_META`], which only earlier versions wrote, are not searched for.
pub fn has_commit_after(file: &File, salt: u32, offset: u64) -> io::Result<bool> {
    let end = file.metadata()?.len();
    let mut powers = Vec::new();
    let mut bytes = Vec::new();
    let mut at = offset + 1;
    while at + RECORD_HEADER <= end {
        let len = (end - at).min(SEARCHED_TOGETHER + RECORD_HEADER + MAX_META as u64);
        bytes.resize(len as usize, 0);
        file.read_exact_at(&mut bytes, at)?;
        let starts = SEARCHED_TOGETHER.min(len - RECORD_HEADER + 1) as usize;
        if Window::new(&bytes, salt, &mut powers).has_commit(starts) {
            return Ok(true);
        }
        at += starts as u64;
    }
    Ok(false)
}

/// A part of the file.
struct Window<'a> {
    bytes: &'a [u8],
    /// The CRC of the segment's salt.
    salt: u32,
    /// The CRC of every prefix whose length is a multiple of [`STEP`]; empty until one is needed.
    prefixes: Vec<u32>,
    /// The polynomial x^(8n) for each n up to the longest range of a checksum that was needed.
    powers: &'a mut Vec<u32>,
}

impl<'a> Window<'a> {
    fn new(bytes: &'a [u8], salt: u32, powers: &'a mut Vec<u32>) -> Self {
        Self { bytes, salt: crc32c::crc32c(&salt.to_le_bytes()), prefixes: Vec::new(), powers }
    }

    fn has_commit(&mut self, starts: usize) -> bool {
        const COMMIT: u8 = (BEGINS_COMMIT >> 8) as u8;
        let kinds = &self.bytes[4..starts + 7];
        let candidates = kinds.windows(4).enumerate().filter(|(_, kind)| matches!(kind, [1..=3, COMMIT, 0, 0]));
        candidates.map(|(start, _)| start).any(|start| self.is_header(start))
    }

    fn is_header(&mut self, start: usize) -> bool {
        let (head, rest) = self.bytes[start..].split_at(RECORD_HEADER as usize);
        let meta = u32_at(head, 16) as usize;
        if meta > rest.len() || check_bounds(meta as u64, u64_at(head, 24)).is_err() {
            return false;
        }
        if self.prefixes.is_empty() {
            self.prepare();
        }
        // it covers the salt, the header behind itself, and the meta
        let (from, to) = (start + 4, start + head.len() + meta);
        let crc = multiply(self.salt ^ self.prefix(from), self.power(to - from)) ^ self.prefix(to);
        crc == u32_at(head, 0)
    }

    fn prepare(&mut self) {
        let mut crc = 0;
        for step in self.bytes.chunks(STEP) {
            self.prefixes.push(crc);
            crc = crc32c::crc32c_append(crc, step);
        }
        self.prefixes.push(crc);
    }

    /// The polynomial x^(8n).
    fn power(&mut self, n: usize) -> u32 {
        while self.powers.len() <= n {
            let power = self.powers.last().map_or(ONE, |power| multiply(*power, ONE_BYTE));
            self.powers.push(power);
        }
        self.powers[n]
    }

    /// The CRC of the first `len` bytes.
    fn prefix(&self, len: usize) -> u32 {
        crc32c::crc32c_append(self.prefixes[len / STEP], &self.bytes[len / STEP * STEP..len])
    }
}

/// The remainders of all sums of the polynomials x^32 to x^35: bit 3 of the index stands for x^32.
const REMAINDERS: [u32; 16] = {
    let mut remainders = [0; 16];
    let mut index = 1;
    while index < 16 {
        let (mut remainder, mut step) = (index as u32, 0);
        while step < 4 {
            remainder = remainder >> 1 ^ POLYNOMIAL & (remainder & 1).wrapping_neg();
            step += 1;
        }
        remainders[index] = remainder;
        index += 1;
    }
    remainders
};

/// The product of two polynomials modulo that of the CRC, four terms of `a` at a time.
fn multiply(a: u32, b: u32) -> u32 {
    let times_x = |b: u32| b >> 1 ^ POLYNOMIAL & (b & 1).wrapping_neg();
    let one = b;
    let two = times_x(one);
    let four = times_x(two);
    let eight = times_x(four);
    let mut product = 0;
    for nibble in (0..8).map(|at| a >> (4 * at)) {
        product = product >> 4 ^ REMAINDERS[(product & 15) as usize];
        product ^= one & (nibble >> 3 & 1).wrapping_neg();
        product ^= two & (nibble >> 2 & 1).wrapping_neg();
        product ^= four & (nibble >> 1 & 1).wrapping_neg();
        product ^= eight & (nibble & 1).wrapping_neg();
    }
    product
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Kind, Mark, Record};
    use super::*;

    proptest! {
        #[test]
        fn a_header_is_found_wherever_it_stands_and_only_with_its_own_meta(
            before in prop::collection::vec(any::<u8>(), 0..300),
            meta in prop::collection::vec(any::<u8>(), 0..300),
            after in prop::collection::vec(any::<u8>(), 0..100),
            salt: u32,
        ) {
            let record = Record { kind: Kind::Put, seq: 7, meta_len: meta.len() as u32, body_crc: 1, body_len: 2 };
            let mut bytes = before.clone();
            record.write(&meta, Mark { salt, begins_commit: true }, &mut bytes);
            bytes.extend(after);
            let mut powers = Vec::new();
            prop_assert!(Window::new(&bytes, salt, &mut powers).is_header(before.len()));
            prop_assert!(!Window::new(&bytes, salt ^ 1, &mut powers).is_header(before.len()));
            if !meta.is_empty() {
                bytes[before.len() + RECORD_HEADER as usize] ^= 1;
                prop_assert!(!Window::new(&bytes, salt, &mut powers).is_header(before.len()));
            }
        }
    }
}
