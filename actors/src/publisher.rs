//! `UserManagerPublisher`: owns the outbox, the store below it and the link to the broker, if there is one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;

use crate::broker::{PublisherEvent, PublisherLink};
use crate::error::Error;
use crate::lease::{NextMessage, OutboxLeaseEvent};
use crate::messages::{FromStore, ParkedMessages, ProbeStore, TakeNextMessage};
use crate::metrics::OldestAge;
use crate::payload::Payload;
use crate::reply::{Deferred, Reply, deferred};
use crate::store::{Recovered, Seq, StoreError, StoreEvent, StoreHandle, check_failure};

mod administration;
mod confirm_through;
mod forward;
mod idempotency;
mod keys;
mod lease;
mod metrics;
mod outbox;
mod parking;
mod record;
mod removal;
mod state;
mod stopping;

use forward::{BrokerMetrics, Forwarder, Next};
use keys::Keys;
use lease::NextMessageRequests;
use metrics::{Departure, OutboxMetrics};
use outbox::{Due, Outbox, RecoveredOutbox, Sender};
use removal::Removal;
use stopping::Draining;

/// Starts the link to the broker. The link reports what happens on the connection to the function that it is given.
pub type StartLink = Box<dyn FnOnce(Box<dyn Fn(PublisherEvent) + Send>) -> Box<dyn PublisherLink>>;

/// The broker that messages are published to.
pub struct BrokerRoute {
    /// Starts the link to it.
    pub start_link: StartLink,
    /// What the senders of messages wait for.
    pub frame_ack: FrameAck,
}

/// What the sender of a message for the user manager waits for, if there is a broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameAck {
    /// The message is on stable storage here, or the broker has confirmed it, whichever comes first.
    #[default]
    Stored,
    /// The broker has confirmed it. While the broker does not, messages are refused with [`Error::NotConfirmed`], and
    /// no new message is stored here.
    Broker,
}

/// Owns the outbox. What it has accepted reaches the user manager.
#[derive(Debug)]
pub struct UserManagerPublisher {
    outbox: Outbox,
    keys: Keys,
    max_bytes: u64,
    /// A message was refused because the outbox is full, and none has left it since.
    full: bool,
    route: Route,
    frame_ack: FrameAck,
    /// Removals that the store is writing.
    removals: HashMap<Seq, Removal>,
    store: StoreHandle,
    /// The markers that the store is writing, with the messages that they mark.
    pending_markers: BTreeMap<Seq, Seq>,
    pending_flushes: BTreeMap<Seq, PendingFlush>,
    store_failure: Option<StoreError>,
    /// Set by [`StopLeasing`](crate::messages::StopLeasing) and [`Drain`](crate::messages::Drain): senders who wait for
    /// the broker get their answers soon.
    is_stopping: bool,
    draining: Draining,
    /// When the state of the connection to the broker last changed.
    broker_changed: Instant,
    arrived_total: u64,
    arrived_bytes_total: u64,
    test_total: u64,
    unknown_total: u64,
    metrics: OutboxMetrics,
}

/// What follows when everything that was requested before has its outcome.
#[derive(Debug)]
enum PendingFlush {
    ListParked(ParkedMessages, Reply<ParkedMessages>),
    Probe(Reply<()>),
    Stop,
}

/// Who gets the messages.
#[derive(Debug)]
enum Route {
    Broker(Box<Forwarder>),
    UserManager(NextMessageRequests),
}

impl UserManagerPublisher {
    /// An actor that holds the `recovered` messages of `store` and keeps at most `max_bytes` bytes of messages. They go
    /// to the `broker`; without one, the user manager asks for them. Run it in the context that has the `address`.
    ///
    /// # Errors
    /// The number of a record that is no message of an outbox.
    pub fn new(
        store: StoreHandle,
        recovered: Vec<Recovered>,
        max_bytes: u64,
        broker: Option<BrokerRoute>,
        address: Addr<Self>,
    ) -> Result<Self, Seq> {
        let RecoveredOutbox { outbox, keys, useless } = Outbox::recover(recovered)?;
        let (keys, earlier) = Keys::recover(keys);
        useless.into_iter().chain(earlier).for_each(|record| store.remove(record));
        let metrics = OutboxMetrics::register(max_bytes);
        metrics.recovered(&outbox);
        let broker_metrics = BrokerMetrics::register(broker.is_some());
        let frame_ack = broker.as_ref().map_or(FrameAck::Stored, |broker| broker.frame_ack);
        let route = match broker {
            None => Route::UserManager(NextMessageRequests::default()),
            Some(BrokerRoute { start_link, .. }) => {
                let link = start_link(Box::new(move |event| address.do_send(FromBroker(event))));
                Route::Broker(Box::new(Forwarder::new(link, broker_metrics)))
            }
        };
        Ok(Self {
            outbox,
            keys,
            max_bytes,
            full: false,
            route,
            frame_ack,
            removals: HashMap::new(),
            store,
            pending_markers: BTreeMap::new(),
            pending_flushes: BTreeMap::new(),
            store_failure: None,
            is_stopping: false,
            draining: Draining::No,
            broker_changed: Instant::now(),
            arrived_total: 0,
            arrived_bytes_total: 0,
            test_total: 0,
            unknown_total: 0,
            metrics,
        })
    }

