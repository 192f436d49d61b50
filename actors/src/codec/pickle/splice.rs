//! Splicing: builds the outgoing pickle around parts of the incoming one, without decoding them.
//!
//! The pickle is copied up to STOP. In place of STOP come a POP, which drops the incoming value, and a few opcodes that
//! build the new value from parts fetched from the memo.

use super::opcode as op;
use super::rewrite::Rewrite;
use super::scan::Pickle;
use super::{Output, memo_opcode, put_long};
use crate::codec::doc::{NodeId, Tag};
use crate::codec::pieces::Pieces;
use crate::codec::source::Source;

/// A scalar that is not in the memo is copied if its opcode has at most this many bytes. A longer one is memoized and
/// fetched.
const WRITTEN_AGAIN: usize = 256;

/// A part for which a LONG_BINPUT is inserted, because the memo does not hold it.
struct Kept {
    /// The end of the opcode that made it.
    after: usize,
    number: u32,
    part: NodeId,
}

pub(in crate::codec) struct Splice<'a> {
    pickle: &'a Pickle,
    kept: Vec<Kept>,
    next_memo: u32,
    /// What comes after the pickle's own opcodes.
    end: Vec<u8>,
}

impl<'a> Splice<'a> {
    pub(in crate::codec) fn of(pickle: &'a Pickle) -> Splice<'a> {
        Splice { pickle, kept: Vec::new(), next_memo: pickle.memo.end(), end: vec![op::POP] }
    }

    /// How many bytes have been put after the pickle's own opcodes.
    pub(in crate::codec) fn end_len(&self) -> u64 {
        self.end.len() as u64
    }

    pub(in crate::codec) fn finish(mut self) -> Pieces {
        let mut out = Pieces::of(&self.pickle.doc.source);
        self.kept.sort_by_key(|kept| kept.after);
        let mut kept = self.kept.iter().peekable();
        let mut from = 0;
        for rewrite in self.pickle.rewrites.iter() {
            let (start, end) = match *rewrite {
                Rewrite::Frame(at) => (at as usize, at as usize + 9),
                Rewrite::Memoize(at, _) => (at as usize, at as usize + 1),
                Rewrite::TextInt(id) => (self.pickle.doc.node(id).at(), self.opcode_end(id)),
            };
            while let Some(Kept { after, number, .. }) = kept.next_if(|kept| kept.after <= start) {
                out.keep(from..*after);
                out.put(&memo_opcode(op::LONG_BINPUT, *number));
                from = *after;
            }
            let mut replacement = Vec::new();
            match rewrite {
                Rewrite::Frame(_) => {}
                // MEMOIZE uses the number of memo entries, which an inserted LONG_BINPUT has changed.
                Rewrite::Memoize(_, number) if self.kept.first().is_some_and(|first| first.after <= start) => {
                    replacement.extend(memo_opcode(op::LONG_BINPUT, *number));
                }
                Rewrite::Memoize(..) => continue,
                Rewrite::TextInt(id) => {
                    let value = self.pickle.doc.int(*id).unwrap_or_default();
                    put_long(&mut replacement, &value.to_signed_bytes_le());
                }
            }
            out.keep(from..start);
            out.put(&replacement);
            from = end;
        }
        for Kept { after, number, .. } in kept {
            out.keep(from..*after);
            out.put(&memo_opcode(op::LONG_BINPUT, *number));
            from = *after;
        }
        out.keep(from..self.pickle.stop);
        out.put(&self.end);
        out.put(&[op::STOP]);
        out
    }

    /// The end of the opcode that made a value.
    fn opcode_end(&self, id: NodeId) -> usize {
        let (doc, node) = (&self.pickle.doc, self.pickle.doc.node(id));
        match doc.source.byte(node.at()) {
            op::BININT1 => node.at() + 2,
            op::BININT2 => node.at() + 3,
            op::BININT => node.at() + 5,
            op::BINFLOAT => node.at() + 9,
            op::FLOAT => line_end(&doc.source, node.at()),
            op::INT | op::LONG | op::STRING | op::UNICODE => line_end(&doc.source, node.range().end),
            op::REDUCE => node.at() + 1,
            _ if node.is_container() => node.at() + 1,
            _ => node.range().end,
        }
    }
}

/// The offset behind the line feed that ends a line.
fn line_end(source: &Source, from: usize) -> usize {
    let mut rest = source.parts(from..source.len());
    rest.skip_to(|byte| byte == b'\n');
    rest.at() + 1
}

impl Output for Splice<'_> {
    fn put(&mut self, opcodes: &[u8]) {
        self.end.extend_from_slice(opcodes);
    }

    fn value(&mut self, id: NodeId) {
        let (doc, node) = (&self.pickle.doc, self.pickle.doc.node(id));
        match node.tag {
            Tag::None => return self.end.push(op::NONE),
            Tag::True => return self.end.push(op::NEWTRUE),
            Tag::False => return self.end.push(op::NEWFALSE),
            _ => {}
        }
        // Looked up in the memo at the end of the pickle, because a later PUT may have replaced an entry.
        if let Some(number) = self.pickle.memo.number_of(id) {
            return self.memo_get(number);
        }
        if let Some(kept) = self.kept.iter().find(|kept| kept.part == id) {
            return self.memo_get(kept.number);
        }
        let opcode = node.at()..self.opcode_end(id);
        let one_opcode = !node.is_container() && doc.source.byte(opcode.start) != op::REDUCE;
        if one_opcode && opcode.len() <= WRITTEN_AGAIN {
            return doc.source.append_to(&mut self.end, opcode);
        }
        let number = self.fresh_memo();
        self.kept.push(Kept { after: opcode.end, number, part: id });
        self.memo_get(number);
    }

    fn fresh_memo(&mut self) -> u32 {
        self.next_memo += 1;
        self.next_memo - 1
    }
}
