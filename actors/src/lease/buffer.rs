//! The right to deliver one buffered message to one worker.

use std::sync::Arc;

use actix::{Message, Recipient};

use super::progress::{Progress, Transfer};
use super::term::Term;
use crate::buffer_uuid::BufferUuid;
use crate::codec::BlendPlaceholder;
use crate::digest::MessageDigest;
use crate::payload::Payload;
use crate::store::Seq;

/// A buffered message in the form in which it is sent.
#[derive(Clone, Debug)]
pub struct BufferMsgView {
    /// Unique among all messages that this service has ever had or will have.
    pub version: String,
    /// The message as a pickle, without the .blend file.
    pub payload: Payload,
    /// Where the .blend file goes, if there is one.
    pub blend: Option<BlendPlaceholder>,
    /// The digest of the message; `None` if it has a .blend file.
    pub digest: Option<MessageDigest>,
}

/// A buffered message, and the right to deliver it.
#[derive(Debug)]
pub struct LeasedBufferMsg {
    /// What to deliver.
    pub view: BufferMsgView,
    /// The right to deliver it.
    pub lease: BufferLease,
}

/// The right to deliver one buffered message. While it exists, nobody else gets the message.
///
/// Dropped, it offers the message again at once. What has been sent of the message then counts for the next delivery;
/// see [`begin`](Self::begin). [`delivered`](Self::delivered) removes the message instead.
#[derive(Debug)]
pub struct BufferLease {
    owner: Recipient<BufferLeaseEvent>,
    uuid: BufferUuid,
    seq: Seq,
    /// The owner knows that the last chunk is being sent.
    finishing: bool,
    /// What earlier deliveries have sent.
    progress: Progress,
    /// What this delivery sends; `None` if it does not count.
    transfer: Option<Transfer>,
    /// `None` if nobody else can get the message while this value lives.
    term: Option<Arc<Term>>,
    delivered: bool,
}

/// From a lease to the owner of the message: the delivery is finishing, or has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct BufferLeaseEvent {
    pub uuid: BufferUuid,
    pub seq: Seq,
    pub end: LeaseEnd,
}

/// How a delivery ends, or that it is about to.
#[derive(Debug)]
pub(crate) enum LeaseEnd {
    /// The last chunk is being sent: new requests wait for the end.
    Finishing,
    /// The whole message has been sent.
    Delivered,
    /// The delivery has broken off; with the progress, if it may have changed.
    Released(Option<Progress>),
}

impl BufferLease {
    pub(crate) fn new(
        owner: Recipient<BufferLeaseEvent>,
        uuid: BufferUuid,
        seq: Seq,
        finishing: bool,
        progress: Progress,
    ) -> Self {
        Self { owner, uuid, seq, finishing, progress, transfer: None, term: None, delivered: false }
    }

    /// Makes it a lease of a message in a shared database, where it lasts for this term.
    pub(crate) fn for_term(mut self, term: Arc<Term>) -> Self {
        self.term = Some(term);
        self
    }

    /// How long it lasts, if other gateways offer the message too once it is over. `None` if it lasts while this value
    /// lives.
    pub fn term(&self) -> Option<&Arc<Term>> {
        self.term.as_ref()
    }

    /// The bytes of the message from offset `start` on are about to be sent. `version` identifies all `len` bytes,
    /// including the .blend file.
    ///
    /// They count towards the delivery if they leave no gap after what was sent of this version before, or if the
    /// worker has `proven` that it has the bytes before `start`.
    pub fn begin(&mut self, version: &str, len: u64, start: u64, proven: bool) {
        self.transfer = std::mem::take(&mut self.progress).transfer(version, len, start, proven);
    }

    /// `bytes` more have been handed to the worker's connection.
    pub fn handed_over(&mut self, bytes: u64) {
        self.transfer.iter_mut().for_each(|transfer| transfer.add(bytes));
    }

    /// Whether this delivery and those before have sent the whole message.
    pub fn completes(&self) -> bool {
        self.transfer.as_ref().is_some_and(Transfer::completes)
    }

    /// The last chunk is about to be handed over. From now on, requests for the message wait for the outcome: a worker
    /// that has the last byte may send its next request before [`delivered`](Self::delivered) is called.
    pub fn finishing(&self) {
        if !self.finishing {
            self.report(LeaseEnd::Finishing);
        }
    }

    /// The whole message has been handed to the worker's connection: removes it.
    pub fn delivered(mut self) {
        self.delivered = true;
    }

    fn report(&self, end: LeaseEnd) {
        self.owner.do_send(BufferLeaseEvent { uuid: self.uuid.clone(), seq: self.seq, end });
    }
}

impl Drop for BufferLease {
    fn drop(&mut self) {
        let transfer = self.transfer.take();
        self.report(match self.delivered {
            true => LeaseEnd::Delivered,
            false => LeaseEnd::Released(transfer.map(Transfer::progress)),
        });
    }
}
