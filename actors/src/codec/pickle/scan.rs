//! Scans a pickle: a machine executes the opcodes as CPython's does, but describes the values instead of making them.
//!
//! It accepts everything that `pickle.dumps` writes for plain values, a little more, and nothing that CPython's
//! `pickle.loads` refuses.

use std::ops::Range;

use super::memo::Memo;
use super::operand::Operands;
use super::reduce::{self, Calls};
use super::rewrite::{Rewrite, Rewrites};
use super::stack::Stack;
use super::{container, depth, hash_flood, opcode as op, scalar};
use crate::codec::doc::{Doc, NodeId, Tag};
use crate::codec::source::Source;
use crate::codec::{DecodeError, Effort};

/// A pickle that was read, with what is needed to forward it.
#[derive(Debug)]
pub(in crate::codec) struct Pickle {
    pub(in crate::codec) doc: Doc,
    /// The memo at the end of the pickle.
    pub(super) memo: Memo,
    pub(super) rewrites: Rewrites,
    /// The offset of STOP.
    pub(super) stop: usize,
}

/// Reads a pickle.
pub(in crate::codec) fn read(body: &Source, effort: Effort) -> Result<Pickle, DecodeError> {
    let machine = Machine {
        operands: Operands::of(body),
        doc: Doc::new(body.clone(), effort)?,
        stack: Stack::default(),
        memo: Memo::default(),
        rewrites: Rewrites::default(),
        calls: Calls::default(),
        protocol: 0,
    };
    let pickle = machine.run()?;
    depth::check(&pickle.doc)?;
    Ok(pickle)
}

/// The state that the opcodes work on. Each family of opcodes has a module; its functions get the parts that they need.
struct Machine<'a> {
    operands: Operands<'a>,
    doc: Doc,
    stack: Stack,
    memo: Memo,
    rewrites: Rewrites,
    calls: Calls,
    protocol: u8,
}

