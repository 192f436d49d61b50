//! Leases of buffered messages, and when a request for one is replied to.

use std::collections::hash_map::Entry;
use std::time::Duration;

use actix::prelude::*;

use crate::buffer::BufferActor;
use crate::buffer::metrics::Departure;
use crate::buffer::waiters::{TimedOut, WaitingIsOver, WaitsFor};
use crate::buffer_uuid::BufferUuid;
use crate::error::Error;
use crate::lease::{BufferLease, BufferLeaseEvent, BufferMsgView, LeaseEnd, LeasedBufferMsg};
use crate::messages::{LeaseBufferMsg, PeekBufferMsg, StopWaiting};
use crate::reply::{Deferred, Reply, deferred};
use crate::store::Seq;

/// How long a request without a `wait` waits for the end of a delivery whose last chunk is being handed over. Normally
/// the worker accepts that chunk within microseconds. If it stalls, the reply is that the message is in delivery.
const FINISHING_WAIT: Duration = Duration::from_secs(1);

/// A request for a buffered message.
#[derive(Debug)]
pub(super) enum Request {
    Lease { max_single_write: u64, reply: Reply<Result<LeasedBufferMsg, Error>> },
    View(Reply<Result<BufferMsgView, Error>>),
}

impl Request {
    /// Whether nobody waits for the reply any more.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Lease { reply, .. } => reply.is_closed(),
            Self::View(reply) => reply.is_closed(),
        }
    }
}

/// A delivery in progress.
#[derive(Debug)]
pub(super) struct Lease {
    /// Whether the last chunk is being handed over. The worker may send its next request before this actor knows the
    /// outcome.
    finishing: bool,
}

/// Where a message is, as far as a request for it is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Availability {
    Absent,
    Free,
    Leased,
    Finishing,
}

impl BufferActor {
    fn availability(&self, uuid: &BufferUuid) -> Availability {
        match self.find(uuid).map(|message| self.leases.get(&message.seq)) {
            Err(_) => Availability::Absent,
            Ok(None) => Availability::Free,
            Ok(Some(lease)) if lease.finishing => Availability::Finishing,
            Ok(Some(_)) => Availability::Leased,
        }
    }

    /// Replies to a request, now or later. Once `wait` is over, it is treated as one without a `wait`.
    fn serve(&mut self, uuid: &BufferUuid, request: Request, wait: Duration, ctx: &mut Context<Self>) {
        let is_view = matches!(request, Request::View(_));
        let is_patient = !wait.is_zero() && !self.waiting_has_ended;
        let availability = self.availability(uuid);
        match availability {
            Availability::Absent | Availability::Leased | Availability::Finishing
                if is_patient && !(is_view && availability == Availability::Leased) =>
            {
                let waits_for = if is_view { WaitsFor::Message } else { WaitsFor::Lease };
                self.waiters.add(uuid, waits_for, request, wait);
            }
            Availability::Finishing => self.waiters.add(uuid, WaitsFor::Outcome, request, FINISHING_WAIT),
            Availability::Absent | Availability::Free | Availability::Leased => {
                self.reply(uuid, availability, request, ctx);
            }
        }
    }

