//! Bounds how deep the containers of a pickle are nested. Checked after the whole pickle is read, because a container
//! can be filled after it has been put into another.

use crate::codec::DecodeError;
use crate::codec::bounds::MAX_DEPTH;
use crate::codec::doc::{Doc, EdgeId, NodeId};
use crate::codec::error::malformed;

/// The height of a container that is on the current path. Reaching it again means a cycle.
const OPEN: u16 = u16::MAX;

struct Level {
    container: NodeId,
    next: EdgeId,
    /// The greatest height of the children measured so far.
    height: u16,
}

/// Refuses a pickle that is nested deeper than [`MAX_DEPTH`]. A container that contains itself counts once.
pub(super) fn check(doc: &Doc) -> Result<(), DecodeError> {
    if !doc.node(doc.root).is_container() {
        return Ok(());
    }
    // Each container is measured once, however often it is shared. The height is 0 before that, and for empty ones.
    let mut heights = vec![0_u16; doc.node_count()];
    heights[doc.root.index()] = OPEN;
    let mut path = vec![Level { container: doc.root, next: doc.first(doc.root), height: 0 }];
    while let Some(level) = path.last_mut() {
        if level.next == EdgeId::END {
            let height = level.height + 1;
            heights[level.container.index()] = height;
            path.pop();
            if let Some(outer) = path.last_mut() {
                outer.height = outer.height.max(height);
            }
            continue;
        }
        let child = doc.child(level.next);
        level.next = doc.next(level.next);
        if !doc.node(child).is_container() {
            continue;
        }
        let measured = match heights[child.index()] {
            OPEN => continue,
            known => known,
        };
        let height = measured.max(1);
        level.height = level.height.max(height);
        if path.len() + usize::from(height) > MAX_DEPTH {
            return Err(malformed(format!("nesting deeper than {MAX_DEPTH}"), doc.node(child).at()));
        }
        if measured == 0 && doc.first(child) != EdgeId::END {
            heights[child.index()] = OPEN;
            path.push(Level { container: child, next: doc.first(child), height: 0 });
        }
    }
    Ok(())
}
