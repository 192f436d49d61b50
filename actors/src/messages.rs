//! Every message to the actors, and its reply. [`UserHttpActors`](crate::UserHttpActors) has a method for each one that
//! an application sends.

use std::time::Duration;

use actix::{Message, MessageResponse};
use serde::Serialize;
use uuid::Uuid;

use crate::blend::{BlendDigest, Stamp};
use crate::broker::Fingerprint;
use crate::buffer_uuid::BufferUuid;
use crate::codec::{BufferMsg, ForwardedType, OutgoingMessage};
use crate::error::Error;
use crate::idempotency::{Accepted, IdempotencyKey};
use crate::lease::{BufferMsgView, LeasedBufferMsg, NextMessage};
use crate::store::{StoreError, StoreEvent};

/// To the [buffer](crate::AnyBuffer): buffer a message for a worker. The reply is sent when it is on stable
/// storage.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct AddBufferMsg {
    /// The name to keep it under; replaces an earlier message of that name.
    pub buffer_uuid: BufferUuid,
    /// The message.
    pub message: BufferMsg,
    /// The broker's delivery, if it comes from a broker. The broker may redeliver it even after an acknowledgement.
    pub delivery: Option<BrokerDelivery>,
}

/// Identifies what a broker delivers.
#[derive(Clone, Copy, Debug)]
pub struct BrokerDelivery {
    /// Hash of the delivered message.
    pub fingerprint: Fingerprint,
    /// The broker's `redelivered` flag. If it is set, the message is not buffered again while a message with this
    /// fingerprint is in the buffer, or for an hour after that was removed.
    pub redelivered: bool,
}

/// To the [buffer](crate::AnyBuffer): lease a buffered message, in order to deliver it.
///
/// While another delivery of it is finishing (its last chunk is being sent), the reply waits for the end of that
/// delivery, at most one second. A caller that stops waiting drops the request; a lease that it would get later is then
/// released at once.
#[derive(Debug, Message)]
#[rtype(result = "Result<LeasedBufferMsg, Error>")]
pub struct LeaseBufferMsg {
    /// The name of the message.
    pub buffer_uuid: BufferUuid,
    /// The caller sends a message of at most this many bytes as a single chunk. Such a delivery is finishing from the
    /// start: the lease itself announces the last chunk, which saves one actor message. 0 if the caller always calls
    /// [`BufferLease::finishing`](crate::lease::BufferLease::finishing).
    pub max_single_write: u64,
    /// If there is no such message, or another delivery of it is in progress, the reply waits until the caller can have
    /// the lease, at most for this time. Then it is what it would be without this. Waiting requests for a message are
    /// served in the order in which they came.
    pub wait: Duration,
    /// The ETag, without quotes, of the message that the worker has a part of and wants the rest of. If another gateway
    /// delivers that message from the same database, this one takes it over: whether the worker's connection there is
    /// alive is known there only. A second request at one gateway never takes a message from the first.
    pub seen: Option<String>,
}

/// To the [buffer](crate::AnyBuffer): look at a buffered message without delivering it. The reply waits for a
/// finishing delivery as the reply to [`LeaseBufferMsg`] does, so that a message that has just been delivered is not
/// shown.
#[derive(Debug, Message)]
#[rtype(result = "Result<BufferMsgView, Error>")]
pub struct PeekBufferMsg {
    /// The name of the message.
    pub buffer_uuid: BufferUuid,
    /// If there is no such message, the reply waits for one, at most for this time.
    pub wait: Duration,
}

/// To the [buffer](crate::AnyBuffer): reply to all requests that wait for a message, and let no further one wait.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopWaiting;

/// To the [buffer](crate::AnyBuffer): a worker gets this reference in place of a .blend file. The reply is sent
/// when it is on stable storage. From then on the reference is found until the buffer's TTL has passed.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct AddFileReference(pub FileReference);

/// To the [buffer](crate::AnyBuffer): find the .blend files that were handed out with this digest.
#[derive(Debug, Message)]
#[rtype(result = "Result<FileReferences, Error>")]
pub struct FindFileReferences(pub BlendDigest);

/// The references with one digest, newest first. There are several if files with the same content have several paths.
#[derive(Clone, Debug)]
pub struct FileReferences(pub Vec<FileReference>);

/// A version of a .blend file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReference {
    /// Its digest.
    pub digest: BlendDigest,
    /// Its path, as the message names it.
    pub path: String,
    /// The version that has this digest.
    pub stamp: Stamp,
}

