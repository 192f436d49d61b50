//! What waits for the user manager: the messages in the order in which they came, and which of them are out.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::Either;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::{Format, ForwardedType, OutgoingMessage};
use crate::payload::Payload;
use crate::store::{Recovered, Seq, cost};

/// The messages of the outbox. Each one waits, or is out: on its way to the broker, or lent to the user manager; or it
/// is parked, since the broker has refused it for good.
#[derive(Debug, Default)]
pub struct Outbox {
    messages: BTreeMap<Seq, OutboxMessage>,
    waiting: BTreeSet<Seq>,
    parked: BTreeMap<Seq, Parked>,
    /// What all of them take of the limit.
    bytes: u64,
}

/// One message.
#[derive(Debug)]
pub struct OutboxMessage {
    pub meta: OutboxMeta,
    pub payload: Payload,
    /// What it takes of the limit, in bytes.
    pub cost: u64,
    /// How often it was lent.
    pub lent: u32,
}

/// Why a message is parked.
#[derive(Debug)]
pub struct Parked {
    pub reason: String,
    pub since_ms: u64,
    /// The record that says so, once there is one.
    pub mark: Option<Seq>,
}

/// What a record says that has no body: another record is parked.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mark {
    pub parked: Seq,
    pub reason: String,
    pub since_ms: u64,
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
    /// The outbox as a store has kept it, and the marks in the store that are of no use any more.
    ///
    /// # Errors
    /// The number of a record that is no record of an outbox.
    pub fn recover(recovered: Vec<Recovered>) -> Result<(Self, Vec<Seq>), Seq> {
        let mut outbox = Self::default();
        let mut useless = Vec::new();
        for record in recovered {
            match record.decode_meta::<OutboxMeta, Mark>()? {
                Either::Left(meta) => {
                    let cost = cost(record.meta.len(), record.body.len());
                    outbox.add(record.seq, meta, record.body, cost);
                }
                Either::Right(Mark { parked, reason, since_ms }) => {
                    let mark = Some(record.seq);
                    // a mark is younger than what it marks
                    if outbox.waiting.remove(&parked) {
                        outbox.parked.insert(parked, Parked { reason, since_ms, mark });
                    } else {
                        useless.extend(mark);
                    }
                }
            }
        }
        Ok((outbox, useless))
    }

    pub fn add(&mut self, seq: Seq, meta: OutboxMeta, payload: Payload, cost: u64) {
        self.bytes += cost;
        self.messages.insert(seq, OutboxMessage { meta, payload, cost, lent: 0 });
        self.waiting.insert(seq);
    }

    /// Takes a message out for good. Returns its mark, which goes too.
    pub fn remove(&mut self, seq: Seq) -> Option<Seq> {
        let message = self.messages.remove(&seq)?;
        self.waiting.remove(&seq);
        self.bytes -= message.cost;
        self.parked.remove(&seq)?.mark
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

    /// A message is out, whether it was before or not.
    pub fn take_out(&mut self, seq: Seq) {
        self.waiting.remove(&seq);
    }

    /// A message that was out waits again, in its old place.
    pub fn put_back(&mut self, seq: Seq) {
        if self.messages.contains_key(&seq) && !self.is_parked(seq) {
            self.waiting.insert(seq);
        }
    }

    /// The broker has refused a message that was out for good: it is kept, but waits no longer.
    pub fn park(&mut self, seq: Seq, reason: String, since_ms: u64) {
        if let Some(OutboxMessage { meta, payload, .. }) = self.messages.get(&seq) {
            let OutboxMeta { message_id, user_id, kind, .. } = meta;
            let len = payload.len();
            log::error!("message {message_id} ({kind:?} of {user_id:?}, {len} bytes) is parked: {reason}");
            self.parked.insert(seq, Parked { reason, since_ms, mark: None });
        }
    }

    /// The record that says that a message is parked. Returned where nobody needs it any more.
    pub fn marked(&mut self, seq: Seq, mark: Seq) -> Option<Seq> {
        match self.parked.get_mut(&seq) {
            Some(parked) => parked.mark.replace(mark),
            None => Some(mark),
        }
    }

    /// A parked message waits again, in its old place. Returns its mark, which is of no use any more.
    pub fn unpark(&mut self, seq: Seq) -> Option<Seq> {
        let parked = self.parked.remove(&seq)?;
        self.waiting.insert(seq);
        parked.mark
    }

    pub fn is_parked(&self, seq: Seq) -> bool {
        self.parked.contains_key(&seq)
    }

    /// The parked messages in their order.
    pub fn parked(&self) -> impl ExactSizeIterator<Item = (Seq, &Parked)> {
        self.parked.iter().map(|(&seq, parked)| (seq, parked))
    }

    /// The parked message of this id.
    pub fn find_parked(&self, message_id: Uuid) -> Option<Seq> {
        self.parked
            .keys()
            .copied()
            .find(|seq| self.messages.get(seq).is_some_and(|message| message.meta.message_id == message_id))
    }

    pub fn get(&self, seq: Seq) -> Option<&OutboxMessage> {
        self.messages.get(&seq)
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
