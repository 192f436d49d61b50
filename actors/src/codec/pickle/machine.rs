//! The machine's stack and memo.

use std::fmt::Display;
use std::ops::Range;

use crate::codec::DecodeError;
use crate::codec::bounds::{MAX_MEMO_GAP, MAX_VALUES};
use crate::codec::doc::{Doc, NodeId, Tag};
use crate::codec::error::{grouped, malformed};

/// An opcode that cannot always be passed on as it is; where it is, unless a value tells.
#[derive(Debug)]
pub(super) enum Rewrite {
    /// FRAME: its length may no longer be right, and a pickle needs none.
    Frame(u32),
    /// MEMOIZE, and the number that it stands for: how many came before.
    Memoize(u32, u32),
    /// An int in decimal that is too long for the peers.
    TextInt(NodeId),
}

pub(super) struct Machine<'a> {
    pub(super) source: &'a [u8],
    pub(super) pos: usize,
    /// Where the last FRAME ends.
    pub(super) frame_end: usize,
    /// Where the opcode at work is.
    pub(super) at: usize,
    pub(super) doc: Doc,
    pub(super) stack: Vec<NodeId>,
    /// The stack's length at each open MARK.
    pub(super) marks: Vec<usize>,
    pub(super) memo: Vec<Option<NodeId>>,
    /// How many memo numbers are taken, which is not the length of `memo` where these have gaps.
    pub(super) memo_len: u32,
    pub(super) rewrites: Vec<Rewrite>,
    pub(super) protocol: u8,
    /// How many items of lists have been copied into sets: one list may be copied many times.
    pub(super) copied: usize,
    /// How many bytes calls have made; see [`crate::codec::bounds::MAX_CALL_GROWTH`].
    pub(super) called: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn on(source: &'a [u8], doc: Doc) -> Machine<'a> {
        Machine {
            source,
            pos: 0,
            frame_end: 0,
            at: 0,
            doc,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            memo_len: 0,
            rewrites: Vec::new(),
            protocol: 0,
            copied: 0,
            called: 0,
        }
    }

    /// A refusal of the opcode at work.
    pub(super) fn refuse(&self, what: impl Display) -> DecodeError {
        malformed(what, self.at)
    }

    pub(super) fn rewrite(&mut self, rewrite: Rewrite) -> Result<(), DecodeError> {
        self.room(self.rewrites.len())?;
        self.rewrites.push(rewrite);
        Ok(())
    }

    pub(super) fn room(&self, used: usize) -> Result<(), DecodeError> {
        if used < MAX_VALUES {
            return Ok(());
        }
        Err(self.refuse(format!("more than {} values, frames or marks at once", grouped(MAX_VALUES))))
    }

    pub(super) fn push(&mut self, id: NodeId) -> Result<(), DecodeError> {
        self.room(self.stack.len())?;
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn push_new(&mut self, tag: Tag, range: Range<usize>) -> Result<(), DecodeError> {
        let id = self.doc.add(tag, self.at, range)?;
        self.push(id)
    }

    pub(super) fn push_int(&mut self, value: i32) -> Result<(), DecodeError> {
        let id = self.doc.add_int(self.at, value)?;
        self.push(id)
    }

    /// What is on the stack since the last MARK: nothing else can be reached.
    pub(super) fn reachable(&self) -> &[NodeId] {
        &self.stack[self.marks.last().copied().unwrap_or(0)..]
    }

    pub(super) fn top(&self) -> Result<NodeId, DecodeError> {
        self.reachable().last().copied().ok_or_else(|| self.refuse("opcode without a value to work on"))
    }

    pub(super) fn pop(&mut self) -> Result<NodeId, DecodeError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Closes the last MARK: what follows it starts there.
    pub(super) fn pop_mark(&mut self) -> Result<usize, DecodeError> {
        self.marks.pop().ok_or_else(|| self.refuse("opcode without a MARK before it"))
    }

    pub(super) fn text_memo_number(&mut self) -> Result<usize, DecodeError> {
        let range = self.line()?;
        let digits = &self.source[range];
        let number = str::from_utf8(digits).ok().filter(|_| digits.iter().all(u8::is_ascii_digit));
        number.and_then(|number| number.parse().ok()).ok_or_else(|| self.refuse("memo number that is no number"))
    }

    pub(super) fn remember(&mut self, number: usize) -> Result<(), DecodeError> {
        let value = self.top()?;
        let bound = self.doc.node_count() + MAX_MEMO_GAP;
        if number >= bound {
            let (number, bound) = (grouped(number), grouped(MAX_MEMO_GAP));
            return Err(self.refuse(format!("memo number {number}, {bound} or more beyond the values so far,")));
        }
        if self.memo.len() <= number {
            self.memo.resize(number + 1, None);
        }
        if self.memo[number].replace(value).is_none() {
            self.memo_len += 1;
        }
        Ok(())
    }

    pub(super) fn recall(&mut self, number: usize) -> Result<(), DecodeError> {
        match self.memo.get(number).copied().flatten() {
            Some(value) => self.push(value),
            None => Err(self.refuse(format!("memo number {}, under which nothing is kept,", grouped(number)))),
        }
    }
}