/// To the [buffer](crate::AnyBuffer): report the state of the buffer.
#[derive(Debug, Message)]
#[rtype(result = "BufferState")]
pub struct GetBufferState;

/// A snapshot of the buffer. Totals count since the start of the service.
#[derive(Clone, Debug, MessageResponse)]
pub struct BufferState {
    /// Messages in the buffer.
    pub messages: usize,
    /// Their cost in bytes: bodies without .blend files, names, and 512 bytes per message for the overhead in memory
    /// and on the disk.
    pub bytes: u64,
    /// The limit for `bytes`.
    pub max_bytes: u64,
    /// Bytes of the limit that are free: used neither by messages nor by those that are being stored.
    pub free_bytes: u64,
    /// Messages that are being delivered.
    pub in_delivery: usize,
    /// Requests that wait for a message or for the end of its delivery. Those that have given up may still count.
    pub waiting: usize,
    /// The age of the oldest message.
    pub oldest: Option<Duration>,
    /// Messages that were stored.
    pub accepted_total: u64,
    /// Messages that were delivered.
    pub delivered_total: u64,
    /// Messages that expired before they were fetched.
    pub expired_total: u64,
    /// Messages that an operator has discarded.
    pub discarded_total: u64,
    /// Why the store refuses messages at the moment, if it does.
    pub store_failure: Option<StoreError>,
    /// How long the store has been busy with its current commit. More than a second means that the disk hardly
    /// answers.
    pub store_busy: Option<Duration>,
    /// Whether a stop has begun: no request waits for a message any more.
    pub is_stopping: bool,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): forward a message to the user manager. The reply comes
/// when the broker has confirmed it or it is on stable storage, as [`FrameAck`](crate::publisher::FrameAck) says.
#[derive(Debug, Message)]
#[rtype(result = "Result<Accepted, Error>")]
pub struct SendMessageToUserManager {
    /// The message.
    pub message: OutgoingMessage,
    /// The key of its request, if it has one. The reply then comes when the key is on stable storage too. If a request
    /// with this key was accepted before, the message is dropped and the reply is [`Accepted::Replayed`]; while one is
    /// in progress, the reply waits for its outcome.
    pub key: Option<IdempotencyKey>,
}

impl From<OutgoingMessage> for SendMessageToUserManager {
    /// Without a key.
    fn from(message: OutgoingMessage) -> Self {
        Self { message, key: None }
    }
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): count a message that is not forwarded. One with a key
/// is logged too; the sender of another one logs it.
#[derive(Debug, Message)]
#[rtype(result = "Result<Accepted, Error>")]
pub struct CountUserMessage {
    /// The message.
    pub message: UnforwardedMessage,
    /// The key of its request, if it has one; see [`SendMessageToUserManager::key`]. A replay is neither logged nor
    /// counted.
    pub key: Option<IdempotencyKey>,
}

/// A message that is not forwarded.
#[derive(Clone, Debug)]
pub enum UnforwardedMessage {
    /// A `TEST` message.
    Test {
        /// Who sent it.
        user_id: String,
        /// Its `DATA`, written for a log line.
        data: String,
    },
    /// A message of an unknown type.
    Other {
        /// Who sent it.
        user_id: String,
        /// Its `TYPE`, written for a log line.
        kind: String,
    },
}

impl UnforwardedMessage {
    pub(crate) fn log(&self) {
        match self {
            Self::Test { user_id, data } => log::info!("TEST from {user_id:?}: {data}"),
            Self::Other { user_id, kind } => {
                log::warn!("message of unknown type {kind:?} from {user_id:?} is not forwarded");
            }
        }
    }
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): lease the oldest message that is not leased. For a service
/// without a broker.
///
/// The reply is `None` if there is none, or if the service stops. A caller that stops waiting drops the request; a
/// message that arrives later is then offered again.
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<NextMessage>, Error>")]
pub struct TakeNextMessage {
    /// The visibility timeout: how long nobody else gets the message. Zero shows the message without leasing it.
    pub lease: Duration,
    /// Whether the reply waits until there is a message.
    pub wait: bool,
}

/// To both actors: find out whether the store still works and has space. The reply comes when the actor knows.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ProbeStore {
    /// How many bytes could not be written beside the store.
    pub refused: u64,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): lease no more messages, and reply to all waiting requests.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopLeasing;

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): the user manager has processed a message; remove it. The
/// reply comes when the removal is on stable storage.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct DeleteMessage {
    /// The `Message-Id` that it was delivered with.
    pub message_id: Uuid,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): list the parked messages. The reply comes when it is on
