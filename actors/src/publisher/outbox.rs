//! What waits for the user manager: the messages in the order in which they came, and which of them are out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::{Format, ForwardedType, OutgoingMessage};
use crate::payload::Payload;
use crate::store::{Recovered, Seq};

/// The messages of the outbox. Each one waits, or is out: on its way to the broker, or lent to the user manager.
#[derive(Debug, Default)]
pub struct Outbox {
    messages: BTreeMap<Seq, OutboxMessage>,
    waiting: BTreeSet<Seq>,
    parked: usize,
    bytes: u64,
}

/// One message.
#[derive(Debug)]
pub struct OutboxMessage {
    pub meta: OutboxMeta,
    pub payload: Payload,
    /// How often it was lent.
    pub lent: u32,
}

/// What is kept of a message beside its body.
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

impl Outbox {
    /// The outbox as a store has kept it.
    ///
    /// # Errors
    /// The number of a record that is no message of an outbox.
    pub fn recover(recovered: Vec<Recovered>) -> Result<Self, Seq> {
        let mut outbox = Self::default();
        for record in recovered {
            let meta = serde_json::from_slice(&record.meta).map_err(|_| record.seq)?;
            outbox.add(record.seq, meta, record.body);
        }
        Ok(outbox)
    }

    pub fn add(&mut self, seq: Seq, meta: OutboxMeta, payload: Payload) {
        self.bytes += payload.len();
        self.messages.insert(seq, OutboxMessage { meta, payload, lent: 0 });
        self.waiting.insert(seq);
    }

    /// Takes a message out for good.
    pub fn remove(&mut self, seq: Seq) -> Option<OutboxMessage> {
        let message = self.messages.remove(&seq)?;
        self.waiting.remove(&seq);
        self.bytes -= message.payload.len();
        Some(message)
    }

    /// The oldest message that waits.
    pub fn first_waiting(&self) -> Option<(Seq, &OutboxMessage)> {
        let seq = *self.waiting.first()?;
        self.messages.get(&seq).map(|message| (seq, message))
    }

    /// Marks the oldest message that waits as out, and returns it.
    pub fn take_first_waiting(&mut self) -> Option<(Seq, &mut OutboxMessage)> {
        let seq = self.waiting.pop_first()?;
        self.messages.get_mut(&seq).map(|message| (seq, message))
    }

    /// A message that was out waits again, in its old place.
    pub fn put_back(&mut self, seq: Seq) {
        if self.messages.contains_key(&seq) {
            self.waiting.insert(seq);
        }
    }

    /// A message that was out can never arrive: it is kept, but waits no longer.
    pub fn park(&mut self, seq: Seq, reason: &str) {
        if let Some(OutboxMessage { meta, payload, .. }) = self.messages.get(&seq) {
            let OutboxMeta { message_id, user_id, kind, .. } = meta;
            let len = payload.len();
            log::error!(
                "message {message_id} ({kind:?} of {user_id:?}, {len} bytes) is set aside until a restart: {reason}"
            );
            self.parked += 1;
        }
    }

    /// How many messages are kept that can never arrive.
    pub fn parked(&self) -> usize {
        self.parked
    }

    pub fn get_mut(&mut self, seq: Seq) -> Option<&mut OutboxMessage> {
        self.messages.get_mut(&seq)
    }

    /// The messages in their order.
    pub fn iter(&self) -> impl Iterator<Item = (Seq, &OutboxMessage)> {
        self.messages.iter().map(|(&seq, message)| (seq, message))
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
