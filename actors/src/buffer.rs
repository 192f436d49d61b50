//! `BufferActor`: owns the buffered messages. They are added, leased for delivery, and removed once delivered.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures::future::Either;

use crate::age::{self, AgeClock, ByAge, Since};
use crate::broker::Fingerprint;
use crate::buffer_uuid::BufferUuid;
use crate::error::Error;
use crate::messages::{BufferState, Drain, FromStore, GetBufferState, ProbeStore};
use crate::metrics::OldestAge;
use crate::payload::Payload;
use crate::reply::{Deferred, Reply, deferred};
use crate::store::{Recovered, Seq, StoreError, StoreEvent, StoreHandle, check_failure, cost, encode_meta, now_ms};

mod adding;
mod administration;
mod expiry;
mod lease;
mod message;
pub(crate) mod metrics;
mod record;
mod redelivery;
mod references;
#[cfg(test)]
mod tests;
mod waiters;

use adding::PendingMsg;
use administration::Discard;
use lease::Lease;
use message::BufferedMsg;
use metrics::{BufferMetrics, Departure, Held};
use record::{Meta, Tombstone, Trace};
use redelivery::RedeliveryFilter;
use references::{PendingReference, References};
use waiters::Waiters;

/// Owns the buffered messages (`bufferMsgs` of the specification) and the store below them.
#[derive(Debug)]
pub struct BufferActor {
    /// Boxed, because a table of millions has twice as many slots after it has grown.
    messages: HashMap<BufferUuid, Box<BufferedMsg>>,
    uuids: BTreeMap<Seq, BufferUuid>,
    by_age: ByAge,
    clock: AgeClock,
    /// The lease of each message that is being delivered.
    leases: HashMap<Seq, Lease>,
    /// The removals by operators that the store is writing.
    discards: HashMap<Seq, Discard>,
    waiters: Waiters,
    /// Set by [`StopWaiting`](crate::messages::StopWaiting) and [`Drain`].
    waiting_has_ended: bool,
    redeliveries: RedeliveryFilter,
    references: References,
    /// The cost of all messages; see [`cost`].
    bytes: u64,
    /// The cost of messages that the store is writing.
    reserved: u64,
    /// The cost of each message that was replaced during its delivery, which still holds the body.
    lingering: HashMap<Seq, u64>,
    lingering_bytes: u64,
    max_bytes: u64,
    ttl: Duration,
    store: StoreHandle,
    pending_puts: PendingPuts,
    store_failure: Option<StoreError>,
    /// Set by [`Drain`]: for each one, the number of its flush and the reply that follows.
    draining: Option<Vec<(Seq, Reply<()>)>>,
    /// For each [`ProbeStore`], the number of its flush and the reply that follows.
    probes: HashMap<Seq, Reply<()>>,
    metrics: BufferMetrics,
}

/// What the store is writing, by sequence number.
type PendingPuts = BTreeMap<Seq, PendingWrite>;

#[derive(Debug)]
enum PendingWrite {
    Message(Box<PendingMsg>),
    Tombstone(Tombstone),
    Reference(Box<PendingReference>),
    /// The removal of a message that is refused although it was stored.
    Refused(Error, Reply<Result<(), Error>>),
}

impl BufferActor {
    /// An actor that owns `store` and the `recovered` messages in it. It holds messages that cost at most `max_bytes`
    /// bytes, and refuses more; each expires after `ttl`.
    ///
    /// # Errors
    /// The sequence number of a record that is not a buffered message.
    pub fn new(store: StoreHandle, recovered: Vec<Recovered>, max_bytes: u64, ttl: Duration) -> Result<Self, Seq> {
        let mut actor = Self {
            messages: HashMap::with_capacity(recovered.len()),
            uuids: BTreeMap::new(),
            by_age: ByAge::default(),
            clock: AgeClock::start(),
            leases: HashMap::new(),
            discards: HashMap::new(),
            waiters: Waiters::default(),
            waiting_has_ended: false,
            redeliveries: RedeliveryFilter::default(),
            references: References::default(),
            bytes: 0,
            reserved: 0,
            lingering: HashMap::new(),
            lingering_bytes: 0,
            max_bytes,
            ttl,
            store,
            pending_puts: PendingPuts::new(),
            store_failure: None,
            draining: None,
            probes: HashMap::new(),
            metrics: BufferMetrics::register(max_bytes),
        };
        let mut references = Vec::new();
        for record in recovered {
            match record.decode_meta::<Meta, Trace>()? {
                Either::Left(meta) => {
                    let since = actor.clock.since(meta.stored_at_ms, meta.boot);
                    let (uuid, message) = meta.into_message(record, since);
                    // a kill may leave the message that a later one has replaced
                    if let Some(replaced) = actor.forget(&uuid) {
                        actor.remove_record(replaced);
                    }
                    actor.insert(uuid, message);
                }
                Either::Right(Trace::Tombstone(tombstone)) => {
                    let since = actor.clock.since(tombstone.gone_at_ms, tombstone.boot);
                    actor.redeliveries.add_tombstone(since, tombstone.fingerprint, record.seq);
                }
                Either::Right(Trace::Reference(reference)) => {
                    let since = actor.clock.since(reference.referred_at_ms, reference.boot);
                    let cost = cost(record.meta.len(), 0);
                    references.push((since, record.seq, reference.into_reference(), cost));
                }
            }
        }
        let (references, replaced) = References::recovered(references);
        actor.references = references;
        replaced.into_iter().for_each(|record| actor.store.remove(record));
        actor.by_age = ByAge::recovered(actor.messages.values().map(|message| (message.since, message.seq)).collect());
        actor.metrics.recovered(actor.held());
        Ok(actor)
    }

