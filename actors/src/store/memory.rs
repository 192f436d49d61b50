//! The backend of `--memory`: nothing is on disk, so nothing survives the process.

use crate::payload::Payload;
use crate::store::{Change, Durable, Put, Store, StoreError};

/// A store whose owner keeps the records: the body that a commit returns is the only reference to it.
///
/// The body is a copy. The parts that are put are slices of a received message, and each slice keeps the whole message
/// in memory, even what is not part of the record.
#[derive(Debug, Default)]
pub struct MemoryStore;

/// A copy in memory.
fn copy(body: &Payload) -> Payload {
    let mut copy = Vec::with_capacity(body.len() as usize);
    // bodies in memory are read without errors, and there are no others in this store
    let _ = body.for_each_part(|part| {
        copy.extend_from_slice(part);
        Ok(())
    });
    Payload::from_parts(vec![copy.into()])
}

impl Store for MemoryStore {
    fn commit(&mut self, changes: &[Change], _: Durable) -> Result<Vec<Payload>, StoreError> {
        let bodies = changes.iter().filter_map(|change| match change {
            Change::Put(Put { body, .. }) => Some(copy(body)),
            Change::Remove(_) => None,
        });
        Ok(bodies.collect())
    }
}
