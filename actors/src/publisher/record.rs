//! What a record of the outbox's store holds beside its body.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::age::BootTime;
use crate::codec::{Format, ForwardedType, OutgoingMessage};
use crate::idempotency::Digest;
use crate::store::{NO_RECORD, Seq};

/// The meta of a message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutboxMeta {
    pub message_id: Uuid,
    #[serde(with = "FormatName")]
    pub format: Format,
    #[serde(with = "TypeName")]
    pub kind: ForwardedType,
    pub user_id: String,
    pub stored_at_ms: u64,
}

/// The meta of a record without a body: another record is parked.
#[derive(Debug, Serialize, Deserialize)]
pub struct ParkedMarker {
    pub parked: Seq,
    pub reason: String,
    pub since_ms: u64,
}

/// The meta of a record without a body: a request with this idempotency key was accepted.
///
/// Versions without idempotency keys take it for the marker of a parked message that is not there, and remove it. So
/// they open a store with keys, and forget the keys.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeyRecord {
    #[serde(with = "uuid::serde::simple")]
    key: Uuid,
    #[serde(with = "uuid::serde::simple")]
    body: Uuid,
    /// [`NO_RECORD`]
    parked: Seq,
    /// Empty.
    reason: String,
    /// When the request arrived.
    pub since_ms: u64,
    /// When this record was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootTime>,
}

impl KeyRecord {
    pub fn new(key: Digest, body: Digest, since_ms: u64, boot: Option<BootTime>) -> Self {
        let [key, body] = [key, body].map(Uuid::from_bytes);
        Self { key, body, parked: NO_RECORD, reason: String::new(), since_ms, boot }
    }

    /// The key, and the digest of the body.
    pub fn digests(&self) -> (Digest, Digest) {
        (self.key.into_bytes(), self.body.into_bytes())
    }
}

/// The meta of a record that is no message.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Note {
    /// First, because it has the fields of the other.
    Key(KeyRecord),
    Parked(ParkedMarker),
}

/// [`Format`] as it is written in a record.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Format", rename_all = "lowercase")]
enum FormatName {
    Json,
    Pickle,
}

/// [`ForwardedType`] as it is written in a record.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ForwardedType", rename_all = "SCREAMING_SNAKE_CASE")]
enum TypeName {
    FrameRendered,
    RenderCompleted,
}

impl OutboxMeta {
    /// The meta of a new message.
    pub fn new(message: &OutgoingMessage, message_id: Uuid, stored_at_ms: u64) -> Self {
        Self { message_id, format: message.format, kind: message.kind, user_id: message.user_id.clone(), stored_at_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_an_older_program_takes_it_for_a_marker_of_nothing() {
        let record = KeyRecord::new([7; 16], [8; 16], 1_764_196_000_000, None);
        let text = serde_json::to_string(&record).expect("strings and numbers");
        match serde_json::from_str(&text) {
            Ok(Note::Key(read)) => assert_eq!((read.digests(), read.since_ms), (record.digests(), record.since_ms)),
            other => panic!("{other:?}"),
        }
        let marker: ParkedMarker = serde_json::from_str(&text).expect("it has the fields of a marker");
        assert_eq!(marker.parked, NO_RECORD);
        serde_json::from_str::<OutboxMeta>(&text).expect_err("it is no message");
        let marker = serde_json::to_string(&marker).expect("strings and numbers");
        assert!(matches!(serde_json::from_str(&marker), Ok(Note::Parked(_))), "a marker is no key");
    }
}
