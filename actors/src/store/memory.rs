//! The backend of `--memory`: nothing is on disk, and nothing survives the process.

use bytes::Bytes;

use crate::payload::Payload;
use crate::store::{Change, Durable, Store, StoreError};

/// A store whose records are kept by those who put them: the body that a commit returns is the only reference.
///
/// It is a copy. What is put are parts of a message that was received, and each part keeps the whole message in memory,
/// however much of it is not part of the record.
#[derive(Debug, Default)]
pub struct MemoryStore;

impl Store for MemoryStore {
    fn commit(&mut self, changes: &[Change], _: Durable) -> Result<Vec<Payload>, StoreError> {
        let bodies = changes.iter().filter_map(|change| match change {
            Change::Put { body, .. } => Some(Payload::from_parts(vec![Bytes::from(body.concat())])),
            Change::Remove(_) => None,
        });
        Ok(bodies.collect())
    }
}
