//! The leases that this gateway has, and the requests for them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures::FutureExt;

use super::{Local, SharedBuffer};
use crate::buffer::metrics::Departure;
use crate::buffer_uuid::BufferUuid;
use crate::error::Error;
use crate::lease::{
    BufferLease, BufferLeaseEvent, BufferMsgView, LeaseEnd, LeasedBufferMsg, Progress, RenewFor, Renewal, Term,
};
use crate::messages::{LeaseBufferMsg, PeekBufferMsg};
use crate::postgres::{Claim, ClaimId, Claimed, LEASE};
use crate::reply::{Deferred, Reply, deferred};
use crate::store::{Seq, StoreError};

/// A lease is renewed when the last renewal is this old.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(10);

/// By how much a gateway's own deadline is earlier than the end of its lease: time to hand over what it has begun to,
/// and for clocks that run at different rates.
const MARGIN: Duration = Duration::from_secs(5);

/// How long a request without a `wait` waits for the end of a delivery of this gateway whose last chunk is being handed
/// over. Normally that takes a few milliseconds.
const FINISHING_WAIT: Duration = Duration::from_secs(1);

/// The pause before the removal of a delivered message is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The leases of this gateway, by numbers of its own.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: RefCell<HashMap<Seq, Held>>,
    next: Cell<Seq>,
    /// How many ends of deliveries are on their way to the database.
    settling: Cell<usize>,
    /// The messages whose last chunk is being handed over, or whose removal is on its way, with the number of such
    /// deliveries.
    finishing: RefCell<HashMap<BufferUuid, usize>>,
}

#[derive(Debug)]
struct Held {
    claim: ClaimId,
    term: Arc<Term>,
    finishing: bool,
}

impl Leases {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.held.borrow().len()
    }

    /// Whether no end of a delivery is on its way to the database.
    pub fn are_settled(&self) -> bool {
        self.settling.get() == 0
    }

    /// Renews the leases whose time it is.
    pub fn renew_if_due(&self) {
        for held in self.held.borrow().values().filter(|held| held.term.age() >= RENEWAL_INTERVAL) {
            let term = Arc::clone(&held.term);
            actix::spawn(async move { term.renew(RenewFor::More).await });
        }
    }

    fn is_finishing(&self, uuid: &BufferUuid) -> bool {
        self.finishing.borrow().contains_key(uuid)
    }

    fn begin_finishing(&self, uuid: &BufferUuid) {
        *self.finishing.borrow_mut().entry(uuid.clone()).or_default() += 1;
    }

    fn end_finishing(&self, uuid: &BufferUuid) {
        let mut finishing = self.finishing.borrow_mut();
        if let Some(deliveries) = finishing.get_mut(uuid) {
            *deliveries -= 1;
            if *deliveries == 0 {
                finishing.remove(uuid);
            }
        }
    }
}

/// A request for a buffered message.
enum Request {
    Lease {
        max_single_write: u64,
        seen: Option<String>,
        owner: Recipient<BufferLeaseEvent>,
        reply: Reply<Result<LeasedBufferMsg, Error>>,
    },
    View(Reply<Result<BufferMsgView, Error>>),
}

impl Request {
    fn is_gone(&self) -> bool {
        match self {
            Self::Lease { reply, .. } => reply.is_closed(),
            Self::View(reply) => reply.is_closed(),
        }
    }

    fn refuse(self, error: Error) {
        match self {
            Self::Lease { reply, .. } => reply.send(Err(error)),
            Self::View(reply) => reply.send(Err(error)),
        }
    }
}

