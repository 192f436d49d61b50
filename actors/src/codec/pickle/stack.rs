//! The stack of the pickle machine, with its marks.

use crate::codec::DecodeError;
use crate::codec::doc::NodeId;
use crate::codec::error::malformed;

/// The values on the stack. Errors name `at`, the offset of the current opcode.
#[derive(Debug, Default)]
pub(super) struct Stack {
    values: Vec<NodeId>,
    /// The stack's length at each open MARK.
    marks: Vec<usize>,
}

impl Stack {
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn push(&mut self, id: NodeId, at: usize) -> Result<(), DecodeError> {
        super::check_count(self.values.len(), at)?;
        self.values.push(id);
        Ok(())
    }

    /// The value on top. Opcodes cannot reach values below the last MARK.
    pub(super) fn top(&self, at: usize) -> Result<NodeId, DecodeError> {
        self.values[self.fence()..]
            .last()
            .copied()
            .ok_or_else(|| malformed("opcode needs a value, but the stack has none", at))
    }

    pub(super) fn pop(&mut self, at: usize) -> Result<NodeId, DecodeError> {
        let top = self.top(at)?;
        self.values.pop();
        Ok(top)
    }

    pub(super) fn mark(&mut self, at: usize) -> Result<(), DecodeError> {
        super::check_count(self.marks.len(), at)?;
        self.marks.push(self.values.len());
        Ok(())
    }

    /// Removes the last MARK. Returns the index of the first value above it.
    pub(super) fn pop_mark(&mut self, at: usize) -> Result<usize, DecodeError> {
        self.marks.pop().ok_or_else(|| malformed("opcode needs a MARK, but the stack has none", at))
    }

    /// Removes the last MARK if no value is above it, as POP does. Returns whether there was one.
    pub(super) fn pop_bare_mark(&mut self) -> bool {
        let is_bare = self.marks.last() == Some(&self.values.len());
        if is_bare {
            self.marks.pop();
        }
        is_bare
    }

    /// The index of the first of the last `count` values. `None` if fewer are above the last MARK.
    pub(super) fn start_of_last(&self, count: usize) -> Option<usize> {
        self.values.len().checked_sub(count).filter(|start| *start >= self.fence())
    }

    /// The values from this index to the top.
    pub(super) fn from(&self, start: usize) -> &[NodeId] {
        &self.values[start..]
    }

    /// The value below this index, if it is in reach.
    pub(super) fn below(&self, start: usize) -> Option<NodeId> {
        start.checked_sub(1).filter(|below| *below >= self.fence()).map(|below| self.values[below])
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
    }

    /// The index of the lowest value in reach.
    fn fence(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }
}
