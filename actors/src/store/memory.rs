//! The backend of `--memory`: nothing is on disk, so nothing survives the process.

use bytes::Bytes;

use crate::payload::Payload;
use crate::store::{Change, Durable, Put, Store, StoreError};

/// A store whose owner keeps the records: the body that a commit returns is the only reference to it.
///
/// The body is a copy. The parts that are put are slices of a received message, and each slice keeps the whole message
/// in memory, even what is not part of the record.
#[derive(Debug, Default)]
pub struct MemoryStore;

impl Store for MemoryStore {
    fn commit(&mut self, changes: &[Change], _: Durable) -> Result<Vec<Payload>, StoreError> {
        let bodies = changes.iter().filter_map(|change| match change {
            Change::Put(Put { body, .. }) => Some(Payload::from_parts(vec![Bytes::from(body.concat())])),
            Change::Remove(_) => None,
        });
        Ok(bodies.collect())
    }
}