impl Local {
    /// Replies to a request as soon as that is possible, after `wait` at the latest.
    async fn serve(&self, uuid: BufferUuid, mut request: Request, wait: Duration) {
        let begun = Instant::now();
        while !request.is_gone() {
            let patience = if self.waiting.has_ended() { Duration::ZERO } else { wait };
            let patience = if self.leases.is_finishing(&uuid) { patience.max(FINISHING_WAIT) } else { patience };
            let left = patience.saturating_sub(begun.elapsed());
            // before the database is asked, so that no change is missed
            let may_wait = !left.is_zero();
            let changed = may_wait.then(|| self.waiting.wait(&uuid, matches!(request, Request::View(_))));
            let (waiting, error) = match self.try_to_serve(&uuid, request, !may_wait).await {
                Ok(()) => return,
                Err(unserved) => unserved,
            };
            request = waiting;
            match changed {
                Some(changed) if !matches!(error, Error::Store(_)) => {
                    let _ = tokio::time::timeout(left, changed).await;
                }
                _ => return request.refuse(error),
            }
        }
    }

    /// Replies to a request if the message is there. Otherwise returns it, with the reply that it would get.
    /// `is_last`: the end of a delivery is not waited for.
    async fn try_to_serve(&self, uuid: &BufferUuid, request: Request, is_last: bool) -> Result<(), (Request, Error)> {
        match request {
            Request::View(reply) => match self.database.peek(uuid).await {
                Ok(Some(view)) if is_last || !self.leases.is_finishing(uuid) => reply.send(Ok(view)),
                Ok(Some(_)) => return Err((Request::View(reply), Error::InDelivery)),
                Ok(None) => return Err((Request::View(reply), Error::NoBufferMsg)),
                Err(error) => return Err((Request::View(reply), error.into())),
            },
            Request::Lease { max_single_write, seen, owner, reply } => {
                let error = match self.claim(uuid, seen.as_deref()).await {
                    Ok(Claim::Claimed(claimed)) => {
                        // If the sender has hung up, the reply is dropped, and with it the lease.
                        reply.send(Ok(self.lease(uuid, *claimed, max_single_write, owner)));
                        return Ok(());
                    }
                    Ok(Claim::InDelivery) => Error::InDelivery,
                    Ok(Claim::Absent) => Error::NoBufferMsg,
                    Err(error) => error.into(),
                };
                return Err((Request::Lease { max_single_write, seen, owner, reply }, error));
            }
        }
        Ok(())
    }

    /// Claims a message; from another gateway that delivers it, if the worker has `seen` its ETag there.
    async fn claim(&self, uuid: &BufferUuid, seen: Option<&str>) -> Result<Claim, StoreError> {
        let claim = self.database.claim(uuid).await?;
        match (&claim, seen) {
            (Claim::InDelivery, Some(seen)) => {
                let claim = self.database.take_over(uuid, seen).await?;
                if matches!(claim, Claim::Claimed(_)) {
                    log::info!("message {uuid:?} was in delivery at another gateway, and its worker goes on here");
                }
                Ok(claim)
            }
            _ => Ok(claim),
        }
    }

    fn lease(
        &self,
        uuid: &BufferUuid,
        claimed: Claimed,
        max_single_write: u64,
        owner: Recipient<BufferLeaseEvent>,
    ) -> LeasedBufferMsg {
        let Claimed { id: claim, view, progress, since, is_ending } = claimed;
        let (database, renewed) = (self.database.clone(), claim.clone());
        let term = Arc::new(Term::new(since, LEASE - MARGIN, is_ending, move |purpose| {
            let (database, claim) = (database.clone(), renewed.clone());
            let renewing = async move {
                match database.renew(claim, purpose == RenewFor::End).await {
                    Ok(Some(asked)) => Renewal::Renewed(asked),
                    Ok(None) => Renewal::Lost,
                    Err(_) => Renewal::Unknown,
                }
            };
            renewing.boxed()
        }));
        let finishing = view.blend.is_none() && view.payload.len() <= max_single_write;
        if finishing {
            self.leases.begin_finishing(uuid);
        }
        let number = self.leases.next.get();
        self.leases.next.set(number + 1);
        self.leases.held.borrow_mut().insert(number, Held { claim, term: Arc::clone(&term), finishing });
        let lease = BufferLease::new(owner, uuid.clone(), number, finishing, progress).for_term(term);
        LeasedBufferMsg { view, lease }
    }

