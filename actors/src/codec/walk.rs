//! Walks through a value depth-first, without recursion.

use super::doc::{Doc, EdgeId, NodeId, Tag};

/// Where a value is in its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// The walk started here.
    Root,
    /// An item of a container.
    Item {
        /// Whether it is the container's first.
        first: bool,
    },
    /// A key of a dict.
    Key {
        /// Whether it is the dict's first.
        first: bool,
    },
    /// The value under the preceding key.
    Value,
}

/// One step of a walk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// A value. If it is a container, its items follow, and then its [`Step::Leave`].
    Enter {
        node: NodeId,
        position: Position,
        /// The position in the container; [`EdgeId::END`] for the root.
        edge: EdgeId,
    },
    Leave(NodeId),
}

struct Level {
    container: NodeId,
    next: EdgeId,
    position: Position,
}

/// The steps of a walk through a value. A shared value is visited once for each position that holds it. The walk
/// through a value that contains itself never ends, so the caller must bound [`Walk::depth`] or the number of steps.
pub(super) struct Walk<'a> {
    doc: &'a Doc,
    start: Option<NodeId>,
    path: Vec<Level>,
}

impl<'a> Walk<'a> {
    pub(super) fn from(doc: &'a Doc, start: NodeId) -> Walk<'a> {
        Walk { doc, start: Some(start), path: Vec::new() }
    }

    /// How many containers have been entered and not left.
    pub(super) fn depth(&self) -> usize {
        self.path.len()
    }

    fn enter(&mut self, node: NodeId, position: Position, edge: EdgeId) -> Step {
        let value = self.doc.node(node);
        if value.is_container() {
            let position = match value.tag {
                Tag::Dict => Position::Key { first: true },
                _ => Position::Item { first: true },
            };
            self.path.push(Level { container: node, next: self.doc.first(node), position });
        }
        Step::Enter { node, position, edge }
    }
}

impl Iterator for Walk<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(start) = self.start.take() {
            return Some(self.enter(start, Position::Root, EdgeId::END));
        }
        let level = self.path.last_mut()?;
        let (edge, position) = (level.next, level.position);
        if edge == EdgeId::END {
            let container = level.container;
            self.path.pop();
            return Some(Step::Leave(container));
        }
        level.next = self.doc.next(edge);
        level.position = match position {
            Position::Key { .. } => Position::Value,
            Position::Value => Position::Key { first: false },
            _ => Position::Item { first: false },
        };
        Some(self.enter(self.doc.child(edge), position, edge))
    }
}
