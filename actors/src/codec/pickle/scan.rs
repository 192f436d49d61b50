//! Reading a pickle: a machine that does what CPython's does, except that values are only described.
//!
//! It takes what `pickle.dumps` writes for plain values, little more, and nothing that CPython's `pickle.loads` would
//! refuse.

use bytes::Bytes;

use super::machine::{Machine, Rewrite};
use super::reduce::check_plain;
use super::{depth, hash_flood, opcode as op};
use crate::codec::doc::{Doc, NodeId, Tag};
use crate::codec::text::Spelling;
use crate::codec::{DecodeError, Effort};

/// A pickle that was read, and what it takes to pass it on.
#[derive(Debug)]
pub(in crate::codec) struct Pickle {
    pub(in crate::codec) doc: Doc,
    /// What the memo held at the end.
    pub(super) memo: Vec<Option<NodeId>>,
    /// The opcodes that cannot always be passed on as they are, in their order.
    pub(super) rewrites: Vec<Rewrite>,
    /// Where the opcode STOP is.
    pub(super) stop: usize,
}

/// Reads a pickle.
pub(in crate::codec) fn read(body: Bytes, effort: Effort) -> Result<Pickle, DecodeError> {
    let pickle = Machine::on(&body, Doc::new(body.clone(), effort)?).run()?;
    depth::check(&pickle.doc)?;
    Ok(pickle)
}

impl Machine<'_> {
    fn run(mut self) -> Result<Pickle, DecodeError> {
        loop {
            self.at = self.pos;
            let opcode = self.byte()?;
            match opcode {
                op::STOP => break,
                op::PROTO => {
                    self.protocol = self.byte()?;
                    if self.protocol > 5 {
                        return Err(self.refuse(format!("pickle of protocol {}; 0 to 5 are known,", self.protocol)));
                    }
                }
                op::FRAME => self.frame()?,

                op::NONE => self.push(NodeId::NONE)?,
                op::NEWTRUE => self.push(NodeId::TRUE)?,
                op::NEWFALSE => self.push(NodeId::FALSE)?,
                op::BININT => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push_int(value)?;
                }
                op::BININT1 => {
                    let value = self.byte()?;
                    self.push_int(value.into())?;
                }
                op::BININT2 => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push_int(value.into())?;
                }
                op::LONG1 => self.counted(Tag::BinaryInt, 1)?,
                op::LONG4 => self.signed_counted(Tag::BinaryInt)?,
                op::INT => self.text_int()?,
                op::LONG => self.text_long()?,
                op::FLOAT => self.text_float()?,
                op::BINFLOAT => {
                    let value = f64::from_be_bytes(self.array()?);
                    let id = self.doc.add_float(self.at, value)?;
                    self.push(id)?;
                }

                op::SHORT_BINUNICODE => self.unicode(1)?,
                op::BINUNICODE => self.unicode(4)?,
                op::BINUNICODE8 => self.unicode(8)?,
                op::UNICODE => {
                    let range = self.line()?;
                    self.spelled(Tag::RawUnicodeStr, Spelling::RawUnicode, range)?;
                }
                op::STRING => self.quoted_string()?,
                op::SHORT_BINSTRING => self.counted(Tag::Str, 1)?,
                op::BINSTRING => self.signed_counted(Tag::Str)?,
                op::SHORT_BINBYTES => self.counted(Tag::Bytes, 1)?,
                op::BINBYTES => self.counted(Tag::Bytes, 4)?,
                op::BINBYTES8 => self.counted(Tag::Bytes, 8)?,
                op::BYTEARRAY8 => self.counted(Tag::ByteArray, 8)?,

                op::EMPTY_LIST => self.push_new(Tag::List, 0..0)?,
                op::EMPTY_DICT => self.push_new(Tag::Dict, 0..0)?,
                op::EMPTY_SET => self.push_new(Tag::Set, 0..0)?,
                op::EMPTY_TUPLE => self.build(Tag::Tuple, self.stack.len())?,
                op::TUPLE1 => self.build_of(1)?,
                op::TUPLE2 => self.build_of(2)?,
                op::TUPLE3 => self.build_of(3)?,
                op::TUPLE => self.build_from_mark(Tag::Tuple)?,
                op::LIST => self.build_from_mark(Tag::List)?,
                op::DICT => self.build_from_mark(Tag::Dict)?,
                op::FROZENSET => self.build_from_mark(Tag::FrozenSet)?,
                op::APPEND => self.add_last(Tag::List, 1)?,
                op::SETITEM => self.add_last(Tag::Dict, 2)?,
                op::APPENDS => self.add_from_mark(Tag::List)?,
                op::SETITEMS => self.add_from_mark(Tag::Dict)?,
                op::ADDITEMS => self.add_from_mark(Tag::Set)?,

                op::MARK => {
                    self.room(self.marks.len())?;
                    self.marks.push(self.stack.len());
                }
                op::POP if self.marks.last() == Some(&self.stack.len()) => {
                    self.marks.pop();
                }
                op::POP => {
                    self.pop()?;
                }
                op::POP_MARK => {
                    let start = self.pop_mark()?;
                    self.stack.truncate(start);
                }
                op::DUP => self.push(self.top()?)?,

                op::PUT => {
                    let number = self.text_memo_number()?;
                    self.remember(number)?;
                }
                op::BINPUT => {
                    let number = self.length(1)?;
                    self.remember(number)?;
                }
                op::LONG_BINPUT => {
                    let number = self.length(4)?;
                    self.remember(number)?;
                }
                op::MEMOIZE => {
                    self.rewrite(Rewrite::Memoize(self.at as u32, self.memo_len))?;
                    self.remember(self.memo_len as usize)?;
                }
                op::GET => {
                    let number = self.text_memo_number()?;
                    self.recall(number)?;
                }
                op::BINGET => {
                    let number = self.length(1)?;
                    self.recall(number)?;
                }
                op::LONG_BINGET => {
                    let number = self.length(4)?;
                    self.recall(number)?;
                }

                op::GLOBAL => self.global()?,
                op::STACK_GLOBAL => self.stack_global()?,
                op::REDUCE => self.reduce()?,
                op::INST => return Err(self.refuse_inst()),
                op::EXT1 | op::EXT2 | op::EXT4 => {
                    return Err(self.refuse("pickle names a class by an extension code"));
                }
                op::OBJ | op::NEWOBJ | op::NEWOBJ_EX | op::BUILD => {
                    return Err(self.refuse("pickle makes an instance of a class; plain values are expected,"));
                }
                op::PERSID | op::BINPERSID => {
                    return Err(self.refuse("pickle refers to an object outside by a persistent id"));
                }
                op::NEXT_BUFFER | op::READONLY_BUFFER => {
                    return Err(self.refuse("pickle refers to a buffer outside of it"));
                }
                _ => return Err(self.refuse(format!("no pickle: unknown opcode 0x{opcode:02x}"))),
            }
        }
        let root = self.pop()?;
        check_plain(&self.doc, root)?;
        hash_flood::check(&self.doc)?;
        self.doc.root = root;
        Ok(Pickle { doc: self.doc, memo: self.memo, rewrites: self.rewrites, stop: self.at })
    }
}
