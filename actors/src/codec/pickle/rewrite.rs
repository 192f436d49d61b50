//! The opcodes of a pickle that cannot always be forwarded as they are.

use crate::codec::DecodeError;
use crate::codec::doc::NodeId;

/// An opcode that may have to be removed or replaced.
#[derive(Debug)]
pub(super) enum Rewrite {
    /// FRAME, at this offset. Its length may become wrong, and a pickle needs no frames.
    Frame(u32),
    /// MEMOIZE, at this offset, and the memo number that it assigns.
    Memoize(u32, u32),
    /// A decimal int with more digits than the peers accept. It is written in binary instead.
    TextInt(NodeId),
}

/// All such opcodes of a pickle, in order.
#[derive(Debug, Default)]
pub(super) struct Rewrites(Vec<Rewrite>);

impl Rewrites {
    pub(super) fn push(&mut self, rewrite: Rewrite, at: usize) -> Result<(), DecodeError> {
        super::check_count(self.0.len(), at)?;
        self.0.push(rewrite);
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Rewrite> {
        self.0.iter()
    }
}
