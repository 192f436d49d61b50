//! Writes values that were read from JSON as a pickle of protocol 4 without frames.

use super::{Output, opcode as op, put_long};
use crate::codec::doc::{Doc, EdgeId, NodeId, Tag};
use crate::codec::pieces::Pieces;
use crate::codec::walk::{Step, Walk};

pub(in crate::codec) struct Writer<'a> {
    doc: &'a Doc,
    out: Pieces,
    next_memo: u32,
    /// The position of the value that is left out.
    placeholder: Option<EdgeId>,
    /// The offset in the pickle at which that value belongs.
    placeholder_offset: u64,
}

impl<'a> Writer<'a> {
    pub(in crate::codec) fn of(doc: &'a Doc) -> Writer<'a> {
        let mut out = Pieces::of(&doc.source);
        out.put(&[op::PROTO, 4]);
        Writer { doc, out, next_memo: 0, placeholder: None, placeholder_offset: 0 }
    }

    /// Leaves out the value at a position. The pickle is valid only once another value is inserted there.
    pub(in crate::codec) fn leave_out(&mut self, edge: EdgeId) {
        self.placeholder = Some(edge);
    }

    /// The offset in the pickle at which the left-out value belongs.
    pub(in crate::codec) fn placeholder_offset(&self) -> u64 {
        self.placeholder_offset
    }

    pub(in crate::codec) fn finish(mut self) -> Pieces {
        self.out.put(&[op::STOP]);
        self.out
    }

    fn is_empty(&self, container: NodeId) -> bool {
        self.doc.first(container) == EdgeId::END
    }

    fn open(&mut self, opcode: u8, container: NodeId) {
        self.out.put(&[opcode]);
        if !self.is_empty(container) {
            self.out.put(&[op::MARK]);
        }
    }

    fn scalar(&mut self, id: NodeId) {
        let node = self.doc.node(id);
        match node.tag {
            Tag::True => self.out.put(&[op::NEWTRUE]),
            Tag::False => self.out.put(&[op::NEWFALSE]),
            Tag::TextInt => self.int(id),
            Tag::Float => {
                self.out.put(&[op::BINFLOAT]);
                self.out.put(&self.doc.float(id).unwrap_or(f64::NAN).to_be_bytes());
            }
            Tag::Str => {
                self.str_header(node.range().len());
                self.out.keep(node.range());
            }
            Tag::JsonStr => {
                let text = self.doc.text(id).unwrap_or_default();
                self.str_header(text.len());
                self.out.put(text.as_bytes());
            }
            // None. The JSON reader makes no other type.
            _ => self.out.put(&[op::NONE]),
        }
    }

    fn int(&mut self, id: NodeId) {
        let small = str::from_utf8(&self.doc.content(id)).ok().and_then(|text| text.parse::<i32>().ok());
        match small {
            Some(value) if let Ok(value) = u8::try_from(value) => self.out.put(&[op::BININT1, value]),
            Some(value) => {
                self.out.put(&[op::BININT]);
                self.out.put(&value.to_le_bytes());
            }
            None => {
                let mut opcode = Vec::new();
                put_long(&mut opcode, &self.doc.int(id).unwrap_or_default().to_signed_bytes_le());
                self.out.put(&opcode);
            }
        }
    }

    fn str_header(&mut self, length: usize) {
        if let Ok(length) = u8::try_from(length) {
            self.out.put(&[op::SHORT_BINUNICODE, length]);
        } else {
            // Lossless: a str is part of a body, which is shorter than 4 GiB.
            self.out.put(&[op::BINUNICODE]);
            self.out.put(&(length as u32).to_le_bytes());
        }
    }
}

impl Output for Writer<'_> {
    fn put(&mut self, opcodes: &[u8]) {
        self.out.put(opcodes);
    }

    fn value(&mut self, id: NodeId) {
        for step in Walk::from(self.doc, id) {
            match step {
                Step::Enter { edge, .. } if self.placeholder == Some(edge) => self.placeholder_offset = self.out.len(),
                Step::Enter { node, .. } => match self.doc.node(node).tag {
                    Tag::List => self.open(op::EMPTY_LIST, node),
                    Tag::Dict => self.open(op::EMPTY_DICT, node),
                    _ => self.scalar(node),
                },
                Step::Leave(node) if self.is_empty(node) => {}
                Step::Leave(node) if self.doc.node(node).tag == Tag::Dict => self.out.put(&[op::SETITEMS]),
                Step::Leave(_) => self.out.put(&[op::APPENDS]),
            }
        }
    }

    fn fresh_memo(&mut self) -> u32 {
        self.next_memo += 1;
        self.next_memo - 1
    }
}