    /// Replies to a request now.
    fn reply(&mut self, uuid: &BufferUuid, availability: Availability, request: Request, ctx: &mut Context<Self>) {
        let message = self.messages.get_mut(uuid).filter(|_| availability != Availability::Absent);
        let found = message.map(|message| (message.seq, message.view())).ok_or(Error::NoBufferMsg);
        match request {
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
        entry.insert(Lease { finishing });
        self.metrics.holds(self.held());
        let progress = self.messages.get(uuid).map(|message| message.progress()).unwrap_or_default();
        let lease = BufferLease::new(ctx.address().recipient(), uuid.clone(), seq, finishing, progress);
        Ok(LeasedBufferMsg { view, lease })
    }

    /// Replies to the waiters of this UUID, in order, as far as the state of its message allows. To be called whenever
    /// a message is added or removed, and whenever a delivery ends.
    pub(super) fn serve_waiters(&mut self, uuid: &BufferUuid, ctx: &mut Context<Self>) {
        while self.waiters.len() > 0 {
            let availability = self.availability(uuid);
            let served: &[WaitsFor] = match availability {
                Availability::Absent => &[WaitsFor::Outcome],
                Availability::Free => &[WaitsFor::Outcome, WaitsFor::Message, WaitsFor::Lease],
                Availability::Leased => &[WaitsFor::Outcome, WaitsFor::Message],
                Availability::Finishing => &[],
            };
            let Some(request) = self.waiters.pop(uuid, served) else { return };
            self.reply(uuid, availability, request, ctx);
        }
    }

    /// Nobody gets this message while its removal is on its way to the store. Requests for it wait for the outcome.
    pub(super) fn lease_for_removal(&mut self, seq: Seq) {
        self.leases.insert(seq, Lease { finishing: true });
    }

    /// The lease of a message that was replaced meanwhile has ended: frees what the message cost.
    pub(super) fn end_lingering(&mut self, seq: Seq) {
        if let Some(cost) = self.lingering.remove(&seq) {
            self.lingering_bytes -= cost;
        }
    }

    /// From now on no request waits for a message.
    pub(super) fn end_waiting(&mut self, ctx: &mut Context<Self>) {
        self.waiting_has_ended = true;
        for uuid in self.waiters.uuids() {
            while let Some(request) = self.waiters.pop(&uuid, &[WaitsFor::Message, WaitsFor::Lease]) {
                self.serve(&uuid, request, Duration::ZERO, ctx);
            }
        }
    }
}

impl StreamHandler<WaitingIsOver> for BufferActor {
    fn handle(&mut self, over: WaitingIsOver, ctx: &mut Self::Context) {
        match self.waiters.time_out(over) {
            // the last chunk stalls
            Some(TimedOut { uuid, waits_for: WaitsFor::Outcome, request }) => {
                self.reply(&uuid, Availability::Finishing, request, ctx);
            }
            Some(TimedOut { uuid, request, .. }) => self.serve(&uuid, request, Duration::ZERO, ctx),
            None => {}
        }
    }
}

impl Handler<LeaseBufferMsg> for BufferActor {
    type Result = Deferred<Result<LeasedBufferMsg, Error>>;

    fn handle(&mut self, message: LeaseBufferMsg, ctx: &mut Self::Context) -> Self::Result {
        let LeaseBufferMsg { buffer_uuid, max_single_write, wait, seen: _ } = message;
        let (reply, deferred) = deferred();
        self.serve(&buffer_uuid, Request::Lease { max_single_write, reply }, wait, ctx);
        deferred
    }
}

impl Handler<PeekBufferMsg> for BufferActor {
    type Result = Deferred<Result<BufferMsgView, Error>>;

    fn handle(&mut self, PeekBufferMsg { buffer_uuid, wait }: PeekBufferMsg, ctx: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        self.serve(&buffer_uuid, Request::View(reply), wait, ctx);
        deferred
    }
}

impl Handler<StopWaiting> for BufferActor {
    type Result = ();

    fn handle(&mut self, _: StopWaiting, ctx: &mut Self::Context) {
        self.end_waiting(ctx);
    }
}

impl Handler<BufferLeaseEvent> for BufferActor {
    type Result = ();

    fn handle(&mut self, BufferLeaseEvent { uuid, seq, end }: BufferLeaseEvent, ctx: &mut Self::Context) {
        // A replaced message is no longer in the map: only its cost is freed.
        let Some(message) = self.messages.get_mut(&uuid).filter(|message| message.seq == seq) else {
            if !matches!(end, LeaseEnd::Finishing) {
                self.end_lingering(seq);
            }
            return;
        };
        match end {
            LeaseEnd::Finishing => {
                if let Some(lease) = self.leases.get_mut(&seq) {
                    lease.finishing = true;
                }
                return;
            }
            LeaseEnd::Delivered => self.remove(&uuid, Departure::Delivered),
            LeaseEnd::Released(progress) => {
                if progress.is_some() {
                    message.cold.get_or_insert_default().progress = progress;
                }
                self.offer_again(&uuid, seq);
            }
        }
        self.serve_waiters(&uuid, ctx);
    }
}
