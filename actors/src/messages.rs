//! Every message that the actors take, and its reply.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use actix::{Message, MessageResponse};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::broker::Fingerprint;
use crate::buffer::LeasedBufferMsg;
use crate::codec::{BlendHole, BufferMsg, Format, ForwardedType, OutgoingMessage};
use crate::error::Error;
use crate::payload::Payload;
use crate::publisher::NextMessage;
use crate::store::{StoreError, StoreEvent};

/// The name under which a message is buffered: whatever string the communication interface has chosen.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct BufferUuid(Arc<str>);

impl BufferUuid {
    /// The name as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for BufferUuid {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<&str> for BufferUuid {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<BufferUuid> for String {
    fn from(name: BufferUuid) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Debug for BufferUuid {
    /// Escaped: the name comes from outside and may end up in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// To [`BufferActor`](crate::BufferActor): keep this message. The reply comes when it is on stable storage.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct AddBufferMsg {
    /// The name to keep it under; an earlier message of that name is replaced.
    pub buffer_uuid: BufferUuid,
    /// The message.
    pub message: BufferMsg,
    /// Where it comes from a broker, which may deliver it again after it was acknowledged.
    pub delivery: Option<BrokerDelivery>,
}

/// Tells one delivery of a broker from others.
#[derive(Clone, Copy, Debug)]
pub struct BrokerDelivery {
    /// What is delivered.
    pub fingerprint: Fingerprint,
    /// Whether the broker says that it may have delivered it before. Then it is not buffered again where a message of
    /// this fingerprint is held, or has gone within the last hour.
    pub redelivered: bool,
}

/// To [`BufferActor`](crate::BufferActor): a message of the broker with this fingerprint was not stored, since a later one
/// of its UUID was; a redelivery must not bring it back. The reply comes when that is on stable storage.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct RememberReplaced {
    /// Of the message that was not stored.
    pub fingerprint: Fingerprint,
}

/// To [`BufferActor`](crate::BufferActor): let me deliver this message; nobody else may until the lease ends.
///
/// Where another delivery is about to end (its last part is on the way), the reply waits for that end, for a second at
/// the most.
#[derive(Debug, Message)]
#[rtype(result = "Result<LeasedBufferMsg, Error>")]
pub struct LeaseBufferMsg {
    /// The name of the message.
    pub buffer_uuid: BufferUuid,
    /// A message of at most so many bytes is delivered in one go: its last part counts as on the way from the start, and
    /// [`BufferLease::finishing`](crate::buffer::BufferLease::finishing) need not say so. 0 where none is.
    pub in_one_go: u64,
}

/// To [`BufferActor`](crate::BufferActor): what does this message look like? Delivers nothing. The reply waits as that to
/// [`LeaseBufferMsg`] does, so that a message that has just been delivered is not seen any more.
#[derive(Debug, Message)]
#[rtype(result = "Result<BufferMsgView, Error>")]
pub struct PeekBufferMsg {
    /// The name of the message.
    pub buffer_uuid: BufferUuid,
}

/// A buffered message as it is sent.
#[derive(Clone, Debug)]
pub struct BufferMsgView {
    /// Differs from that of every other message that this service has held or will hold.
    pub version: String,
    /// The message as a pickle, without the .blend file.
    pub payload: Payload,
    /// Where the .blend file goes, if there is one.
    pub blend: Option<BlendHole>,
}

/// To [`BufferActor`](crate::BufferActor): what do you hold?
#[derive(Debug, Message)]
#[rtype(result = "BufferState")]
pub struct GetBufferState;

/// What the buffer holds, and what has become of the rest since the service started.
#[derive(Clone, Debug, MessageResponse)]
pub struct BufferState {
    /// Messages that are held.
    pub messages: usize,
    /// What they take of the limit, in bytes: their bodies without .blend files, their names, and 512 bytes each for
    /// what is kept beside them in memory and on the disk.
    pub bytes: u64,
    /// The limit.
    pub max_bytes: u64,
    /// How much of it neither messages take nor those on their way to the store.
    pub room: u64,
    /// Messages that are being delivered.
    pub in_delivery: usize,
    /// Messages that were delivered.
    pub delivered_total: u64,
    /// Messages that were never fetched and have expired.
    pub expired_total: u64,
    /// Why the store takes nothing, if so.
    pub store_failure: Option<StoreError>,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): see that this reaches the user manager. The reply
