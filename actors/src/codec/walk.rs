//! A walk through a value, depth first, without recursion.

use super::doc::{Doc, EdgeId, NodeId, Tag};

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
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
    /// The value under the key before.
    Value,
}

/// What the walk comes by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// A value. The contents of a container come next, then its [`Step::Leave`].
    Enter {
        node: NodeId,
        place: Place,
        /// The number of the place, [`EdgeId::END`] for the root.
        edge: EdgeId,
    },
    Leave(NodeId),
}

struct Level {
    container: NodeId,
    next: EdgeId,
    place: Place,
}

/// The steps through a value. A value that is shared is come by once for each place; one that contains itself is
/// walked through without end, so whoever walks watches [`Walk::depth`] or the amount.
pub(super) struct Walk<'a> {
    doc: &'a Doc,
    start: Option<NodeId>,
    path: Vec<Level>,
}

impl<'a> Walk<'a> {
    pub(super) fn from(doc: &'a Doc, start: NodeId) -> Walk<'a> {
        Walk { doc, start: Some(start), path: Vec::new() }
    }

    /// How many containers are open.
    pub(super) fn depth(&self) -> usize {
        self.path.len()
    }

    fn enter(&mut self, node: NodeId, place: Place, edge: EdgeId) -> Step {
        let value = self.doc.node(node);
        if value.is_container() {
            let place = match value.tag {
                Tag::Dict => Place::Key { first: true },
                _ => Place::Item { first: true },
            };
            self.path.push(Level { container: node, next: self.doc.first(node), place });
        }
        Step::Enter { node, place, edge }
    }
}

impl Iterator for Walk<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(start) = self.start.take() {
            return Some(self.enter(start, Place::Root, EdgeId::END));
        }
        let level = self.path.last_mut()?;
        let (edge, place) = (level.next, level.place);
        if edge == EdgeId::END {
            let container = level.container;
            self.path.pop();
            return Some(Step::Leave(container));
        }
        level.next = self.doc.next(edge);
        level.place = match place {
            Place::Key { .. } => Place::Value,
            Place::Value => Place::Key { first: false },
            _ => Place::Item { first: false },
        };
        Some(self.enter(self.doc.child(edge), place, edge))
    }
}
