//! The lease of an outbox message that the user manager fetches: it lasts for the visibility timeout.

use std::io;

use actix::{Message, Recipient};
use uuid::Uuid;

use crate::codec::Format;
use crate::payload::{Payload, may_be_readable_later};
use crate::store::Seq;

/// A message for the user manager, leased or only shown.
#[derive(Debug)]
pub struct NextMessage {
    /// The same at every delivery.
    pub message_id: Uuid,
    /// The format of the body.
    pub format: Format,
    /// The body.
    pub payload: Payload,
    /// How often the message has been leased since the service started, this time included.
    pub delivery_count: u32,
    /// Offers the message again if it does not reach the user manager.
    pub lease: OutboxLease,
}

/// The lease of a message that has not reached the user manager yet. Dropped, it offers the message again at once.
#[derive(Debug)]
pub struct OutboxLease {
    owner: Recipient<OutboxLeaseEvent>,
    seq: Seq,
    /// `None` if the message is only shown, has been handed over or cannot be read.
    id: Option<OutboxLeaseId>,
}

/// Distinguishes the leases of one message.
pub(crate) type OutboxLeaseId = u64;

/// From a lease to the owner of the message.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum OutboxLeaseEvent {
    /// The body is no longer read.
    Ended {
        seq: Seq,
        /// The lease, if the message has not reached the user manager.
        unused: Option<OutboxLeaseId>,
    },
    /// The body cannot be read, now or later.
    Unreadable { seq: Seq, reason: String },
}

impl OutboxLease {
    /// `id` is `None` for a message that is only shown.
    pub(crate) fn new(owner: Recipient<OutboxLeaseEvent>, seq: Seq, id: Option<OutboxLeaseId>) -> Self {
        Self { owner, seq, id }
    }

    /// The message has been handed over: nobody else gets it until the visibility timeout ends.
    pub fn delivered(mut self) {
        self.id = None;
    }

    /// The body could not be read. Unless a later read may succeed, the message is parked, so that it does not block
    /// the others. Returns whether it is.
    pub fn unreadable(mut self, error: &io::Error) -> bool {
        let is_parked = !may_be_readable_later(error);
        if is_parked {
            self.id = None;
            let reason = format!("its body cannot be read: {error}");
            self.owner.do_send(OutboxLeaseEvent::Unreadable { seq: self.seq, reason });
        }
        is_parked
    }
}

impl Drop for OutboxLease {
    fn drop(&mut self) {
        self.owner.do_send(OutboxLeaseEvent::Ended { seq: self.seq, unused: self.id });
    }
}
