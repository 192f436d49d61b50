//! Leases of buffered messages, and the requests that wait for a delivery to end.

use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use actix::prelude::*;

use crate::buffer::{BufferActor, Held};
use crate::buffer_uuid::BufferUuid;
use crate::deadlines::Deadline;
use crate::error::Error;
use crate::lease::{BufferLease, BufferLeaseEvent, BufferMsgView, LeaseEnd, LeasedBufferMsg};
use crate::messages::{LeaseBufferMsg, PeekBufferMsg};
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
    Lease { max_single_write: u64, reply: Reply<Result<LeasedBufferMsg, Error>> },
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
            Wish::Lease { max_single_write, reply } => {
                // a lease that nobody takes is dropped, and so ends
                reply.send(found.and_then(|(seq, view)| self.lease(uuid, seq, view, max_single_write, ctx)));
            }
        }
    }

    fn lease(
        &mut self,
        uuid: &BufferUuid,
        seq: Seq,
        view: BufferMsgView,
        max_single_write: u64,
        ctx: &Context<Self>,
    ) -> Result<LeasedBufferMsg, Error> {
        let Entry::Vacant(entry) = self.leases.entry(seq) else { return Err(Error::InDelivery) };
        let finishing = view.blend.is_none() && view.payload.len() <= max_single_write;
        entry.insert(Lease { finishing, waiting: Waiting::default() });
        let progress = self.messages.get(uuid).map(Held::progress).unwrap_or_default();
        let lease = BufferLease::new(ctx.address().recipient(), uuid.clone(), seq, finishing, progress);
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
        let wish = Wish::Lease { max_single_write: message.max_single_write, reply };
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

impl Handler<BufferLeaseEvent> for BufferActor {
    type Result = ();

    fn handle(&mut self, BufferLeaseEvent { uuid, seq, end }: BufferLeaseEvent, ctx: &mut Self::Context) {
        // an older message of that name is no longer here: its delivery matters to nobody, but what it held is free now
        let Some(held) = self.messages.get_mut(&uuid).filter(|held| held.seq == seq) else {
            if !matches!(end, LeaseEnd::Finishing)
                && let Some(cost) = self.lingering.remove(&seq)
            {
                self.lingering_bytes -= cost;
            }
            return;
        };
        let waiting = match end {
            LeaseEnd::Finishing => {
                if let Some(lease) = self.leases.get_mut(&seq) {
                    lease.finishing = true;
                }
                return;
            }
            LeaseEnd::Delivered => {
                self.delivered_total += 1;
                self.remove(&uuid)
            }
            LeaseEnd::Released(progress) => {
                if progress.is_some() {
                    held.rare.get_or_insert_default().progress = progress;
                }
                self.offer_again(&uuid, seq)
            }
        };
        self.give_to_waiting(&uuid, waiting, ctx);
    }
}
