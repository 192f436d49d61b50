//! Whether each message of the outbox is stored, and the sender who waits for that or for the broker's confirm.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Due, Outbox, OutboxMessage, State};
use crate::deadlines::Deadline;
use crate::error::Error;
use crate::idempotency::{Accepted, Digest};
use crate::payload::Payload;
use crate::publisher::record::OutboxMeta;
use crate::reply::Reply;
use crate::store::{Put, Seq};

/// Whether a message is stored. Until it is, its sender waits.
#[derive(Debug)]
pub(super) enum Durability {
    /// The store has not been asked to write it.
    Unstored {
        sender: Sender,
        /// The encoded meta of its record.
        encoded: Bytes,
        arrived: Instant,
        /// Of [`Due::Confirm`]; `None` once it has passed.
        deadline: Option<Deadline>,
    },
    /// The store is writing it.
    Storing(Sender),
    /// On stable storage.
    Stored,
}

impl Durability {
    pub(super) fn into_sender(self) -> Option<Sender> {
        match self {
            Self::Unstored { sender, .. } | Self::Storing(sender) => Some(sender),
            Self::Stored => None,
        }
    }
}

/// The sender of a message, who waits until it is durable.
#[derive(Debug)]
pub enum Sender {
    Unkeyed(Reply<Result<Accepted, Error>>),
    /// Waits at this idempotency key, maybe with others.
    Keyed(Digest),
}

/// A message that has just been received.
#[derive(Debug)]
pub struct Arrival {
    pub meta: OutboxMeta,
    /// The encoded `meta`.
    pub encoded: Bytes,
    pub payload: Payload,
    pub cost: u64,
    pub sender: Sender,
}

impl Outbox {
    /// Adds an unstored message. With a broker it waits at once, and otherwise as soon as it is stored.
    pub fn arrive(&mut self, seq: Seq, arrival: Arrival, has_broker: bool) {
        let Arrival { meta, encoded, payload, cost, sender } = arrival;
        let durability = Durability::Unstored { sender, encoded, arrived: Instant::now(), deadline: None };
        self.insert(seq, meta, payload, cost, durability);
        self.unstored.insert(seq);
        self.enter(seq, if has_broker { State::Waiting } else { State::Arriving });
    }

    /// Makes [`Due::Confirm`] due for an unstored message that has no such deadline.
    pub fn await_confirm(&mut self, seq: Seq, time: Duration) {
        let durability = self.messages.get_mut(&seq).map(|message| &mut message.durability);
        if let Some(Durability::Unstored { deadline: deadline @ None, .. }) = durability {
            *deadline = Some(self.deadlines.add(Due::Confirm { seq }, time));
        }
    }

    /// [`Due::Confirm`] has passed. Returns for how long the message has been unstored, if it still is.
    pub fn confirm_is_due(&mut self, seq: Seq) -> Option<Duration> {
        match &mut self.messages.get_mut(&seq)?.durability {
            Durability::Unstored { arrived, deadline, .. } => {
                *deadline = None;
                Some(arrived.elapsed())
            }
            Durability::Storing(_) | Durability::Stored => None,
        }
    }

    /// The store is asked to write an unstored message. Returns its record and the key of its sender, unless that was
    /// asked before.
    pub fn begin_storing(&mut self, seq: Seq) -> Option<(Put, Option<Digest>)> {
        if !self.is_unstored(seq) {
            return None;
        }
        let before = self.set_durability(seq, Durability::Stored)?;
        let Durability::Unstored { sender, encoded: meta, .. } = before else { return None };
        let key = if let Sender::Keyed(key) = &sender { Some(*key) } else { None };
        let message = self.messages.get_mut(&seq)?;
        message.durability = Durability::Storing(sender);
        Some((Put { seq, meta, body: message.payload.clone() }, key))
    }

    /// The store has written a message, and has its body now. Returns its sender if that waits.
    pub fn stored(&mut self, seq: Seq, payload: Payload) -> Option<Sender> {
        self.messages.get_mut(&seq)?.payload = payload;
        let sender = self.set_durability(seq, Durability::Stored).and_then(Durability::into_sender);
        if let Some(OutboxMessage { state: State::Arriving, .. }) = self.messages.get(&seq) {
            self.enter(seq, State::Waiting);
        }
        sender
    }

    /// Changes the durability of a message. Returns what it was.
    pub(super) fn set_durability(&mut self, seq: Seq, durability: Durability) -> Option<Durability> {
        let message = self.messages.get_mut(&seq)?;
        let mut before = std::mem::replace(&mut message.durability, durability);
        if let Durability::Unstored { deadline, .. } = &mut before {
            self.unstored.remove(&seq);
            deadline.take().into_iter().for_each(|deadline| self.deadlines.remove(deadline));
        }
        Some(before)
    }

    /// Whether a message is unstored.
    pub fn is_unstored(&self, seq: Seq) -> bool {
        self.unstored.contains(&seq)
    }

    /// The unstored messages in their order.
    pub fn unstored(&self) -> impl Iterator<Item = Seq> {
        self.unstored.iter().copied()
    }

    /// Those of them that are not in flight.
    pub fn unstored_and_not_in_flight(&self) -> impl Iterator<Item = Seq> {
        self.unstored.iter().copied().filter(|seq| !self.is_in_flight(*seq))
    }

    /// How many messages are unstored.
    pub fn unstored_len(&self) -> usize {
        self.unstored.len()
    }

    /// Whether the sender of a message waits for a reply.
    pub fn is_awaited(&self, seq: Seq) -> bool {
        self.messages.get(&seq).is_some_and(|message| !matches!(message.durability, Durability::Stored))
    }

    /// The messages whose senders wait for a reply.
    pub fn awaited(&self) -> impl Iterator<Item = Seq> {
        self.messages.keys().copied().filter(|seq| self.is_awaited(*seq))
    }
}
