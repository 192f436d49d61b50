//! `BufferActor`: owns the buffer map. Messages are added, lent for delivery, and removed once delivered.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use actix::prelude::*;
use futures::future::Either;

use crate::broker::Fingerprint;
use crate::buffer_uuid::BufferUuid;
use crate::codec::BlendPlaceholder;
use crate::deadlines::Deadlines;
use crate::error::Error;
use crate::lease::{BufferMsgView, Progress};
use crate::messages::{AddBufferMsg, BrokerDelivery, BufferState, Drain, FromStore, GetBufferState};
use crate::payload::Payload;
use crate::reply::{Deferred, Reply, deferred};
use crate::store::puts::{PutDone, Puts};
use crate::store::{
    NO_RECORD, PutOutcome, Recovered, Seq, StoreError, StoreEvent, StoreHandle, cost, encode_meta, now_ms,
};
use crate::wait_queue::WaitQueue;

mod age;
mod brought;
mod expiry;
mod lease;
mod record;
#[cfg(test)]
mod tests;

use age::{AgeClock, ByAge, Since};
use brought::Brought;
use lease::{Asker, Lease, WaitingIsOver};
use record::{Gone, Meta};

/// Owns the buffer map (`bufferMsgs` of the specification) and the store below it.
#[derive(Debug)]
pub struct BufferActor {
    messages: HashMap<BufferUuid, Held>,
    /// Their names.
    names: BTreeMap<Seq, BufferUuid>,
    by_age: ByAge,
    clock: AgeClock,
    /// Of those that are being delivered.
    leases: HashMap<Seq, Lease>,
    deadlines: Deadlines<WaitingIsOver>,
    brought: Brought,
    /// What the messages cost; see [`cost`].
    bytes: u64,
    /// The same of messages on their way to the store.
    reserved: u64,
    /// The same of messages that were replaced while they are delivered: the delivery still holds them.
    lingering: HashMap<Seq, u64>,
    lingering_bytes: u64,
    max_bytes: u64,
    ttl: Duration,
    store: StoreHandle,
    puts: Puts<WhatFor>,
    store_failure: Option<StoreError>,
    draining: bool,
    delivered_total: u64,
    expired_total: u64,
}

/// A message. There may be millions, so what few of them have is elsewhere.
#[derive(Debug)]
struct Held {
    seq: Seq,
    payload: Payload,
    meta_len: u32,
    stored_at_ms: u64,
    /// Its age.
    since: Since,
    rare: Option<Box<Rare>>,
}

/// What not every message has.
#[derive(Debug, Default)]
struct Rare {
    blend: Option<BlendPlaceholder>,
    /// Of a message that a broker has brought.
    fingerprint: Option<Fingerprint>,
    /// Of a message whose delivery has broken off.
    progress: Option<Progress>,
}

impl Rare {
    fn new(blend: Option<BlendPlaceholder>, fingerprint: Option<Fingerprint>) -> Option<Box<Self>> {
        (blend.is_some() || fingerprint.is_some()).then(|| Box::new(Self { blend, fingerprint, progress: None }))
    }
}

impl Held {
    fn blend(&self) -> Option<&BlendPlaceholder> {
        self.rare.as_ref()?.blend.as_ref()
    }

    fn cost(&self) -> u64 {
        cost(self.meta_len as usize, self.payload.len())
    }

    fn view(&self) -> BufferMsgView {
        BufferMsgView {
            version: format!("{:x}-{:x}", self.seq, self.stored_at_ms),
            payload: self.payload.clone(),
            blend: self.blend().cloned(),
        }
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.rare.as_ref()?.fingerprint
    }

    fn progress(&self) -> Progress {
        self.rare.as_ref().and_then(|rare| rare.progress.clone()).unwrap_or_default()
    }
}

/// What is on its way to the store.
#[derive(Debug)]
enum WhatFor {
    Message(Box<Incoming>),
    Gone(Gone),
}

#[derive(Debug)]
struct Incoming {
    uuid: BufferUuid,
    meta_len: u32,
    /// What is reserved for it.
    cost: u64,
    stored_at_ms: u64,
    rare: Option<Box<Rare>>,
    delivery: Option<BrokerDelivery>,
    reply: Reply<Result<(), Error>>,
}

