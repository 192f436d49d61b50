//! The opcodes of a pickle that cannot always be forwarded as they are.

use crate::codec::DecodeError;
use crate::codec::doc::NodeId;

/// An opcode that has to be removed or replaced. Numbers are offsets in the pickle unless said otherwise.
#[derive(Debug)]
pub(super) enum Rewrite {
    /// FRAME. Its length may become wrong, and a pickle needs no frames.
    Frame(u32),
    /// MEMOIZE, and the memo number that it stands for.
    Memoize(u32, u32),
    /// An int in decimal with more digits than the peers accept. It becomes a binary one.
    TextInt(NodeId),
}

/// All such opcodes of a pickle, in their order.
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
