//! Leases of buffered messages, and the requests that wait for a delivery to end.

use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use actix::prelude::*;

use crate::buffer::{BufferActor, BufferedMsg};
use crate::buffer_uuid::BufferUuid;
use crate::deadlines::Deadline;
use crate::error::Error;
use crate::lease::{BufferLease, BufferLeaseEvent, BufferMsgView, LeaseEnd, LeasedBufferMsg};
use crate::messages::{LeaseBufferMsg, PeekBufferMsg};
use crate::reply::{Deferred, Reply, deferred};
use crate::store::Seq;
use crate::wait_queue::WaitQueue;

/// How long a waiter waits for the end of a delivery whose last chunk is being handed over. Normally the worker accepts
/// that chunk within microseconds. If it stalls, the waiter gets the reply that the message is in delivery.
const FINISHING_WAIT: Duration = Duration::from_secs(1);

/// A request that may have to wait until a delivery ends.
#[derive(Debug)]
pub(super) struct Waiter {
    since: Instant,
    request: Request,
}

#[derive(Debug)]
enum Request {
    Lease { max_single_write: u64, reply: Reply<Result<LeasedBufferMsg, Error>> },
    View(Reply<Result<BufferMsgView, Error>>),
}

impl Waiter {
    fn new(request: Request) -> Self {
        Self { since: Instant::now(), request }
    }

    fn is_gone(&self) -> bool {
        match &self.request {
            Request::Lease { reply, .. } => reply.is_closed(),
            Request::View(reply) => reply.is_closed(),
        }
    }
}

/// A delivery in progress.
#[derive(Debug)]
pub(super) struct Lease {
    /// Whether the last chunk is being handed over. The worker may send its next request before this actor knows the
    /// outcome.
    finishing: bool,
    waiting: Waiting,
}

/// The waiters for the end of a delivery, and when the first of them times out.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    waiters: WaitQueue<Waiter>,
    deadline: Option<Deadline>,
}

/// To [`BufferActor`]: some waiters for the end of this delivery have timed out.
#[derive(Debug)]
pub(super) struct WaitingIsOver(Seq);

impl BufferActor {
    /// Answers a request: now, or, if a delivery is about to end, after it has ended.
    fn serve(&mut self, uuid: &BufferUuid, waiter: Waiter, ctx: &mut Context<Self>) {
        let found = self.find(uuid).map(|message| (message.seq, message.view()));
        if let Ok((seq, _)) = found
            && let Some(lease) = self.leases.get_mut(&seq)
            && lease.finishing
        {
            let left = FINISHING_WAIT.saturating_sub(waiter.since.elapsed());
            lease.waiting.deadline.get_or_insert_with(|| self.deadlines.add(WaitingIsOver(seq), left));
            lease.waiting.waiters.push(waiter, Waiter::is_gone);
            return;
        }
        match waiter.request {
            Request::View(reply) => reply.send(found.map(|(_, view)| view)),
            Request::Lease { max_single_write, reply } => {
                // If the sender has hung up, the reply is dropped, and with it the lease.
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
        let progress = self.messages.get(uuid).map(BufferedMsg::progress).unwrap_or_default();
        let lease = BufferLease::new(ctx.address().recipient(), uuid.clone(), seq, finishing, progress);
        Ok(LeasedBufferMsg { view, lease })
    }

    /// Answers the waiters for the end of this delivery that have timed out.
    fn end_waiting(&mut self, seq: Seq) {
        let Some(lease) = self.leases.get_mut(&seq) else { return };
        lease.waiting.deadline = None;
        let view = self.uuids.get(&seq).and_then(|uuid| self.messages.get(uuid)).map(BufferedMsg::view);
        while let Some(first) = lease.waiting.waiters.first() {
            let left = FINISHING_WAIT.saturating_sub(first.since.elapsed());
            if !left.is_zero() {
                lease.waiting.deadline = Some(self.deadlines.add(WaitingIsOver(seq), left));
                return;
            }
            match lease.waiting.waiters.pop().map(|waiter| waiter.request) {
                Some(Request::Lease { reply, .. }) => reply.send(Err(Error::InDelivery)),
                Some(Request::View(reply)) => reply.send(view.clone().ok_or(Error::NoBufferMsg)),
                None => {}
            }
        }
    }

    /// Ends a delivery, if there is one. Returns its waiters.
    pub(super) fn end_lease(&mut self, seq: Seq) -> WaitQueue<Waiter> {
        let Waiting { waiters, deadline } = self.leases.remove(&seq).map(|lease| lease.waiting).unwrap_or_default();
        deadline.into_iter().for_each(|deadline| self.deadlines.remove(deadline));
        waiters
    }

    /// Answers the waiters for a delivery that has ended.
    pub(super) fn serve_all(&mut self, uuid: &BufferUuid, mut waiters: WaitQueue<Waiter>, ctx: &mut Context<Self>) {
        while let Some(waiter) = waiters.pop() {
            if !waiter.is_gone() {
                self.serve(uuid, waiter, ctx);
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
        let request = Request::Lease { max_single_write: message.max_single_write, reply };
        self.serve(&message.buffer_uuid, Waiter::new(request), ctx);
        deferred
    }
}

impl Handler<PeekBufferMsg> for BufferActor {
    type Result = Deferred<Result<BufferMsgView, Error>>;

    fn handle(&mut self, message: PeekBufferMsg, ctx: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        self.serve(&message.buffer_uuid, Waiter::new(Request::View(reply)), ctx);
        deferred
    }
}

impl Handler<BufferLeaseEvent> for BufferActor {
    type Result = ();

    fn handle(&mut self, BufferLeaseEvent { uuid, seq, end }: BufferLeaseEvent, ctx: &mut Self::Context) {
        // A replaced message is no longer in the map: only its cost is freed.
        let Some(message) = self.messages.get_mut(&uuid).filter(|message| message.seq == seq) else {
            if !matches!(end, LeaseEnd::Finishing)
                && let Some(cost) = self.lingering.remove(&seq)
            {
                self.lingering_bytes -= cost;
            }
            return;
        };
        let waiters = match end {
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
                    message.cold.get_or_insert_default().progress = progress;
                }
                self.offer_again(&uuid, seq)
            }
        };
        self.serve_all(&uuid, waiters, ctx);
    }
}