impl BufferActor {
    /// An actor that holds the `recovered` messages of `store`, keeps at most `max_bytes` bytes of messages (a later
    /// one is refused), each for `ttl`.
    ///
    /// # Errors
    /// The number of a record that is no buffered message.
    pub fn new(store: StoreHandle, recovered: Vec<Recovered>, max_bytes: u64, ttl: Duration) -> Result<Self, Seq> {
        let mut actor = Self {
            messages: HashMap::with_capacity(recovered.len()),
            names: BTreeMap::new(),
            by_age: ByAge::default(),
            clock: AgeClock::start(),
            leases: HashMap::new(),
            deadlines: Deadlines::default(),
            brought: Brought::default(),
            bytes: 0,
            reserved: 0,
            lingering: HashMap::new(),
            lingering_bytes: 0,
            max_bytes,
            ttl,
            store,
            puts: Puts::default(),
            store_failure: None,
            draining: false,
            delivered_total: 0,
            expired_total: 0,
        };
        for record in recovered {
            match record.decode_meta::<Meta, Gone>()? {
                Either::Left(meta) => {
                    let since = actor.clock.since(meta.stored_at_ms, meta.boot);
                    let (uuid, held) = meta.into_held(record, since);
                    actor.hold(uuid, held);
                }
                Either::Right(gone) => {
                    let since = actor.clock.since(gone.gone_at_ms, gone.boot);
                    actor.brought.add_gone(since, gone.fingerprint, record.seq);
                }
            }
        }
        actor.by_age = ByAge::recovered(actor.messages.values().map(|held| (held.since, held.seq)).collect());
        Ok(actor)
    }

    /// Puts a message into the map, in place of an older one of that name. Returns who waits for the older one.
    fn hold(&mut self, uuid: BufferUuid, held: Held) -> WaitQueue<Asker> {
        let waiting = match self.messages.get(&uuid) {
            None => WaitQueue::default(),
            Some(other) if other.seq < held.seq => {
                if self.leases.contains_key(&other.seq) {
                    self.lingering_bytes += other.cost();
                    self.lingering.insert(other.seq, other.cost());
                }
                self.remove(&uuid)
            }
            Some(_) => {
                // two of one name were stored together, and the later one has come here first
                self.store.remove(held.seq);
                held.fingerprint().into_iter().for_each(|fingerprint| self.remember(fingerprint));
                return WaitQueue::default();
            }
        };
        self.bytes += held.cost();
        held.fingerprint().into_iter().for_each(|fingerprint| self.brought.hold(fingerprint));
        self.names.insert(held.seq, uuid.clone());
        self.messages.insert(uuid, held);
        waiting
    }

    /// Forgets a message, but for its fingerprint. Returns who waits for it.
    fn remove(&mut self, uuid: &BufferUuid) -> WaitQueue<Asker> {
        let Some(held) = self.messages.remove(uuid) else { return WaitQueue::default() };
        self.names.remove(&held.seq);
        self.bytes -= held.cost();
        if let Some(fingerprint) = held.fingerprint() {
            self.brought.release(&fingerprint);
            self.remember(fingerprint);
        }
        self.store.remove(held.seq);
        self.end_lease(held.seq)
    }

    /// Keeps in mind, durably, that a message of this fingerprint has gone.
    fn remember(&mut self, fingerprint: Fingerprint) {
        let gone = Gone { fingerprint, gone_at_ms: now_ms(), boot: self.clock.boot_time() };
        self.puts.add(self.store.put(encode_meta(&gone), Vec::new()), WhatFor::Gone(gone));
        self.brought.announce_gone(fingerprint);
    }

    /// Whether a broker has brought this before, as far as is remembered.
    fn has_come(&self, delivery: Option<BrokerDelivery>) -> bool {
        delivery.is_some_and(|delivery| delivery.redelivered && self.brought.contains(&delivery.fingerprint))
    }

    /// Room for a message of this cost under `uuid`, whose older message would go.
    fn reserve(&mut self, uuid: &BufferUuid, cost: u64) -> Result<(), Error> {
        if self.draining {
            return Err(Error::Stopping);
        }
        // one that is being delivered is held until that is over
        let replaced = self.messages.get(uuid).filter(|held| !self.leases.contains_key(&held.seq));
        let held = self.bytes + self.reserved + self.lingering_bytes - replaced.map_or(0, Held::cost);
        if held + cost > self.max_bytes {
            return Err(Error::NoRoom { what: "buffered messages", size: cost, held, limit: self.max_bytes });
        }
        self.reserved += cost;
        Ok(())
    }

    /// The message of this name, unless it is too old.
    fn find(&self, uuid: &BufferUuid) -> Result<&Held, Error> {
        let held = self.messages.get(uuid).ok_or(Error::NoBufferMsg)?;
        if self.is_expired(held) && !self.leases.contains_key(&held.seq) {
            return Err(Error::NoBufferMsg);
        }
        Ok(held)
    }

