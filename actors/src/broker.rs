//! What the actors need from a message broker; [`amqp`] implements it for RabbitMQ.

pub mod amqp;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::codec::Format;
use crate::payload::Payload;

/// One message to hand to the broker.
#[derive(Debug)]
pub struct Publication {
    /// The epoch from [`PublisherEvent::Connected`]. A publication of an earlier epoch is dropped silently, because
    /// [`PublisherEvent::Disconnected`] has reported the end of that epoch.
    pub epoch: u64,
    /// The sender's number for it; the outcome has the same number.
    pub seq: u64,
    /// AMQP `message-id`.
    pub message_id: Uuid,
    /// [`Format::Pickle`] adds the header `DATA_FORMAT: BYTES`.
    pub format: Format,
    /// The body, read on the publisher's thread right before it is sent.
    pub body: Payload,
}

/// What happens on the publisher's connection, in order.
#[derive(Debug)]
pub enum PublisherEvent {
    /// Connected, the topology is declared, and confirms are on: publications of this epoch are accepted from now on.
    Connected {
        /// The number of the connection; every later one has a greater number.
        epoch: u64,
    },
    /// The connection has ended, or could not be made. It is unknown whether the broker has the publications without an
    /// outcome, so they must be published again. The publisher reconnects by itself, after a back-off.
    Disconnected {
        /// Why; without any password.
        reason: String,
        /// Whether the connection was lost, so that the broker may have been restarted. Otherwise the broker has
        /// refused something, and only that ended the connection.
        lost: bool,
    },
    /// The broker has blocked the connection (`connection.blocked`) or unblocked it. Every connection starts unblocked:
    /// a broker that is short of memory or disk blocks a connection only once that publishes.
    Blocked(bool),
    /// One of the publications without an outcome is a poison message: the broker closed the channel because of it and
    /// will never accept it, but does not say which one it is. `Disconnected` follows.
    Suspected {
        /// The reply code and text.
        reason: String,
    },
    /// Publishing is paused because the downstream queues are not ready. The text says what it waits for. `None` once
    /// they are ready. Also reported right before `Connected`.
    WaitingFor(Option<String>),
    /// The broker accepts no message larger than this, in bytes; it has refused one. Valid until the connection is
    /// lost.
    SizeLimit(u64),
    /// The outcome of one publication of the current epoch: exactly one for each, unless `Disconnected` comes first.
    Outcome {
        /// The publication's number.
        seq: u64,
        /// Its outcome.
        outcome: Outcome,
    },
}

/// The outcome of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The broker has stored it, and has routed it to a queue.
    Confirmed,
    /// The broker has refused it (`basic.nack`).
    Nacked,
    /// The broker has no queue for it (`basic.return`); holds the reply code and text.
    Returned(String),
    /// The broker will never accept it, because it is larger than the broker's `max_message_size`; holds the reply code
    /// and text. The connection ends because of it.
    Refused(String),
    /// Its body cannot be read; holds the reason.
    Unreadable(String),
}

/// Sends publications to the broker. Dropping it ends the connection, without blocking.
pub trait PublisherLink: Send {
    /// Queues one publication; never blocks.
    fn publish(&self, publication: Publication);
}

/// One delivery from the consumed queue.
#[derive(Debug)]
pub struct Delivery {
    /// The body as received.
    pub body: Bytes,
    /// Its `message-id`, for the log; truncated if it is long.
    pub message_id: Option<String>,
    /// [`Format::Pickle`] if the header `DATA_FORMAT` is `BYTES`, as a string or a byte array, in upper or lower case.
    pub format: Format,
    /// That header, for the log.
    pub data_format: String,
    /// The hash by which a redelivery is recognised.
    pub fingerprint: Fingerprint,
    /// Whether the broker may have delivered this before (`redelivered`).
    pub redelivered: bool,
    /// Settles it.
    pub settler: Settler,
}

/// The first half of a SHA-256 of a message and its `message-id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(u64, u64);

impl Fingerprint {
    /// The fingerprint of a message with this body and this `message-id`, if it has one.
    pub fn new(body: &[u8], message_id: Option<&str>) -> Self {
        let mut hash = Sha256::new_with_prefix(message_id.unwrap_or_default());
        // A separator: no UTF-8 text contains this byte.
        hash.update([0xff]);
        hash.update(body);
        let hash = hash.finalize();
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        Self(number(&hash[..8]), number(&hash[8..16]))
    }

    /// As 16 bytes.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0) << 64 | u128::from(self.1)).to_be_bytes()
    }
}

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// It is stored: the broker may forget it (`basic.ack`).
    Ack,
    /// It can never be stored (`basic.reject` without requeue).
    Reject,
    /// It cannot be stored now: it goes back to the queue (`basic.nack` with requeue).
    Requeue,
}

/// Settles one delivery, once, from any thread, without blocking. Its drop requeues the delivery.
pub struct Settler {
    settle: Option<Box<dyn FnOnce(Settlement) + Send>>,
}

impl Settler {
    /// A settler that calls `settle` once.
    pub fn new(settle: impl FnOnce(Settlement) + Send + 'static) -> Self {
        Self { settle: Some(Box::new(settle)) }
    }

    /// Settles the delivery.
    pub fn settle(mut self, settlement: Settlement) {
        if let Some(settle) = self.settle.take() {
            settle(settlement);
        }
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        if let Some(settle) = self.settle.take() {
            settle(Settlement::Requeue);
        }
    }
}

impl std::fmt::Debug for Settler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settler")
    }
}

/// What happens on the consumer's connection, in order.
#[derive(Debug)]
pub enum ConsumerEvent {
    /// Connected, and the topology is declared; consuming, unless the prefetch is 0.
    Connected,
    /// The connection has ended, or could not be made. The consumer reconnects by itself, after a back-off.
    Disconnected {
        /// Why; without any password.
        reason: String,
    },
    /// A message was delivered.
    Delivered(Delivery),
    /// The answer to [`ConsumerLink::consume`] with 0: every message that was delivered before has been reported.
    Cancelled,
}

/// A connection that consumes. Dropping it ends the connection, without blocking.
pub trait ConsumerLink: Send {
    /// Sets how many deliveries may be unsettled at any time, on this connection and on later ones. With 0 nothing is
    /// delivered after [`ConsumerEvent::Cancelled`]. Settlements made before this call reach the broker before the new
    /// value does, and those made after it reach the broker after. So what is requeued after a call with 0 is not
    /// delivered before the next call. Never blocks.
    fn consume(&self, prefetch: u16);

    /// Sends all settlements to the broker, and then ends the connection. Blocks for at most `deadline`; returns
    /// whether the broker has all settlements.
    fn stop(self: Box<Self>, deadline: std::time::Duration) -> bool;
}