    /// Inserts a message in place of an older one of that UUID.
    fn replace(&mut self, uuid: BufferUuid, message: BufferedMsg) {
        if let Some(replaced) = self.messages.get(&uuid)
            && self.leases.contains_key(&replaced.seq)
        {
            self.lingering_bytes += replaced.cost();
            self.lingering.insert(replaced.seq, replaced.cost());
        }
        self.remove(&uuid, Departure::Replaced);
        self.insert(uuid, message);
    }

    /// Inserts a message. There is none of that UUID.
    fn insert(&mut self, uuid: BufferUuid, message: BufferedMsg) {
        self.bytes += message.cost();
        message.fingerprint().into_iter().for_each(|fingerprint| self.redeliveries.add_buffered(fingerprint));
        self.uuids.insert(message.seq, uuid.clone());
        self.messages.insert(uuid, Box::new(message));
    }

    /// Removes a message, and its lease if it has one; its fingerprint is remembered.
    fn remove(&mut self, uuid: &BufferUuid, departure: Departure) {
        if let Some(forgotten) = self.forget(uuid) {
            self.remove_record(forgotten);
            self.left(departure);
        }
    }

    /// Removes the record of a message that was forgotten.
    fn remove_record(&mut self, (seq, fingerprint): (Seq, Option<Fingerprint>)) {
        // one that is being discarded is buried already
        if !self.discards.contains_key(&seq) {
            fingerprint.into_iter().for_each(|fingerprint| self.bury(fingerprint));
        }
        self.store.remove(seq);
    }

    /// Forgets a message, and its lease if it has one. Its record is removed by the caller. Returns the number of that
    /// and the fingerprint.
    fn forget(&mut self, uuid: &BufferUuid) -> Option<(Seq, Option<Fingerprint>)> {
        let message = self.messages.remove(uuid)?;
        self.uuids.remove(&message.seq);
        self.bytes -= message.cost();
        let fingerprint = message.fingerprint();
        fingerprint.iter().for_each(|fingerprint| self.redeliveries.remove_buffered(fingerprint));
        self.leases.remove(&message.seq);
        Some((message.seq, fingerprint))
    }

    /// Counts a message that was forgotten.
    fn left(&mut self, departure: Departure) {
        self.metrics.left(departure);
        self.metrics.holds(self.held());
    }

    /// The age of the oldest message, for whoever reads the metrics.
    pub(crate) fn oldest_age(&self) -> Arc<OldestAge> {
        Arc::clone(self.metrics.oldest())
    }

    fn held(&self) -> Held {
        Held {
            messages: self.messages.len(),
            bytes: self.bytes,
            in_delivery: self.leases.len() - self.discards_held(),
            oldest: self.oldest(),
        }
    }

    /// Since when there is the message that was stored first.
    fn oldest(&self) -> Option<Since> {
        let (_, uuid) = self.uuids.first_key_value()?;
        self.messages.get(uuid).map(|message| message.since)
    }

    /// Writes a tombstone for a message with this fingerprint.
    fn bury(&mut self, fingerprint: Fingerprint) {
        let tombstone = Tombstone { fingerprint, gone_at_ms: now_ms(), boot: self.clock.boot_time() };
        let seq = self.store.put(encode_meta(&tombstone), Payload::empty());
        self.pending_puts.insert(seq, PendingWrite::Tombstone(tombstone));
        self.redeliveries.announce_tombstone(fingerprint);
    }

    /// The message of this UUID, unless it has expired.
    fn find(&self, uuid: &BufferUuid) -> Result<&BufferedMsg, Error> {
        let message = self.messages.get(uuid).ok_or(Error::NoBufferMsg)?;
        if self.is_expired(message) && !self.leases.contains_key(&message.seq) {
            return Err(Error::NoBufferMsg);
        }
        Ok(message)
    }