    /// A message has been stored, or could not be.
    fn take_in(&mut self, incoming: Incoming, outcome: PutOutcome, ctx: &mut Context<Self>) {
        let Incoming { uuid, meta_len, cost, stored_at_ms, rare, delivery, reply } = incoming;
        self.reserved -= cost;
        let (seq, payload) = match outcome {
            Ok(stored) => stored,
            Err(error) => return reply.send(Err(error.into())),
        };
        if self.has_come(delivery) {
            // the first delivery was on its way to the store when this one came
            self.store.remove(seq);
        } else {
            let since = self.clock.now();
            let waiting = self.hold(uuid.clone(), Held { seq, payload, meta_len, stored_at_ms, since, rare });
            self.by_age.push(since, seq, self.names.len(), |seq| self.names.contains_key(&seq));
            self.give_to_waiting(&uuid, waiting, ctx);
        }
        reply.send(Ok(()));
    }
}

impl Actor for BufferActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(self.puts.clone());
        ctx.add_stream(self.deadlines.clone());
        self.expire(ctx);
    }
}

impl Handler<AddBufferMsg> for BufferActor {
    type Result = Deferred<Result<(), Error>>;

    fn handle(&mut self, message: AddBufferMsg, _: &mut Self::Context) -> Self::Result {
        let AddBufferMsg { buffer_uuid: uuid, message, delivery } = message;
        let (reply, deferred) = deferred();
        if self.has_come(delivery) {
            log::info!("message {uuid:?} is delivered again by the broker, and is not buffered again");
            reply.send(Ok(()));
            return deferred;
        }
        let stored_at_ms = now_ms();
        let rare = Rare::new(message.blend, delivery.map(|delivery| delivery.fingerprint));
        let meta = encode_meta(&Meta::of(uuid.clone(), stored_at_ms, self.clock.boot_time(), rare.as_deref()));
        let cost = cost(meta.len(), message.pickle.iter().map(|part| part.len() as u64).sum());
        if let Err(error) = self.reserve(&uuid, cost) {
            reply.send(Err(error));
            return deferred;
        }
        let meta_len = meta.len() as u32;
        let incoming = Incoming { uuid, meta_len, cost, stored_at_ms, rare, delivery, reply };
        self.puts.add(self.store.put(meta, message.pickle), WhatFor::Message(Box::new(incoming)));
        deferred
    }
}

impl StreamHandler<PutDone<WhatFor>> for BufferActor {
    fn handle(&mut self, (outcome, what_for): PutDone<WhatFor>, ctx: &mut Self::Context) {
        match what_for {
            WhatFor::Message(incoming) => self.take_in(*incoming, outcome, ctx),
            WhatFor::Gone(gone) => {
                // without room for that it is known until the next restart
                let record = outcome.map_or(NO_RECORD, |(seq, _)| seq);
                self.brought.add_gone(self.clock.now(), gone.fingerprint, record);
            }
        }
    }
}

impl Handler<FromStore> for BufferActor {
    type Result = ();

    fn handle(&mut self, FromStore(event): FromStore, ctx: &mut Self::Context) {
        match event {
            StoreEvent::Moved(moved) => {
                // what has been put only just may be among it
                self.puts.take_ready().into_iter().for_each(|done| StreamHandler::handle(self, done, ctx));
                for (seq, payload) in moved {
                    let held = self.names.get(&seq).and_then(|uuid| self.messages.get_mut(uuid));
                    if let Some(held) = held {
                        held.payload = payload;
                    }
                }
            }
            StoreEvent::Status(failure) => self.store_failure = failure,
        }
    }
}

impl Handler<GetBufferState> for BufferActor {
    type Result = BufferState;

    fn handle(&mut self, _: GetBufferState, _: &mut Self::Context) -> Self::Result {
        BufferState {
            messages: self.messages.len(),
            bytes: self.bytes,
            max_bytes: self.max_bytes,
            room: self.max_bytes.saturating_sub(self.bytes + self.reserved + self.lingering_bytes),
            in_delivery: self.leases.len(),
            delivered_total: self.delivered_total,
            expired_total: self.expired_total,
            store_failure: self.store_failure.clone(),
        }
    }
}

impl Handler<Drain> for BufferActor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        self.draining = true;
        let flushed = self.store.flush().into_actor(self);
        // the outcome of every put has been told by then, but maybe not taken in
        let settled = flushed.then(|flushed, actor, _| {
            flushed
                .unwrap_or_else(|error| log::warn!("delivered messages may be there again after a restart: {error}"));
            actor.puts.all_settled().into_actor(actor)
        });
        Box::pin(settled.map(|(), _, ctx| ctx.stop()))
    }
}
