//! The right to deliver one buffered message: a value that restores the message when it is dropped.

use std::time::{Duration, Instant};

use actix::prelude::*;

use crate::buffer::BufferActor;
use crate::error::Error;
use crate::messages::{BufferMsgView, BufferUuid, LeaseBufferMsg};
use crate::reply::{Deferred, Reply, deferred};
use crate::store::Seq;

/// How long someone waits for a delivery of the same message whose last part is on its way. Where the worker takes it,
/// this is over in microseconds; one that stalls is a delivery like any other.
const FINISHING_WAIT: Duration = Duration::from_secs(1);

/// Someone who wants to deliver a message.
#[derive(Debug)]
pub(super) struct Asker {
    in_one_go: u64,
    asked: Instant,
    reply: Reply<Result<LeasedBufferMsg, Error>>,
}

/// A delivery under way.
#[derive(Debug)]
pub(super) struct Lease {
    /// The last part is on its way to the worker, who may ask again before the outcome is known here.
    finishing: bool,
    waiting: Vec<Asker>,
}

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
    /// The actor knows that the last part is on the way.
    finishing: bool,
    settled: Settled,
}

impl BufferLease {
    pub(super) fn new(buffer: Addr<BufferActor>, uuid: BufferUuid, seq: Seq, finishing: bool) -> Self {
        Self { buffer, uuid, seq, finishing, settled: Settled::Released }
    }

    /// The last part of the message is about to be handed over. Whoever asks for the message from now on waits for
    /// the outcome: a worker that has the last byte may ask again before [`BufferLease::delivered`] is called.
    pub fn finishing(&self) {
        if !self.finishing {
            self.settle(Settled::Finishing);
        }
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

impl BufferActor {
    fn lease(&mut self, uuid: &BufferUuid, asker: Asker, ctx: &mut Context<Self>) {
        let held = match self.find(uuid) {
            Ok(held) => held,
            Err(error) => return asker.reply.send(Err(error)),
        };
        let (seq, view) = (held.seq, held.view());
        let finishing = view.blend.is_none() && view.payload.len() <= asker.in_one_go;
        match self.leases.get_mut(&seq) {
            Some(lease) if lease.finishing => {
                lease.waiting.retain(|waiting| !waiting.reply.is_closed());
                let left = FINISHING_WAIT.saturating_sub(asker.asked.elapsed());
                ctx.run_later(left, move |actor, _| actor.end_waiting(seq));
                lease.waiting.push(asker);
            }
            Some(_) => asker.reply.send(Err(Error::InDelivery)),
            None => {
                self.leases.insert(seq, Lease { finishing, waiting: Vec::new() });
                let lease = BufferLease::new(ctx.address(), uuid.clone(), seq, finishing);
                // a lease that nobody takes is dropped, and so ends
                asker.reply.send(Ok(LeasedBufferMsg { view, lease }));
            }
        }
    }

    /// Those who have waited long enough for the end of this delivery wait no more.
    fn end_waiting(&mut self, seq: Seq) {
        let Some(lease) = self.leases.get_mut(&seq) else { return };
        for asker in lease.waiting.extract_if(.., |asker| asker.asked.elapsed() >= FINISHING_WAIT) {
            asker.reply.send(Err(Error::InDelivery));
        }
    }

    /// Ends a delivery, if there is one. Returns who waits for its end.
    pub(super) fn end_lease(&mut self, seq: Seq) -> Vec<Asker> {
        self.leases.remove(&seq).map_or(Vec::new(), |lease| lease.waiting)
    }

    /// Asks once more for those who have waited for a delivery to end.
    pub(super) fn lease_to_waiting(&mut self, uuid: &BufferUuid, waiting: Vec<Asker>, ctx: &mut Context<Self>) {
        for asker in waiting.into_iter().filter(|asker| !asker.reply.is_closed()) {
            self.lease(uuid, asker, ctx);
        }
    }
}

impl Handler<LeaseBufferMsg> for BufferActor {
    type Result = Deferred<Result<LeasedBufferMsg, Error>>;

    fn handle(&mut self, message: LeaseBufferMsg, ctx: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        let asker = Asker { in_one_go: message.in_one_go, asked: Instant::now(), reply };
        self.lease(&message.buffer_uuid, asker, ctx);
        deferred
    }
}

impl Handler<Settle> for BufferActor {
    type Result = ();

    fn handle(&mut self, Settle { uuid, seq, settled }: Settle, ctx: &mut Self::Context) {
        // an older message of that name is no longer here, and its delivery matters to nobody
        if self.messages.get(&uuid).is_none_or(|held| held.seq != seq) {
            return;
        }
        let waiting = match settled {
            Settled::Finishing => {
                if let Some(lease) = self.leases.get_mut(&seq) {
                    lease.finishing = true;
                }
                return;
            }
            Settled::Delivered => {
                self.delivered_total += 1;
                self.remove(&uuid)
            }
            Settled::Released => self.end_lease(seq),
        };
        self.lease_to_waiting(&uuid, waiting, ctx);
    }
}
