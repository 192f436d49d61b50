//! The right to deliver one buffered message: a value that restores the message when it is dropped.

use actix::{Addr, Message};

use crate::buffer::BufferActor;
use crate::messages::{BufferMsgView, BufferUuid};
use crate::store::Seq;

/// A message, and the right to deliver it.
#[derive(Debug)]
pub struct LeasedBufferMsg {
    /// What to deliver.
    pub view: BufferMsgView,
    /// The right to do so.
    pub lease: BufferLease,
}

/// The right to deliver one message. Dropped, it offers the message again at once; see
/// [`BufferLease::delivered`].
#[derive(Debug)]
pub struct BufferLease {
    buffer: Addr<BufferActor>,
    uuid: BufferUuid,
    seq: Seq,
    settled: Settled,
}

impl BufferLease {
    pub(super) fn new(buffer: Addr<BufferActor>, uuid: BufferUuid, seq: Seq) -> Self {
        Self { buffer, uuid, seq, settled: Settled::Released }
    }

    /// The last part of the message is about to be handed over. Whoever asks for the message from now on waits for
    /// the outcome: a worker that has the last byte may ask again before [`BufferLease::delivered`] is called.
    pub fn finishing(&self) {
        self.settle(Settled::Finishing);
    }

    /// The last byte has been handed to the worker's connection: the message is removed.
    pub fn delivered(mut self) {
        self.settled = Settled::Delivered;
    }

    fn settle(&self, settled: Settled) {
        self.buffer.do_send(Settle { uuid: self.uuid.clone(), seq: self.seq, settled });
    }
}

impl Drop for BufferLease {
    fn drop(&mut self) {
        self.settle(self.settled);
    }
}

/// What has become of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Finishing,
    Delivered,
    Released,
}

/// To [`BufferActor`], from a lease.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Settle {
    pub uuid: BufferUuid,
    pub seq: Seq,
    pub settled: Settled,
}