    /// The age of the oldest message, for whoever reads the metrics.
    pub(crate) fn oldest_age(&self) -> Arc<OldestAge> {
        Arc::clone(self.metrics.oldest())
    }

    /// Refuses a message that the broker is known to refuse.
    fn check_size(&self, size: u64) -> Result<(), Error> {
        match &self.route {
            Route::Broker(forwarder) => match forwarder.size_limit() {
                Some(limit) if size > limit => Err(Error::TooLargeForBroker { size, limit }),
                _ => Ok(()),
            },
            Route::UserManager(_) => Ok(()),
        }
    }

    /// Refuses a message that there is no space for, or that comes too late.
    fn admit(&mut self, cost: u64) -> Result<(), Error> {
        if !matches!(self.draining, Draining::No) {
            return Err(Error::Stopping);
        }
        check_failure(&self.store_failure)?;
        let held = self.outbox.held_bytes();
        if held + cost > self.max_bytes {
            self.full = true;
            let (what, limit) = ("messages for the user manager", self.max_bytes);
            return Err(Error::NoCapacity { what, size: cost, held, limit });
        }
        Ok(())
    }

    /// Handles the outcome of a put.
    fn finish_put(&mut self, seq: Seq, outcome: Result<Payload, StoreError>, ctx: &mut Context<Self>) {
        if let Some(parked) = self.pending_markers.remove(&seq) {
            self.marker_stored(parked, outcome.map(|_| seq));
        } else if let Some(key) = self.keys.recorded(seq) {
            self.key_recorded(key, seq, outcome);
        } else {
            self.message_stored(seq, outcome, ctx);
        }
    }

    /// Lets `then` follow when everything that was requested before has its outcome.
    fn flush(&mut self, then: PendingFlush, ctx: &mut Context<Self>) {
        let seq = match then {
            PendingFlush::Stop => self.store.stop(),
            PendingFlush::ListParked(..) | PendingFlush::Probe(_) => self.store.flush(),
        };
        self.pending_flushes.insert(seq, then);
        if let Err(error) = check_failure(&self.store_failure) {
            self.finish_flush(seq, Err(error), ctx);
        }
    }

    fn finish_flush(&mut self, seq: Seq, outcome: Result<(), StoreError>, ctx: &mut Context<Self>) {
        match self.pending_flushes.remove(&seq) {
            // listed on a full disk too: deleting them frees space
            Some(PendingFlush::ListParked(parked, reply)) => reply.send(parked),
            Some(PendingFlush::Probe(reply)) => reply.send(()),
            Some(PendingFlush::Stop) => {
                if let Err(error) = outcome {
                    log::warn!("forwarded messages may be forwarded again after a restart: {error}");
                }
                if let Draining::Flushing(replies) = &mut self.draining {
                    replies.drain(..).for_each(|reply| reply.send(()));
                }
                ctx.stop();
            }
            None => {}
        }
    }

    /// Moves messages on, as far as they can go.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        if !matches!(self.draining, Draining::No) {
            return;
        }
        loop {
            match &mut self.route {
                Route::Broker(forwarder) => match forwarder.send(&mut self.outbox) {
                    Some((seq, reason)) => self.reject(seq, reason),
                    None => return,
                },
                Route::UserManager(requests) => {
                    return requests.answer(&mut self.outbox, &ctx.address().recipient());
                }
            }
        }
    }

    /// The broker has a message.
    fn forwarded(&mut self, seq: Seq) {
        // the message first: a marker of nothing is harmless
        if !self.outbox.is_unstored(seq) {
            self.store.remove(seq);
        }
        self.forget(seq, Departure::Forwarded).into_iter().for_each(|sender| self.answer(sender, Ok(())));
    }

    /// Forgets a message that is not in the store, or no longer. Returns its sender if that waits.
    fn forget(&mut self, seq: Seq, departure: Departure) -> Option<Sender> {
        let was_awaited = self.outbox.is_awaited(seq);
        if let Some(message) = self.outbox.get(seq) {
            self.metrics.left(message.meta.kind, was_awaited, departure);
        }
        let (marker, sender) = self.outbox.remove(seq);
        self.metrics.holds(&self.outbox);
        marker.into_iter().for_each(|marker| self.store.remove(marker));
        self.full = false;
        sender
    }
}