impl Machine<'_> {
    fn run(mut self) -> Result<Pickle, DecodeError> {
        loop {
            let opcode = self.operands.opcode()?;
            match opcode {
                op::STOP => break,
                op::PROTO => {
                    self.protocol = self.operands.byte()?;
                    if self.protocol > 5 {
                        let what = format!("pickle of protocol {} (0 to 5 are supported)", self.protocol);
                        return Err(self.operands.refuse(what));
                    }
                }
                op::FRAME => {
                    self.operands.frame()?;
                    let at = self.operands.at();
                    self.rewrites.push(Rewrite::Frame(at as u32), at)?;
                }

                op::NONE => self.push(NodeId::NONE)?,
                op::NEWTRUE => self.push(NodeId::TRUE)?,
                op::NEWFALSE => self.push(NodeId::FALSE)?,
                op::BININT => {
                    let value = i32::from_le_bytes(self.operands.array()?);
                    self.push_int(value)?;
                }
                op::BININT1 => {
                    let value = self.operands.byte()?;
                    self.push_int(value.into())?;
                }
                op::BININT2 => {
                    let value = u16::from_le_bytes(self.operands.array()?);
                    self.push_int(value.into())?;
                }
                op::LONG1 => self.counted(Tag::BinaryInt, 1)?,
                op::LONG4 => {
                    let range = self.operands.signed_counted()?;
                    self.push_new(Tag::BinaryInt, range)?;
                }
                op::INT => {
                    let id = scalar::text_int(&mut self.operands, &mut self.doc, &mut self.rewrites)?;
                    self.push(id)?;
                }
                op::LONG => {
                    let id = scalar::text_long(&mut self.operands, &mut self.doc, &mut self.rewrites)?;
                    self.push(id)?;
                }
                op::FLOAT => {
                    let id = scalar::text_float(&mut self.operands, &mut self.doc)?;
                    self.push(id)?;
                }
                op::BINFLOAT => {
                    let value = f64::from_be_bytes(self.operands.array()?);
                    let id = self.doc.add_float(self.operands.at(), value)?;
                    self.push(id)?;
                }

                op::SHORT_BINUNICODE => self.unicode(1)?,
                op::BINUNICODE => self.unicode(4)?,
                op::BINUNICODE8 => self.unicode(8)?,
                op::UNICODE => {
                    let id = scalar::raw_unicode(&mut self.operands, &mut self.doc)?;
                    self.push(id)?;
                }
                op::STRING => {
                    let id = scalar::quoted_string(&mut self.operands, &mut self.doc)?;
                    self.push(id)?;
                }
                op::SHORT_BINSTRING => {
                    let range = self.operands.counted(1)?;
                    self.python_2_str(range)?;
                }
                op::BINSTRING => {
                    let range = self.operands.signed_counted()?;
                    self.python_2_str(range)?;
                }
                op::SHORT_BINBYTES => self.counted(Tag::Bytes, 1)?,
                op::BINBYTES => self.counted(Tag::Bytes, 4)?,
                op::BINBYTES8 => self.counted(Tag::Bytes, 8)?,
                op::BYTEARRAY8 => self.counted(Tag::ByteArray, 8)?,

                op::EMPTY_LIST => self.push_new(Tag::List, 0..0)?,
                op::EMPTY_DICT => self.push_new(Tag::Dict, 0..0)?,
                op::EMPTY_SET => self.push_new(Tag::Set, 0..0)?,
                op::EMPTY_TUPLE => self.build_from(Tag::Tuple, self.stack.len())?,
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

                op::MARK => self.stack.mark(self.operands.at())?,
                op::POP => {
                    if !self.stack.pop_bare_mark() {
                        self.pop()?;
                    }
                }
                op::POP_MARK => {
                    let start = self.stack.pop_mark(self.operands.at())?;
                    self.stack.truncate(start);
                }
                op::DUP => {
                    let top = self.stack.top(self.operands.at())?;
                    self.push(top)?;
                }

                op::PUT => {
                    let number = self.operands.text_memo_number()?;
                    self.memo_put(number)?;
                }
                op::BINPUT => {
                    let number = self.operands.length(1)?;
                    self.memo_put(number)?;
                }
                op::LONG_BINPUT => {
                    let number = self.operands.length(4)?;
                    self.memo_put(number)?;
                }
                op::MEMOIZE => {
                    let (at, number) = (self.operands.at(), self.memo.used());
                    self.rewrites.push(Rewrite::Memoize(at as u32, number), at)?;
                    self.memo_put(number as usize)?;
                }
                op::GET => {
                    let number = self.operands.text_memo_number()?;
                    self.memo_get(number)?;
                }
                op::BINGET => {
                    let number = self.operands.length(1)?;
                    self.memo_get(number)?;
                }
                op::LONG_BINGET => {
                    let number = self.operands.length(4)?;
                    self.memo_get(number)?;
                }

                op::GLOBAL => {
                    let id = reduce::global(&mut self.operands, &mut self.doc, self.protocol)?;
                    self.push(id)?;
                }
                op::STACK_GLOBAL => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let at = self.operands.at();
                    let id = reduce::stack_global(&mut self.doc, module, name, self.protocol, at)?;
                    self.push(id)?;
                }
                op::REDUCE => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    let id = self.calls.reduce(&mut self.doc, callable, arguments, self.operands.at())?;
                    self.push(id)?;
                }
                op::INST => return Err(reduce::refuse_inst(&mut self.operands)),
                op::EXT1 | op::EXT2 | op::EXT4 => {
                    return Err(self.operands.refuse("pickle names a class by an extension code"));
                }
                op::OBJ | op::NEWOBJ | op::NEWOBJ_EX | op::BUILD => {
                    return Err(self.operands.refuse("pickle makes an instance of a class, not a plain value,"));
                }
                op::PERSID | op::BINPERSID => {
                    return Err(self.operands.refuse("pickle refers to an external object by a persistent id"));
                }
                op::NEXT_BUFFER | op::READONLY_BUFFER => {
                    return Err(self.operands.refuse("pickle refers to an out-of-band buffer"));
                }
                _ => return Err(self.operands.refuse(format!("invalid pickle: unknown opcode 0x{opcode:02x}"))),
            }
        }
        let root = self.pop()?;
        reduce::check_plain(&self.doc, root)?;
        hash_flood::check(&self.doc)?;
        self.doc.root = root;
        Ok(Pickle { doc: self.doc, memo: self.memo, rewrites: self.rewrites, stop: self.operands.at() })
    }

    fn push(&mut self, id: NodeId) -> Result<(), DecodeError> {
        self.stack.push(id, self.operands.at())
    }

    fn pop(&mut self) -> Result<NodeId, DecodeError> {
        self.stack.pop(self.operands.at())
    }

    fn push_new(&mut self, tag: Tag, range: Range<usize>) -> Result<(), DecodeError> {
        let id = self.doc.add(tag, self.operands.at(), range)?;
        self.push(id)
    }

    fn push_int(&mut self, value: i32) -> Result<(), DecodeError> {
        let id = self.doc.add_int(self.operands.at(), value)?;
        self.push(id)
    }

    fn counted(&mut self, tag: Tag, width: usize) -> Result<(), DecodeError> {
        let range = self.operands.counted(width)?;
        self.push_new(tag, range)
    }

    fn unicode(&mut self, width: usize) -> Result<(), DecodeError> {
        let range = self.operands.counted(width)?;
        let id = scalar::unicode(&self.operands, &mut self.doc, range)?;
        self.push(id)
    }

    fn python_2_str(&mut self, range: Range<usize>) -> Result<(), DecodeError> {
        let id = scalar::python_2_str(&self.operands, &mut self.doc, range)?;
        self.push(id)
    }

    fn build_of(&mut self, count: usize) -> Result<(), DecodeError> {
        match self.stack.start_of_last(count) {
            Some(start) => self.build_from(Tag::Tuple, start),
            None => Err(self.operands.refuse("tuple of more values than are on the stack")),
        }
    }

    fn build_from_mark(&mut self, tag: Tag) -> Result<(), DecodeError> {
        let start = self.stack.pop_mark(self.operands.at())?;
        self.build_from(tag, start)
    }

    /// Replaces the values from `start` on by a container with these items.
    fn build_from(&mut self, tag: Tag, start: usize) -> Result<(), DecodeError> {
        let id = container::build(&mut self.doc, tag, self.stack.from(start), self.operands.at())?;
        self.stack.truncate(start);
        self.push(id)
    }

    fn add_last(&mut self, tag: Tag, count: usize) -> Result<(), DecodeError> {
        match self.stack.start_of_last(count) {
            Some(start) => self.add_from(tag, start),
            None => Err(self.operands.refuse("opcode needs a value, but the stack has none")),
        }
    }

    fn add_from_mark(&mut self, tag: Tag) -> Result<(), DecodeError> {
        let start = self.stack.pop_mark(self.operands.at())?;
        self.add_from(tag, start)
    }

    /// Moves the values from `start` on into the container below them.
    fn add_from(&mut self, tag: Tag, start: usize) -> Result<(), DecodeError> {
        let Some(container) = self.stack.below(start) else {
            return Err(self.operands.refuse("opcode adds items, but no container is below them on the stack"));
        };
        container::add(&mut self.doc, tag, container, self.stack.from(start), self.operands.at())?;
        self.stack.truncate(start);
        Ok(())
    }

    fn memo_put(&mut self, number: usize) -> Result<(), DecodeError> {
        let at = self.operands.at();
        let value = self.stack.top(at)?;
        self.memo.put(number, value, self.doc.node_count(), at)
    }

    fn memo_get(&mut self, number: usize) -> Result<(), DecodeError> {
        let value = self.memo.get(number, self.operands.at())?;
        self.push(value)
    }
}
