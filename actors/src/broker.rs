//! What the actors ask of a message broker; [`amqp`] speaks it to RabbitMQ.

pub mod amqp;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::codec::Format;
use crate::payload::Payload;

/// One message on its way to the broker.
#[derive(Debug)]
pub struct Publication {
    /// As in [`PublisherEvent::Connected`]. A publication of an earlier epoch is dropped silently, since its sender was told
    /// that this epoch has ended.
    pub epoch: u64,
    /// The sender's number of the message; comes back in the outcome.
    pub seq: u64,
    /// AMQP `message-id`.
    pub message_id: Uuid,
    /// [`Format::Pickle`] is marked by the header `DATA_FORMAT: BYTES`.
    pub format: Format,
    /// The body; read on the publisher's own thread, right before it is sent.
    pub body: Payload,
}

/// What happens on the publishing connection, in order.
#[derive(Debug)]
pub enum PublisherEvent {
    /// Connected, topology declared, confirms on: publications of this epoch are taken from now on.
    Connected {
        /// The number of the channel; every later one has a greater number.
        epoch: u64,
    },
    /// The channel has ended, or the attempt to open one. Everything published in it without an outcome is unknown and must
    /// be sent again. A next attempt follows by itself, after a back-off.
    Disconnected {
        /// Why; without any password.
        reason: String,
        /// Whether the connection is lost too, and the broker maybe restarted. Otherwise the broker has closed only the
        /// channel, over something that it has refused; what it has said about the connection stays true.
        lost: bool,
    },
    /// The broker has blocked the connection (`connection.blocked`) or unblocked it. Every connection starts unblocked,
    /// even at a broker that is short of memory or disk: it blocks only connections that publish.
    Blocked(bool),
    /// The broker has closed the channel over one of the publications without an outcome, which it will never take, and
    /// does not say over which. `Disconnected` follows.
    Suspected {
        /// What the broker has said.
        reason: String,
    },
    /// Nothing is published for the time being, because the downstream queues are not ready: what is waited for, in words.
    /// `None` once they are ready. Also comes right before `Connected`.
    Held(Option<String>),
    /// The broker takes no message larger than this, in bytes: it has refused one. True until the connection is lost.
    SizeLimit(u64),
    /// What became of one publication of the current epoch: exactly one for each, unless `Disconnected` comes first.
    Outcome {
        /// The publication's number.
        seq: u64,
        /// What became of it.
        outcome: Outcome,
    },
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The broker has taken it and has routed it to a queue.
    Confirmed,
    /// The broker has refused it (`basic.nack`).
    Nacked,
    /// The broker had no queue for it (`basic.return`); holds the reply code and text.
    Returned(String),
    /// The broker will never take it, because it is larger than the broker's `max_message_size`; holds the reply code and
    /// text. The channel ends over it.
    Refused(String),
    /// Its body cannot be read; holds the reason.
    Unreadable(String),
}

/// Sends publications to the broker. Dropping it ends the connection, without blocking.
pub trait PublisherLink: Send {
    /// Queues one publication; never blocks.
    fn publish(&self, publication: Publication);
}

/// One delivery of the consumed queue.
#[derive(Debug)]
pub struct Delivery {
    /// The body as it came.
    pub body: Bytes,
    /// Its `message-id`, cut where it is long; for people, as the next but one.
    pub message_id: Option<String>,
    /// [`Format::Pickle`] where the header `DATA_FORMAT` is `BYTES`, as a string or as a byte array, in any case.
    pub format: Format,
    /// What that header is.
    pub data_format: String,
    /// Tells it from others.
    pub fingerprint: Fingerprint,
    /// Whether the broker says that it may have delivered this one before.
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
        // no text has this byte
        hash.update([0xff]);
        hash.update(body);
        let hash = hash.finalize();
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        Self(number(&hash[..8]), number(&hash[8..16]))
    }
}

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Stored: the broker may forget it (`basic.ack`).
    Ack,
    /// Can never be stored (`basic.reject` without requeue).
    Reject,
    /// Not now: back to the queue (`basic.nack` with requeue).
    Requeue,
}

/// Settles one delivery, by value, from any thread, without blocking. Dropped without a word it requeues.
pub struct Settler {
    settle: Option<Box<dyn FnOnce(Settlement) + Send>>,
}

impl Settler {
    /// A settler that calls `settle`, once.
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

/// What happens on the consuming connection, in order.
#[derive(Debug)]
pub enum ConsumerEvent {
    /// Connected, topology declared, consuming unless told otherwise.
    Connected,
    /// The connection, or the attempt to make one, has ended; a next attempt follows by itself, after a back-off.
    Disconnected {
        /// Why; without any password.
        reason: String,
    },
    /// A message has come.
    Delivered(Delivery),
    /// As ordered by [`ConsumerLink::consume`] with 0: everything that was delivered before has been reported.
    Cancelled,
}

/// A connection that consumes. Dropping it ends the connection, without blocking.
pub trait ConsumerLink: Send {
    /// From now on, and on later connections too, at most `prefetch` deliveries are unsettled at any time. With 0 nothing is
    /// delivered, once [`ConsumerEvent::Cancelled`] is reported. What was settled before this call is settled before it takes
    /// effect. Never blocks.
    fn consume(&self, prefetch: u16);

    /// Ends the connection after what was settled has been told to the broker. Blocks for `deadline` at the most;
    /// returns whether the end was clean.
    fn stop(self: Box<Self>, deadline: std::time::Duration) -> bool;
}