    /// Tells the database how a delivery has ended. Until it knows, the message counts as one that is finishing.
    async fn settle(&self, uuid: &BufferUuid, claim: ClaimId, end: Result<(), Option<Progress>>) {
        match end {
            Ok(()) => loop {
                match self.database.deliver(claim.clone()).await {
                    Ok(true) => break self.metrics.borrow_mut().left(Departure::Delivered),
                    Ok(false) => break,
                    Err(error) if self.is_draining.get() => {
                        break log::warn!("message {uuid:?} was delivered, and may be delivered again: {error}");
                    }
                    // nobody else gets the message before the database is back
                    Err(error) => log::warn!("message {uuid:?} was delivered, and is not removed yet: {error}"),
                }
                tokio::time::sleep(RETRY).await;
            },
            Err(progress) => {
                if let Err(error) = self.database.release(claim, progress).await {
                    let seconds = LEASE.as_secs();
                    log::warn!("message {uuid:?} is offered again after {seconds} s only: {error}");
                }
            }
        }
        self.leases.end_finishing(uuid);
        self.waiting.wake(uuid, true);
    }
}

impl Handler<LeaseBufferMsg> for SharedBuffer {
    type Result = Deferred<Result<LeasedBufferMsg, Error>>;

    fn handle(&mut self, message: LeaseBufferMsg, ctx: &mut Self::Context) -> Self::Result {
        let LeaseBufferMsg { buffer_uuid, max_single_write, wait, seen } = message;
        let (reply, deferred) = deferred();
        let request = Request::Lease { max_single_write, seen, owner: ctx.address().recipient(), reply };
        let local = Rc::clone(&self.local);
        actix::spawn(async move { local.serve(buffer_uuid, request, wait).await });
        deferred
    }
}

impl Handler<PeekBufferMsg> for SharedBuffer {
    type Result = Deferred<Result<BufferMsgView, Error>>;

    fn handle(&mut self, PeekBufferMsg { buffer_uuid, wait }: PeekBufferMsg, _: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        let local = Rc::clone(&self.local);
        actix::spawn(async move { local.serve(buffer_uuid, Request::View(reply), wait).await });
        deferred
    }
}

/// The end of a delivery is in the database, or will never be.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Settled;

impl Handler<BufferLeaseEvent> for SharedBuffer {
    type Result = ();

    fn handle(&mut self, BufferLeaseEvent { uuid, seq, end }: BufferLeaseEvent, ctx: &mut Self::Context) {
        let leases = &self.local.leases;
        let end = match end {
            LeaseEnd::Finishing => {
                let mut held = leases.held.borrow_mut();
                if let Some(held) = held.get_mut(&seq)
                    && !std::mem::replace(&mut held.finishing, true)
                {
                    leases.begin_finishing(&uuid);
                }
                return;
            }
            LeaseEnd::Delivered => Ok(()),
            LeaseEnd::Released(progress) => Err(progress),
        };
        let Some(Held { claim, finishing, .. }) = leases.held.borrow_mut().remove(&seq) else { return };
        // until the database knows, the message seems to be in delivery
        if !finishing {
            leases.begin_finishing(&uuid);
        }
        leases.settling.set(leases.settling.get() + 1);
        let (local, address) = (Rc::clone(&self.local), ctx.address());
        actix::spawn(async move {
            local.settle(&uuid, claim, end).await;
            local.leases.settling.set(local.leases.settling.get() - 1);
            address.do_send(Settled);
        });
    }
}

impl Handler<Settled> for SharedBuffer {
    type Result = ();

    fn handle(&mut self, _: Settled, ctx: &mut Self::Context) {
        self.stop_if_settled(ctx);
    }
}