    /// Handles the outcome of a put.
    fn finish_put(&mut self, seq: Seq, outcome: Result<Payload, StoreError>, ctx: &mut Context<Self>) {
        match self.pending_puts.remove(&seq) {
            Some(PendingWrite::Message(message)) => self.finish_message(*message, seq, outcome, ctx),
            Some(PendingWrite::Tombstone(tombstone)) => {
                // If it could not be written, it is kept in memory, until the next restart.
                self.redeliveries.add_tombstone(self.clock.now(), tombstone.fingerprint, seq);
            }
            Some(PendingWrite::Reference(reference)) => self.finish_reference(*reference, seq, outcome),
            Some(PendingWrite::Refused(error, reply)) => reply.send(Err(error)),
            None => {}
        }
    }

    /// Handles the outcome of the removal of a message that is refused or discarded.
    fn finish_removal(&mut self, seq: Seq, outcome: Result<(), StoreError>, ctx: &mut Context<Self>) {
        let Some(PendingWrite::Refused(error, reply)) = self.pending_puts.remove(&seq) else {
            return self.finish_discard(seq, outcome, ctx);
        };
        if outcome.is_err() {
            // The store retries this until it succeeds.
            self.store.remove(seq);
        }
        reply.send(Err(error));
    }

    /// Replies to the [`ProbeStore`] whose flush this is. If it is the flush of a [`Drain`]: replies to all of them and
    /// stops the actor.
    fn finish_flush(&mut self, seq: Seq, outcome: Result<(), StoreError>, ctx: &mut Context<Self>) {
        if let Some(probe) = self.probes.remove(&seq) {
            return probe.send(());
        }
        let Some(draining) = self.draining.as_mut().filter(|draining| draining.iter().any(|(flush, _)| *flush == seq))
        else {
            return;
        };
        if let Err(error) = outcome {
            log::warn!("delivered messages may be delivered again after a restart: {error}");
        }
        draining.drain(..).for_each(|(_, reply)| reply.send(()));
        ctx.stop();
    }
}

impl Actor for BufferActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(self.waiters.deadlines());
        self.expire(ctx);
    }
}

impl Handler<FromStore> for BufferActor {
    type Result = ();

    fn handle(&mut self, FromStore(event): FromStore, ctx: &mut Self::Context) {
        let StoreEvent { stored, removed, flushed, moved, failure } = event;
        self.store_failure = failure;
        for (seq, outcome) in stored {
            self.finish_put(seq, outcome, ctx);
        }
        for (seq, outcome) in removed {
            self.finish_removal(seq, outcome, ctx);
        }
        for (seq, payload) in moved {
            let message = self.uuids.get(&seq).and_then(|uuid| self.messages.get_mut(uuid));
            message.into_iter().for_each(|message| message.payload = payload.clone());
        }
        for (seq, outcome) in flushed {
            self.finish_flush(seq, outcome, ctx);
        }
        if let Err(error) = check_failure(&self.store_failure) {
            self.probes.clear();
            self.fail_discards(&error, ctx);
            while let Some(&seq) = self.pending_puts.keys().next() {
                self.finish_put(seq, Err(error.clone()), ctx);
            }
            let flush = self.draining.as_ref().and_then(|draining| draining.first()).map(|(flush, _)| *flush);
            flush.into_iter().for_each(|flush| self.finish_flush(flush, Err(error.clone()), ctx));
        }
    }
}

impl Handler<GetBufferState> for BufferActor {
    type Result = BufferState;

    fn handle(&mut self, _: GetBufferState, _: &mut Self::Context) -> Self::Result {
        let Held { messages, bytes, in_delivery, oldest } = self.held();
        BufferState {
            messages,
            bytes,
            max_bytes: self.max_bytes,
            free_bytes: self.max_bytes.saturating_sub(bytes + self.reserved + self.lingering_bytes),
            in_delivery,
            waiting: self.waiters.len(),
            oldest: oldest.map(age::of),
            accepted_total: self.metrics.accepted_total(),
            delivered_total: self.metrics.delivered.value(),
            expired_total: self.metrics.expired.value(),
            discarded_total: self.metrics.discarded.value(),
            store_failure: self.store_failure.clone(),
            store_busy: self.store.busy_for(),
            is_stopping: self.waiting_has_ended,
        }
    }
}

impl Handler<ProbeStore> for BufferActor {
    type Result = Deferred<()>;

    fn handle(&mut self, ProbeStore { refused }: ProbeStore, _: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        self.store.probe(refused);
        // a store that has failed answers nothing any more; the drop of the reply ends the wait
        if check_failure(&self.store_failure).is_ok() {
            self.probes.insert(self.store.flush(), reply);
        }
        deferred
    }
}

impl Handler<Drain> for BufferActor {
    type Result = Deferred<()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.end_waiting(ctx);
        let (reply, deferred) = deferred();
        let flush = self.store.stop();
        self.draining.get_or_insert_default().push((flush, reply));
        if let Err(error) = check_failure(&self.store_failure) {
            self.finish_flush(flush, Err(error), ctx);
        }
        deferred
    }
}