impl Actor for UserManagerPublisher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(self.outbox.deadlines());
        self.forget_old_keys();
    }
}

/// What happens on the connection to the broker.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct FromBroker(PublisherEvent);

impl Handler<FromBroker> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, FromBroker(event): FromBroker, ctx: &mut Self::Context) {
        let Route::Broker(forwarder) = &mut self.route else { return };
        let before = forwarder.state();
        let next = forwarder.handle(event, &mut self.outbox);
        if forwarder.state() != before {
            self.broker_changed = Instant::now();
        }
        match next {
            Next::Send => self.advance(ctx),
            Next::Remove(seq) => {
                self.forwarded(seq);
                self.advance(ctx);
            }
            Next::Park(seq, reason) => {
                self.reject(seq, reason);
                self.advance(ctx);
            }
            Next::Refuse(seq, reason) => {
                log::error!("a message that is not stored yet is refused: {reason}");
                self.refuse(seq, Error::NotConfirmed { reason: "its body cannot be read" });
                self.advance(ctx);
            }
            Next::BackOff(delay) => {
                ctx.run_later(delay, |actor, ctx| {
                    if let Route::Broker(forwarder) = &mut actor.route {
                        forwarder.back_off_elapsed();
                    }
                    actor.advance(ctx);
                });
            }
            Next::Nothing => {}
        }
        self.give_up_unpublished();
        self.stop_if_drained(ctx);
    }
}

impl Handler<TakeNextMessage> for UserManagerPublisher {
    type Result = Deferred<Result<Option<NextMessage>, Error>>;

    fn handle(&mut self, TakeNextMessage { lease, wait }: TakeNextMessage, ctx: &mut Self::Context) -> Self::Result {
        match &mut self.route {
            Route::UserManager(requests) if wait || requests.has_next(&self.outbox) => {
                let (reply, deferred) = deferred();
                requests.push(lease, reply);
                self.advance(ctx);
                deferred
            }
            Route::UserManager(_) => Deferred::now(Ok(None)),
            Route::Broker(_) => Deferred::now(Err(Error::BrokerIsConfigured)),
        }
    }
}

impl Handler<OutboxLeaseEvent> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, event: OutboxLeaseEvent, ctx: &mut Self::Context) {
        match event {
            OutboxLeaseEvent::Ended { seq, unused } => {
                if self.outbox.end_reading(seq) {
                    self.full = false;
                }
                unused.into_iter().for_each(|lease| self.outbox.release(seq, lease));
            }
            OutboxLeaseEvent::Unreadable { seq, reason } => self.park(seq, reason),
        }
        self.advance(ctx);
    }
}

/// The deadlines that have passed.
impl StreamHandler<Due> for UserManagerPublisher {
    fn handle(&mut self, due: Due, ctx: &mut Self::Context) {
        match due {
            Due::EndOfLease { seq, lease } => self.outbox.expire_lease(seq, lease),
            Due::Confirm { seq } => self.confirm_is_due(seq),
            Due::OldKeys => return self.forget_old_keys(),
        }
        self.advance(ctx);
    }
}

impl Handler<FromStore> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, FromStore(event): FromStore, ctx: &mut Self::Context) {
        let StoreEvent { stored, removed, flushed, moved, failure } = event;
        self.store_failure = failure;
        stored.into_iter().for_each(|(seq, outcome)| self.finish_put(seq, outcome, ctx));
        removed.into_iter().for_each(|(seq, outcome)| self.finish_removal(seq, outcome, ctx));
        moved.into_iter().for_each(|(seq, payload)| self.outbox.moved(seq, payload));
        flushed.into_iter().for_each(|(seq, outcome)| self.finish_flush(seq, outcome, ctx));
        if let Err(error) = check_failure(&self.store_failure) {
            let pending: Vec<Seq> = self
                .outbox
                .awaited()
                .chain(self.pending_markers.keys().copied())
                .chain(self.keys.recording())
                .collect();
            pending.into_iter().for_each(|seq| self.finish_put(seq, Err(error.clone()), ctx));
            let pending: Vec<Seq> = self.removals.keys().copied().collect();
            pending.into_iter().for_each(|seq| self.finish_removal(seq, Err(error.clone()), ctx));
            let pending: Vec<Seq> = self.pending_flushes.keys().copied().collect();
            pending.into_iter().for_each(|seq| self.finish_flush(seq, Err(error.clone()), ctx));
        }
    }
}

impl Handler<ProbeStore> for UserManagerPublisher {
    type Result = Deferred<()>;

    fn handle(&mut self, ProbeStore { refused }: ProbeStore, ctx: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        self.store.probe(refused);
        self.flush(PendingFlush::Probe(reply), ctx);
        deferred
    }
}
