//! The backend of `--memory`: nothing is on disk, and nothing survives the process.

use crate::payload::Payload;
use crate::store::{Change, Committed, Durable, Store, StoreError};

/// A store whose records are kept by those who put them: the body that a commit returns is the only reference.
#[derive(Debug, Default)]
pub struct MemoryStore;

impl Store for MemoryStore {
    fn commit(&mut self, changes: &[Change], _: Durable) -> Result<Committed, StoreError> {
        let bodies = changes.iter().filter_map(|change| match change {
            Change::Put { body, .. } => Some(Payload::from_parts(body.clone())),
            Change::Remove(_) => None,
        });
        Ok(Committed { bodies: bodies.collect(), moved: Vec::new() })
    }
}
