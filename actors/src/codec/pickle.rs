//! Reads pickles, forwards them without decoding, and writes pickles of protocol 4 without frames.
//!
//! A pickle is a program for a stack machine. Reading it executes the opcodes abstractly (`scan`). The machine has
//! CPython's stack and memo, but a value on it is only a description: a type and the range of bytes that holds the
//! content. Nothing is called, no class is looked up, and no content is copied. So reading takes one pass, whatever is
//! in the pickle. Then some checks follow that need the whole graph: the depth of nesting (`depth`), and the time that
//! CPython will need for dict keys and set items (`hash_flood`). The memo at the end is known, and so are the offsets
//! of all values. Forwarding uses both (`splice`): the new pickle is the received one up to STOP, then POP, then
//! opcodes that build the new message around values that they get from the memo. If a value is not in the memo, an
//! opcode that puts it there is inserted behind the opcode that made it. A few opcodes are removed or replaced on the
//! way (`rewrite`).
//!
//! For example, a worker has sent this (as `pickletools.dis` shows it, shortened):
//!
//! ```text
//!  11: }    EMPTY_DICT
//!  14: \x8c SHORT_BINUNICODE 'USER_ID'
//!  24: \x8c SHORT_BINUNICODE 'u'
//!  27: \x94 MEMOIZE    (as 2)
//!      …                              and 'MAIN_DATA', {'TYPE': 'FRAME_RENDERED', 'DATA': the image}
//!  74: B    BINBYTES   b'…'           the image, 50 MB
//!      \x94 MEMOIZE    (as 8)
//!      u    SETITEMS
//!      .    STOP
//! ```
//!
//! This is forwarded, where the bytes before POP are those that were received, without a copy:
//!
//! ```text
//!      …
//!      u    SETITEMS
//!      0    POP                       drops the worker's message; the memo keeps its parts
//!      }    EMPTY_DICT
//!      X    BINUNICODE 'TYPE'
//!      X    BINUNICODE 'FRAME_RENDERED'
//!      s    SETITEM
//!      X    BINUNICODE 'DATA'
//!      j    LONG_BINGET 8             the image
//!      s    SETITEM
//!      X    BINUNICODE 'USER_ID'
//!      j    LONG_BINGET 2
//!      s    SETITEM
//!      .    STOP
//! ```

mod container;
mod depth;
mod hash;
mod hash_flood;
mod memo;
mod opcode;
mod operand;
mod reduce;
mod rewrite;
mod scalar;
mod scan;
mod splice;
mod stack;
mod table;
mod write;

use bytes::{BufMut, Bytes, BytesMut};
use num_bigint::BigInt;

use super::DecodeError;
use super::bounds::MAX_VALUES;
use super::doc::NodeId;
use super::error::{grouped, malformed};

pub(super) use scan::{Pickle, read};
pub(super) use splice::Splice;
pub(super) use write::Writer;

/// What precedes the content of a byte string of `len` bytes in a pickle: the opcode and the length.
pub fn bytes_header(len: u64) -> Bytes {
    let mut header = BytesMut::with_capacity(9);
    if let Ok(len) = u8::try_from(len) {
        header.put_slice(&[opcode::SHORT_BINBYTES, len]);
    } else if let Ok(len) = u32::try_from(len) {
        header.put_u8(opcode::BINBYTES);
        header.put_u32_le(len);
    } else {
        header.put_u8(opcode::BINBYTES8);
        header.put_u64_le(len);
    }
    header.freeze()
}

/// The dict that takes the place of a .blend file in a message: its SHA-256, its length in bytes, and the path of the
/// URL that it can be fetched from.
pub fn file_reference(sha256: &str, size: u64, path: &str) -> Bytes {
    let mut out = vec![opcode::EMPTY_DICT, opcode::MARK];
    put_str(&mut out, "SHA256");
    put_str(&mut out, sha256);
    put_str(&mut out, "SIZE");
    put_long(&mut out, &BigInt::from(size).to_signed_bytes_le());
    put_str(&mut out, "PATH");
    put_str(&mut out, path);
    out.push(opcode::SETITEMS);
    out.into()
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.push(opcode::BINUNICODE);
    // Lossless: a digest, a path from the head of a request, or a name that the wire contract fixes.
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A pickle that is being written from opcodes and from values of a decoded message.
pub(super) trait Output {
    fn put(&mut self, opcodes: &[u8]);

    /// Pushes a value of the message.
    fn value(&mut self, id: NodeId);

    /// A memo number that is not in use.
    fn fresh_memo(&mut self) -> u32;

    /// Pushes a str.
    fn str(&mut self, text: &str) {
        // Written only for names that the wire contract fixes.
        self.put(&[opcode::BINUNICODE]);
        self.put(&(text.len() as u32).to_le_bytes());
        self.put(text.as_bytes());
    }

    fn empty_dict(&mut self) {
        self.put(&[opcode::EMPTY_DICT]);
    }

    /// Moves a key and its value from the stack into the dict below them.
    fn set_item(&mut self) {
        self.put(&[opcode::SETITEM]);
    }

    /// Drops the value on top of the stack.
    fn pop(&mut self) {
        self.put(&[opcode::POP]);
    }

    /// Stores the value on top of the stack under a memo number.
    fn memo_put(&mut self, number: u32) {
        self.put(&memo_opcode(opcode::LONG_BINPUT, number));
    }

    /// Pushes the value under a memo number.
    fn memo_get(&mut self, number: u32) {
        self.put(&memo_opcode(opcode::LONG_BINGET, number));
    }
}

/// Checks that the reader may store one more value, mark or rewrite.
fn check_count(count: usize, at: usize) -> Result<(), DecodeError> {
    if count < MAX_VALUES {
        return Ok(());
    }
    Err(malformed(format!("more than {} values, frames or marks at once", grouped(MAX_VALUES)), at))
}

fn memo_opcode(opcode: u8, number: u32) -> [u8; 5] {
    let [a, b, c, d] = number.to_le_bytes();
    [opcode, a, b, c, d]
}

/// Writes an int in two's complement, the lowest byte first.
fn put_long(out: &mut Vec<u8>, twos_complement: &[u8]) {
    match u8::try_from(twos_complement.len()) {
        Ok(len) => out.extend_from_slice(&[opcode::LONG1, len]),
        Err(_) => {
            out.push(opcode::LONG4);
            // Lossless: MAX_INT_DIGITS digits take far less than 2 GiB.
            out.extend_from_slice(&(twos_complement.len() as u32).to_le_bytes());
        }
    }
    out.extend_from_slice(twos_complement);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_a_byte_string_has_the_shortest_length_that_fits() {
        assert_eq!(bytes_header(0)[..], *b"C\x00");
        assert_eq!(bytes_header(255)[..], *b"C\xff");
        assert_eq!(bytes_header(256)[..], *b"B\x00\x01\x00\x00");
        assert_eq!(bytes_header(0xFFFF_FFFF)[..], *b"B\xff\xff\xff\xff");
        assert_eq!(bytes_header(0x1_0000_0000)[..], *b"\x8e\x00\x00\x00\x00\x01\x00\x00\x00");
    }
}
