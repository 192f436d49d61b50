//! The right to deliver one buffered message: a value that restores the message when it is dropped.

use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use actix::prelude::*;

use crate::buffer::covered::{Covered, Transfer};
use crate::buffer::{BufferActor, Held};
use crate::deadlines::Deadline;
use crate::error::Error;
use crate::messages::{BufferMsgView, BufferUuid, LeaseBufferMsg, PeekBufferMsg};
use crate::reply::{Deferred, Reply, deferred};
use crate::store::Seq;
use crate::wait_queue::WaitQueue;

/// How long someone waits for a delivery of the same message whose last part is on its way. Where the worker takes it,
/// this is over in microseconds; one that stalls is a delivery like any other.
const FINISHING_WAIT: Duration = Duration::from_secs(1);

/// Someone who asks for a message.
#[derive(Debug)]
pub(super) struct Asker {
    asked: Instant,
    wish: Wish,
}

/// What somebody asks for.
#[derive(Debug)]
enum Wish {
    /// To deliver it.
    Lease { in_one_go: u64, reply: Reply<Result<LeasedBufferMsg, Error>> },
    /// To know what it looks like.
    View(Reply<Result<BufferMsgView, Error>>),
}

impl Asker {
    fn new(wish: Wish) -> Self {
        Self { asked: Instant::now(), wish }
    }

    fn is_gone(&self) -> bool {
        match &self.wish {
            Wish::Lease { reply, .. } => reply.is_closed(),
            Wish::View(reply) => reply.is_closed(),
        }
    }
}

/// A delivery under way.
#[derive(Debug)]
pub(super) struct Lease {
    /// The last part is on its way to the worker, who may ask again before the outcome is known here.
    finishing: bool,
    waiting: Waiting,
}

/// Those who wait for the end of a delivery, and when the first of them has waited long enough.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    askers: WaitQueue<Asker>,
    deadline: Option<Deadline>,
}

/// To [`BufferActor`]: some of those who wait for the end of this delivery have waited long enough.
#[derive(Debug)]
pub(super) struct WaitingIsOver(Seq);

/// A message, and the right to deliver it.
#[derive(Debug)]
pub struct LeasedBufferMsg {
    /// What to deliver.
    pub view: BufferMsgView,
    /// The right to do so.
    pub lease: BufferLease,
}

/// The right to deliver one message. Dropped, it offers the message again at once, and what has been handed over of it
/// counts for the next delivery; see [`BufferLease::begin`] and [`BufferLease::delivered`].
#[derive(Debug)]
pub struct BufferLease {
    buffer: Addr<BufferActor>,
    uuid: BufferUuid,
    seq: Seq,
    /// The actor knows that the last part is on the way.
    finishing: bool,
    /// What deliveries before this one have handed over.
    covered: Covered,
    /// What this one sends; none where that does not count.
    transfer: Option<Transfer>,
    delivered: bool,
}

impl BufferLease {
    /// The bytes of the message from `start` on are about to be sent. `version` is that of all `len` bytes, the .blend
    /// file's among them.
    ///
    /// They count towards the delivery if `start` is not beyond what has been handed over of this version, from its first
    /// byte on and without a gap, or if the worker has `proven` that it has the bytes before.
    pub fn begin(&mut self, version: &str, len: u64, start: u64, proven: bool) {
        self.transfer = std::mem::take(&mut self.covered).transfer(version, len, start, proven);
    }

    /// So many bytes more are with the worker's connection.
    pub fn handed_over(&mut self, bytes: u64) {
        self.transfer.iter_mut().for_each(|transfer| transfer.add(bytes));
    }

    /// Whether the whole message has been handed over, by this delivery and those before.
    pub fn completes(&self) -> bool {
        self.transfer.as_ref().is_some_and(Transfer::completes)
    }

    /// The last part of the message is about to be handed over. Whoever asks for the message from now on waits for
    /// the outcome: a worker that has the last byte may ask again before [`BufferLease::delivered`] is called.
    pub fn finishing(&self) {
        if !self.finishing {
            self.settle(Settled::Finishing);
        }
    }

    /// The whole message has been handed to the worker's connection: it is removed.
    pub fn delivered(mut self) {
        self.delivered = true;
    }

    fn settle(&self, settled: Settled) {
        self.buffer.do_send(Settle { uuid: self.uuid.clone(), seq: self.seq, settled });
    }
}

impl Drop for BufferLease {
    fn drop(&mut self) {
        let transfer = self.transfer.take();
        self.settle(match self.delivered {
            true => Settled::Delivered,
            false => Settled::Released(transfer.map(Transfer::covered)),
        });
    }
}