/// stable storage that they are parked.
#[derive(Debug, Message)]
#[rtype(result = "ParkedMessages")]
pub struct GetParkedMessages;

/// The parked messages, oldest first.
#[derive(Clone, Debug, MessageResponse)]
pub struct ParkedMessages(pub Vec<ParkedMessage>);

/// A message that the broker refuses permanently. It is kept until an operator publishes it again or deletes it.
#[derive(Clone, Debug)]
pub struct ParkedMessage {
    /// The id that it is published with.
    pub message_id: Uuid,
    /// The sender.
    pub user_id: String,
    /// The type.
    pub kind: ForwardedType,
    /// The length of its body in bytes.
    pub size: u64,
    /// Why it is parked.
    pub reason: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): publish a parked message again.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct PublishParkedMessage {
    /// Its id.
    pub message_id: Uuid,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): remove a parked message. The reply comes when the removal
/// is on stable storage.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct DeleteParkedMessage {
    /// Its id.
    pub message_id: Uuid,
}

/// To [`UserManagerPublisher`](crate::UserManagerPublisher): report the state of the outbox.
#[derive(Debug, Message)]
#[rtype(result = "OutboxState")]
pub struct GetOutboxState;

/// A snapshot of the outbox. Totals count since the start of the service.
#[derive(Clone, Debug, MessageResponse)]
pub struct OutboxState {
    /// Messages in the outbox: waiting, in flight, leased or parked.
    pub messages: usize,
    /// Their cost in bytes: bodies, and about 700 bytes of overhead per message.
    pub bytes: u64,
    /// Parked messages, which wait for an operator.
    pub parked: usize,
    /// Unstored messages: the store has not been asked to write them, because the broker is about to confirm them.
    pub unstored: usize,
    /// Idempotency keys that are remembered. They do not count towards `bytes`.
    pub idempotency_keys: usize,
    /// The limit for `bytes`.
    pub max_bytes: u64,
    /// Whether a message was refused because the outbox was full, and none has been removed since.
    pub full: bool,
    /// The age of the oldest message.
    pub oldest: Option<Duration>,
    /// The connection to the broker.
    pub broker: BrokerState,
    /// How long `broker` has been what it is.
    pub broker_for: Duration,
    /// What messages wait for although the broker is connected, as text.
    pub waiting_for: Option<String>,
    /// Why frames are refused although the outbox has space: with [`FrameAck::Broker`](crate::publisher::FrameAck),
    /// what keeps the broker from confirming them.
    pub frames_refused: Option<&'static str>,
    /// Messages that have arrived, including those that the store or the broker refused later.
    pub arrived_total: u64,
    /// The bytes of their bodies.
    pub arrived_bytes_total: u64,
    /// Messages that the broker has confirmed or the user manager has deleted.
    pub forwarded_total: u64,
    /// Messages that an operator has discarded, parked ones too.
    pub discarded_total: u64,
    /// `TEST` messages.
    pub test_total: u64,
    /// Messages of an unknown type.
    pub unknown_total: u64,
    /// Why the store refuses messages at the moment, if it does.
    pub store_failure: Option<StoreError>,
    /// See [`BufferState::store_busy`].
    pub store_busy: Option<Duration>,
}

/// The state of the connection to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BrokerState {
    /// The service runs without a broker.
    None,
    /// Connected.
    Connected,
    /// Not connected; the service reconnects by itself.
    Disconnected,
    /// Connected, but the broker accepts no messages at the moment (`connection.blocked`).
    Blocked,
}

/// To [`CommunicationInterfaceConsumer`](crate::CommunicationInterfaceConsumer): report the state of the consumer.
#[derive(Debug, Message)]
#[rtype(result = "ConsumerState")]
pub struct GetConsumerState;

/// A snapshot of the consumer. Totals count since the start of the service.
#[derive(Clone, Debug, MessageResponse)]
pub struct ConsumerState {
    /// Whether it is connected to the broker.
    pub connected: bool,
    /// Whether consuming is paused because the buffer is full. The broker keeps the messages.
    pub paused: bool,
    /// Deliveries that were stored.
    pub stored_total: u64,
    /// Deliveries that can never be stored, and were rejected.
    pub rejected_total: u64,
}

/// To an actor, from its store: what has happened.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct FromStore(pub StoreEvent);

/// To an actor: refuse new work, finish the work in progress, reply, and stop.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;
