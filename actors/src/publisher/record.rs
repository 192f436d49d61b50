//! What a record of the outbox's store holds beside its body.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::{Format, ForwardedType, OutgoingMessage};
use crate::store::Seq;

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
    pub fn new(message: &OutgoingMessage, stored_at_ms: u64) -> Self {
        Self {
            message_id: Uuid::new_v4(),
            format: message.format,
            kind: message.kind,
            user_id: message.user_id.clone(),
            stored_at_ms,
        }
    }
}