/// comes when it is on stable storage.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct SendMessageToUserManager(pub OutgoingMessage);

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): count a message that is not forwarded.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub enum CountUserMessage {
    /// It was a `TEST`.
    Test,
    /// It was of a type that nobody knows.
    Other,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): lend me the oldest message that nobody else has, as
/// soon as there is one. For a service without a broker.
///
/// The message comes over `reply`; who waits no longer drops the other end.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct TakeNextMessage {
    /// How long nobody else gets it. Zero shows the message without lending it.
    pub lease: Duration,
    /// Where the message goes.
    pub reply: oneshot::Sender<NextMessage>,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): lend nothing more, and tell all who wait so.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopLending;

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): this message is done with; forget it. The reply
/// comes when that is on stable storage.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct DeleteMessage {
    /// The `Message-Id` that it was delivered with.
    pub message_id: Uuid,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): which messages has the broker refused for good? The
/// reply comes when that is on stable storage.
#[derive(Debug, Message)]
#[rtype(result = "ParkedMessages")]
pub struct GetParkedMessages;

/// The messages that are parked, oldest first.
#[derive(Clone, Debug, MessageResponse)]
pub struct ParkedMessages(pub Vec<ParkedMessage>);

/// A message that the broker has refused for good: it is kept until somebody has it published again, or deletes it.
#[derive(Clone, Debug)]
pub struct ParkedMessage {
    /// The id that it is published with.
    pub message_id: Uuid,
    /// Who has sent it.
    pub user_id: String,
    /// What it is.
    pub kind: ForwardedType,
    /// How long its body is, in bytes.
    pub size: u64,
    /// What the broker has said.
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub since_ms: u64,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): send this parked message after all.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct PublishParkedMessage {
    /// Its id.
    pub message_id: Uuid,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): forget this parked message. The reply comes when that is
/// on stable storage.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct DeleteParkedMessage {
    /// Its id.
    pub message_id: Uuid,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): what do you hold?
#[derive(Debug, Message)]
#[rtype(result = "OutboxState")]
pub struct GetOutboxState;

/// What waits for the user manager, and what has been counted since the service started.
#[derive(Clone, Debug, MessageResponse)]
pub struct OutboxState {
    /// Messages that wait, those on their way to the broker among them.
    pub messages: usize,
    /// What they take of the limit, in bytes: their bodies, and about 700 bytes each for what is kept beside them.
    pub bytes: u64,
    /// Those among them that cannot be published, and that wait for somebody's decision.
    pub parked: usize,
    /// How many bytes may wait.
    pub max_bytes: u64,
    /// Whether a message was refused for want of room, and none has gone since.
    pub full: bool,
    /// How the broker is.
    pub broker: BrokerState,
    /// What messages wait for although the broker is connected, in words.
    pub waiting_for: Option<String>,
    /// Messages that have reached the broker, or were taken by the user manager.
    pub forwarded_total: u64,
    /// `TEST` messages.
    pub test_total: u64,
    /// Messages of a type that nobody knows.
    pub unknown_total: u64,
    /// Why the store takes nothing, if so.
    pub store_failure: Option<StoreError>,
}

/// How the connection to the broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BrokerState {
    /// The service runs without a broker.
    None,
    /// Messages flow, or would if there were any.
    Connected,
    /// There is no connection; the next attempt follows by itself.
    Disconnected,
    /// The broker takes no messages at the moment (`connection.blocked`).
    Blocked,
}

/// To [`CommunicationInterfaceConsumer`](crate::CommunicationInterfaceConsumer): how are you?
#[derive(Debug, Message)]
#[rtype(result = "ConsumerState")]
pub struct GetConsumerState;

/// How the consumer is, and what it has counted since the service started.
#[derive(Clone, Debug, MessageResponse)]
pub struct ConsumerState {
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it takes nothing at the moment, since there is no room: the broker keeps what comes.
    pub paused: bool,
    /// Deliveries that were stored.
    pub stored_total: u64,
    /// Deliveries that could never be stored, and were rejected.
    pub rejected_total: u64,
}

/// To an actor, from its store.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct FromStore(pub StoreEvent);

/// To an actor: take no more work, settle what is in hand, reply when that is done, and end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "JSON",
            Self::Pickle => "pickle",
        })
    }
}
