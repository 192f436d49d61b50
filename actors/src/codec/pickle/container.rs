//! Containers: what goes into which, and whether it can be hashed where it has to be.

use super::machine::Machine;
use super::reduce::check_plain;
use crate::codec::DecodeError;
use crate::codec::bounds::{MAX_DEPTH, MAX_KEY_VALUES};
use crate::codec::doc::{EdgeId, NodeId, Tag};
use crate::codec::error::grouped;

impl Machine<'_> {
    pub(super) fn build_of(&mut self, count: usize) -> Result<(), DecodeError> {
        if self.reachable().len() < count {
            return Err(self.refuse("tuple of more values than there are"));
        }
        self.build(Tag::Tuple, self.stack.len() - count)
    }

    pub(super) fn build_from_mark(&mut self, tag: Tag) -> Result<(), DecodeError> {
        let start = self.pop_mark()?;
        self.build(tag, start)
    }

    /// Makes a container of what is on the stack from `start`.
    pub(super) fn build(&mut self, tag: Tag, start: usize) -> Result<(), DecodeError> {
        let id = self.doc.add(tag, self.at, 0..0)?;
        self.fill(id, start)?;
        self.push(id)
    }

    pub(super) fn add_last(&mut self, tag: Tag, count: usize) -> Result<(), DecodeError> {
        if self.reachable().len() < count {
            return Err(self.refuse("opcode without a value to work on"));
        }
        self.add_to_top(tag, self.stack.len() - count)
    }

    pub(super) fn add_from_mark(&mut self, tag: Tag) -> Result<(), DecodeError> {
        let start = self.pop_mark()?;
        self.add_to_top(tag, start)
    }

    /// Adds what is on the stack from `start` to the container below.
    fn add_to_top(&mut self, tag: Tag, start: usize) -> Result<(), DecodeError> {
        let fence = self.marks.last().copied().unwrap_or(0);
        let container = match start.checked_sub(1) {
            Some(below) if below >= fence => self.stack[below],
            _ => return Err(self.refuse("items without a container")),
        };
        if self.doc.node(container).tag != tag {
            let (found, wanted) = (self.doc.node(container).tag.type_name(), tag.type_name());
            return Err(self.refuse(format!("items for {wanted} are added to {found}")));
        }
        self.fill(container, start)
    }

    /// Moves what is on the stack from `start` into a container, in that order.
    fn fill(&mut self, container: NodeId, start: usize) -> Result<(), DecodeError> {
        let tag = self.doc.node(container).tag;
        if tag == Tag::Dict && !(self.stack.len() - start).is_multiple_of(2) {
            return Err(self.refuse("key without a value"));
        }
        for index in start..self.stack.len() {
            let child = self.stack[index];
            check_plain(&self.doc, child)?;
            if matches!(tag, Tag::Set | Tag::FrozenSet) || tag == Tag::Dict && (index - start).is_multiple_of(2) {
                self.check_key(child)?;
            }
            self.doc.append(container, child, self.at)?;
        }
        self.stack.truncate(start);
        if matches!(tag, Tag::Tuple | Tag::FrozenSet) {
            self.sum_up_hash(container)?;
        }
        Ok(())
    }

    /// Adds a list's items to a set.
    pub(super) fn copy_to_set(&mut self, list: NodeId, set: NodeId) -> Result<(), DecodeError> {
        let mut edge = self.doc.first(list);
        while edge != EdgeId::END {
            self.copied += 1;
            if self.doc.is_brief() && self.copied > self.source.len() {
                return Err(DecodeError::TakesLonger);
            }
            let child = self.doc.child(edge);
            self.check_key(child)?;
            self.doc.append(set, child, self.at)?;
            edge = self.doc.next(edge);
        }
        if self.doc.node(set).tag == Tag::FrozenSet {
            self.sum_up_hash(set)?;
        }
        Ok(())
    }

    /// Refuses a dict's key or a set's item that cannot be hashed, or only with much work.
    fn check_key(&self, id: NodeId) -> Result<(), DecodeError> {
        let node = self.doc.node(id);
        if node.hash_size == 0 {
            let found = node.tag.type_name();
            return Err(self.refuse(format!("dict key or set item that is {found} and cannot be hashed,")));
        }
        let size = usize::from(node.hash_size);
        if size > MAX_KEY_VALUES {
            let bound = grouped(MAX_KEY_VALUES);
            return Err(self.refuse(format!("dict key or set item that holds more than {bound} values")));
        }
        Ok(())
    }

    /// Works out what hashing a tuple or a frozenset takes.
    fn sum_up_hash(&mut self, id: NodeId) -> Result<(), DecodeError> {
        let (mut depth, mut size, mut hashable) = (0, 1_u16, true);
        let mut edge = self.doc.first(id);
        while edge != EdgeId::END {
            let child = self.doc.node(self.doc.child(edge));
            depth = depth.max(child.hash_depth);
            size = size.saturating_add(child.hash_size);
            hashable &= child.hash_size > 0;
            edge = self.doc.next(edge);
        }
        let Some(depth) = depth.checked_add(1) else {
            return Err(self.refuse(format!("nesting deeper than {MAX_DEPTH}")));
        };
        self.doc.set_hash(id, depth, if hashable { size } else { 0 });
        Ok(())
    }
}
