//! Whether the service accepts work, and if not, why.

use serde::Serialize;
use user_http_actors::messages::{BufferState, OutboxState};
use user_http_actors::store::StoreError;

/// The state of both stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreHealth {
    Ok,
    Full,
    Failed,
}

/// The worse state of the two stores. An actor whose state is not known counts as well. One that is a database which
/// does not answer has failed for now.
pub fn store_health(buffer: Option<&BufferState>, outbox: Option<&OutboxState>) -> StoreHealth {
    worst(failures(buffer, outbox))
}

/// The worse state of the stores that are on the disk of this gateway.
pub fn disk_health(buffer: Option<&BufferState>, outbox: Option<&OutboxState>) -> StoreHealth {
    worst(failures(buffer, outbox).filter(|failure| !matches!(failure, StoreError::Database(_))))
}

/// Why the buffer's database takes no messages, if it has one.
pub fn database_failure(buffer: Option<&BufferState>) -> Option<&StoreError> {
    buffer?.store_failure.as_ref().filter(|failure| matches!(failure, StoreError::Database(_)))
}

fn worst<'a>(failures: impl Iterator<Item = &'a StoreError>) -> StoreHealth {
    let health = failures.map(|failure| match failure {
        StoreError::NoSpace(_) | StoreError::Busy(_) => StoreHealth::Full,
        // Concerns a single record, not the state of the store.
        StoreError::TooLarge { .. } => StoreHealth::Ok,
        StoreError::Failed(_) | StoreError::Gone(_) | StoreError::Database(_) => StoreHealth::Failed,
    });
    health.max_by_key(|health| *health == StoreHealth::Failed).unwrap_or(StoreHealth::Ok)
}

/// The parts that accept no work, and why.
pub fn not_ready(buffer: Option<&BufferState>, outbox: Option<&OutboxState>) -> Vec<String> {
    let mut not_ready = Vec::new();
    not_ready.extend(database_failure(buffer).map(|error| format!("buffer: {error}")));
    match disk_health(buffer, outbox) {
        StoreHealth::Ok => {}
        StoreHealth::Full if is_out_of_resources(buffer, outbox) => {
            not_ready.push("store: out of file descriptors or memory; raise the limits of the service".to_owned())
        }
        StoreHealth::Full => not_ready.push("store: no space left on the disk".to_owned()),
        StoreHealth::Failed => not_ready.push("store: the disk has failed; see the log".to_owned()),
    }
    if let Some(OutboxState { full: true, bytes, max_bytes, .. }) = outbox {
        not_ready.push(format!("outbox: full, {bytes} of {max_bytes} bytes are in use"));
    }
    not_ready
}

/// Whether a store lacks file descriptors or memory instead of disk space.
pub fn is_out_of_resources(buffer: Option<&BufferState>, outbox: Option<&OutboxState>) -> bool {
    failures(buffer, outbox).any(|failure| matches!(failure, StoreError::Busy(_)))
}

fn failures<'a>(
    buffer: Option<&'a BufferState>,
    outbox: Option<&'a OutboxState>,
) -> impl Iterator<Item = &'a StoreError> {
    let buffer = buffer.and_then(|buffer| buffer.store_failure.as_ref());
    buffer.into_iter().chain(outbox.and_then(|outbox| outbox.store_failure.as_ref()))
}