/// What has become of a delivery.
#[derive(Debug)]
pub(super) enum Settled {
    Finishing,
    Delivered,
    /// With how far the message is covered now, where that may have changed.
    Released(Option<Covered>),
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
    /// Gives an asker what it wants; where a delivery is about to end, when it has ended.
    fn give(&mut self, uuid: &BufferUuid, asker: Asker, ctx: &mut Context<Self>) {
        let found = self.find(uuid).map(|held| (held.seq, held.view()));
        if let Ok((seq, _)) = found
            && let Some(lease) = self.leases.get_mut(&seq)
            && lease.finishing
        {
            let left = FINISHING_WAIT.saturating_sub(asker.asked.elapsed());
            lease.waiting.deadline.get_or_insert_with(|| self.deadlines.add(WaitingIsOver(seq), left));
            lease.waiting.askers.push(asker, Asker::is_gone);
            return;
        }
        match asker.wish {
            Wish::View(reply) => reply.send(found.map(|(_, view)| view)),
            Wish::Lease { in_one_go, reply } => {
                // a lease that nobody takes is dropped, and so ends
                reply.send(found.and_then(|(seq, view)| self.lease(uuid, seq, view, in_one_go, ctx)));
            }
        }
    }

    fn lease(
        &mut self,
        uuid: &BufferUuid,
        seq: Seq,
        view: BufferMsgView,
        in_one_go: u64,
        ctx: &Context<Self>,
    ) -> Result<LeasedBufferMsg, Error> {
        let Entry::Vacant(entry) = self.leases.entry(seq) else { return Err(Error::InDelivery) };
        let finishing = view.blend.is_none() && view.payload.len() <= in_one_go;
        entry.insert(Lease { finishing, waiting: Waiting::default() });
        let lease = BufferLease {
            buffer: ctx.address(),
            uuid: uuid.clone(),
            seq,
            finishing,
            covered: self.messages.get(uuid).map(Held::covered).unwrap_or_default(),
            transfer: None,
            delivered: false,
        };
        Ok(LeasedBufferMsg { view, lease })
    }

    /// Those who have waited long enough for the end of this delivery wait no more.
    fn end_waiting(&mut self, seq: Seq) {
        let Some(lease) = self.leases.get_mut(&seq) else { return };
        lease.waiting.deadline = None;
        let view = self.names.get(&seq).and_then(|uuid| self.messages.get(uuid)).map(Held::view);
        while let Some(first) = lease.waiting.askers.first() {
            let left = FINISHING_WAIT.saturating_sub(first.asked.elapsed());
            if !left.is_zero() {
                lease.waiting.deadline = Some(self.deadlines.add(WaitingIsOver(seq), left));
                return;
            }
            match lease.waiting.askers.pop().map(|asker| asker.wish) {
                Some(Wish::Lease { reply, .. }) => reply.send(Err(Error::InDelivery)),
                Some(Wish::View(reply)) => reply.send(view.clone().ok_or(Error::NoBufferMsg)),
                None => {}
            }
        }
    }

    /// Ends a delivery, if there is one. Returns who waits for its end.
    pub(super) fn end_lease(&mut self, seq: Seq) -> WaitQueue<Asker> {
        let Waiting { askers, deadline } = self.leases.remove(&seq).map(|lease| lease.waiting).unwrap_or_default();
        deadline.into_iter().for_each(|deadline| self.deadlines.remove(deadline));
        askers
    }

    /// Gives those who have waited for a delivery to end what they want.
    pub(super) fn give_to_waiting(
        &mut self,
        uuid: &BufferUuid,
        mut waiting: WaitQueue<Asker>,
        ctx: &mut Context<Self>,
    ) {
        while let Some(asker) = waiting.pop() {
            if !asker.is_gone() {
                self.give(uuid, asker, ctx);
            }
        }
    }
}

impl StreamHandler<WaitingIsOver> for BufferActor {
    fn handle(&mut self, WaitingIsOver(seq): WaitingIsOver, _: &mut Self::Context) {
        self.end_waiting(seq);
    }
}

impl Handler<LeaseBufferMsg> for BufferActor {
    type Result = Deferred<Result<LeasedBufferMsg, Error>>;

    fn handle(&mut self, message: LeaseBufferMsg, ctx: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        let wish = Wish::Lease { in_one_go: message.in_one_go, reply };
        self.give(&message.buffer_uuid, Asker::new(wish), ctx);
        deferred
    }
}

impl Handler<PeekBufferMsg> for BufferActor {
    type Result = Deferred<Result<BufferMsgView, Error>>;

    fn handle(&mut self, message: PeekBufferMsg, ctx: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        self.give(&message.buffer_uuid, Asker::new(Wish::View(reply)), ctx);
        deferred
    }
}

impl Handler<Settle> for BufferActor {
    type Result = ();

    fn handle(&mut self, Settle { uuid, seq, settled }: Settle, ctx: &mut Self::Context) {
        // an older message of that name is no longer here: its delivery matters to nobody, but what it held is free now
        let Some(held) = self.messages.get_mut(&uuid).filter(|held| held.seq == seq) else {
            if !matches!(settled, Settled::Finishing)
                && let Some(cost) = self.lingering.remove(&seq)
            {
                self.lingering_bytes -= cost;
            }
            return;
        };
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
            Settled::Released(covered) => {
                if covered.is_some() {
                    held.rare.get_or_insert_default().covered = covered;
                }
                self.offer_again(&uuid, seq)
            }
        };
        self.give_to_waiting(&uuid, waiting, ctx);
    }
}
