//! `BufferActor`: owns the buffer map. Messages are added, lent for delivery, and removed once delivered.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use actix::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::broker::Fingerprint;
use crate::codec::BlendHole;
use crate::error::Error;
use crate::messages::{
    AddBufferMsg, BrokerDelivery, BufferMsgView, BufferState, BufferUuid, Drain, GetBufferState, LeaseBufferMsg,
    PeekBufferMsg,
};
use crate::payload::Payload;
use crate::store::{NO_RECORD, Recovered, Seq, StoreError, StoreEvent, StoreHandle, encode_meta, now_ms};

mod brought;
mod lease;

use brought::Brought;
pub use lease::{BufferLease, LeasedBufferMsg};
use lease::{Settle, Settled};

/// How often expired messages are looked for, at the most: often enough that an hour's time to live is kept to
/// the second, seldom enough to cost nothing.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

type LeaseReply = oneshot::Sender<Result<LeasedBufferMsg, Error>>;

/// Owns the buffer map (`bufferMsgs` of the specification) and the store below it.
#[derive(Debug)]
pub struct BufferActor {
    messages: HashMap<BufferUuid, Held>,
    /// The same messages by age.
    by_age: BTreeMap<Seq, BufferUuid>,
    brought: Brought,
    bytes: u64,
    /// Bytes of messages on their way to the store.
    reserved: u64,
    max_bytes: u64,
    ttl: Duration,
    store: StoreHandle,
    store_failure: Option<StoreError>,
    draining: bool,
    in_delivery: usize,
    delivered_total: u64,
    expired_total: u64,
}

#[derive(Debug)]
struct Held {
    seq: Seq,
    payload: Payload,
    blend: Option<Box<BlendHole>>,
    stored_at_ms: u64,
    fingerprint: Option<Fingerprint>,
    lease: Option<Lease>,
}

/// Boxed: of a million messages that are held, a few are being delivered.
type Lease = Box<LeaseInner>;

#[derive(Debug, Default)]
struct LeaseInner {
    /// The last part is on its way to the worker, who may ask again before the outcome is known here.
    finishing: bool,
    waiting: Vec<LeaseReply>,
}

/// What a record is beside its body. Untagged, so that a message is written as its [`Meta`] alone.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RecordMeta {
    Message(Meta),
    Gone { gone: Fingerprint, gone_at_ms: u64 },
}

/// What is kept of a message beside its body.
#[derive(Serialize, Deserialize)]
struct Meta {
    uuid: BufferUuid,
    stored_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    blend_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blend_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<Fingerprint>,
}

impl BufferActor {
    /// An actor that holds the `recovered` messages of `store`, keeps at most `max_bytes` bytes of messages (a later
    /// one is refused), each for `ttl`.
    ///
    /// # Errors
    /// The number of a record that is no buffered message.
    pub fn new(store: StoreHandle, recovered: Vec<Recovered>, max_bytes: u64, ttl: Duration) -> Result<Self, Seq> {
        let mut actor = Self {
            messages: HashMap::new(),
            by_age: BTreeMap::new(),
            brought: Brought::default(),
            bytes: 0,
            reserved: 0,
            max_bytes,
            ttl,
            store,
            store_failure: None,
            draining: false,
            in_delivery: 0,
            delivered_total: 0,
            expired_total: 0,
        };
        for record in recovered {
            let meta = match record.decode_meta()? {
                RecordMeta::Message(meta) => meta,
                RecordMeta::Gone { gone, gone_at_ms } => {
                    actor.brought.add_gone(gone_at_ms, gone, record.seq);
                    continue;
                }
            };
            let held = Held {
                seq: record.seq,
                payload: record.body,
                blend: meta.blend_at.map(|offset| Box::new(BlendHole { offset, path: meta.blend_path })),
                stored_at_ms: meta.stored_at_ms,
                fingerprint: meta.fingerprint,
                lease: None,
            };
            actor.hold(meta.uuid, held, None);
        }
        Ok(actor)
    }

    /// Puts a message into the map, in place of an older one of that name. Returns who waits for the older one.
    fn hold(&mut self, uuid: BufferUuid, held: Held, ctx: Option<&mut Context<Self>>) -> Vec<LeaseReply> {
        if self.messages.get(&uuid).is_some_and(|other| other.seq > held.seq) {
            // two of one name were stored together, and the later one has come here first
            self.store.remove(held.seq);
            return Vec::new();
        }
        let waiting = self.remove(&uuid, ctx);
        self.bytes += held.payload.len();
        held.fingerprint.into_iter().for_each(|fingerprint| self.brought.hold(fingerprint));
        self.by_age.insert(held.seq, uuid.clone());
        self.messages.insert(uuid, held);
        waiting
    }

    /// Forgets a message, but for its fingerprint. Returns who waits for it.
    fn remove(&mut self, uuid: &BufferUuid, ctx: Option<&mut Context<Self>>) -> Vec<LeaseReply> {
        let Some(held) = self.messages.remove(uuid) else { return Vec::new() };
        self.by_age.remove(&held.seq);
        self.bytes -= held.payload.len();
        if let Some(fingerprint) = held.fingerprint {
            self.brought.release(&fingerprint);
            // while a store is read there is no context, and what is replaced was replaced before
            if let Some(ctx) = ctx {
                self.remember(fingerprint, ctx);
            }
        }
        self.store.remove(held.seq);
        self.end_lease(held.lease)
    }

    /// Keeps in mind, durably, that a message of this fingerprint has gone.
    fn remember(&mut self, fingerprint: Fingerprint, ctx: &mut Context<Self>) {
        let gone_at_ms = now_ms();
        let meta = RecordMeta::Gone { gone: fingerprint, gone_at_ms };
        let put = self.store.put(encode_meta(&meta), Vec::new());
        self.brought.announce_gone(fingerprint);
        ctx.spawn(put.into_actor(self).map(move |outcome, actor, _| {
            // without room for that it is known until the next restart
            let record = outcome.map_or(NO_RECORD, |(seq, _)| seq);
            actor.brought.add_gone(gone_at_ms, fingerprint, record);
        }));
    }

    /// Whether a broker has brought this before, as far as is remembered.
    fn has_come(&self, delivery: Option<BrokerDelivery>) -> bool {
        delivery.is_some_and(|delivery| delivery.redelivered && self.brought.contains(&delivery.fingerprint))
    }

    fn end_lease(&mut self, lease: Option<Lease>) -> Vec<LeaseReply> {
        let Some(lease) = lease else { return Vec::new() };
        self.in_delivery -= 1;
        lease.waiting
    }

    /// Room for a message of `size` bytes under `uuid`, whose older message would go.
    fn reserve(&mut self, uuid: &BufferUuid, size: u64) -> Result<(), Error> {
        let replaced = self.messages.get(uuid).map_or(0, |held| held.payload.len());
        let held = self.bytes + self.reserved - replaced;
        if held + size > self.max_bytes {
            return Err(Error::NoRoom { what: "buffered messages", size, held, limit: self.max_bytes });
        }
        self.reserved += size;
        Ok(())
    }

    fn view(&self, uuid: &BufferUuid) -> Result<BufferMsgView, Error> {
        let held = self.messages.get(uuid).filter(|held| held.lease.is_some() || !self.is_expired(held));
        let held = held.ok_or(Error::NoBufferMsg)?;
        Ok(BufferMsgView {
            version: format!("{:x}-{:x}", held.seq, held.stored_at_ms),
            payload: held.payload.clone(),
            blend: held.blend.as_deref().cloned(),
        })
    }

    fn lease(&mut self, uuid: &BufferUuid, reply: LeaseReply, this: &Addr<Self>) {
        let answer = match self.view(uuid) {
            Err(error) => Err(error),
            Ok(view) => match self.messages.get_mut(uuid) {
                None => Err(Error::NoBufferMsg),
                Some(Held { lease: Some(lease), .. }) if lease.finishing => {
                    lease.waiting.retain(|waiting| !waiting.is_closed());
                    return lease.waiting.push(reply);
                }
                Some(Held { lease: Some(_), .. }) => Err(Error::InDelivery),
                Some(held) => {
                    held.lease = Some(Lease::default());
                    self.in_delivery += 1;
                    let lease = BufferLease::new(this.clone(), uuid.clone(), held.seq);
                    Ok(LeasedBufferMsg { view, lease })
                }
            },
        };
        // a lease that nobody takes is dropped, and so ends
        let _ = reply.send(answer);
    }

    /// Asks once more for those who have waited for a delivery to end.
    fn lease_to_waiting(&mut self, uuid: &BufferUuid, waiting: Vec<LeaseReply>, this: &Addr<Self>) {
        for reply in waiting.into_iter().filter(|reply| !reply.is_closed()) {
            self.lease(uuid, reply, this);
        }
    }

    fn is_expired(&self, held: &Held) -> bool {
        now_ms().saturating_sub(held.stored_at_ms) >= self.ttl.as_millis() as u64
    }

    /// Forgets what was not fetched in time; what is being delivered stays until that is over.
    fn expire(&mut self, ctx: &mut Context<Self>) {
        for record in self.brought.forget_old(now_ms()) {
            self.store.remove(record);
        }
        let old = self.by_age.values().map_while(|uuid| {
            let held = self.messages.get(uuid)?;
            self.is_expired(held).then_some((uuid, held.lease.is_some()))
        });
        let expired: Vec<BufferUuid> = old.filter(|(_, leased)| !leased).map(|(uuid, _)| uuid.clone()).collect();
        for uuid in expired {
            self.remove(&uuid, Some(ctx));
            self.expired_total += 1;
            log::info!("message {uuid:?} has expired: nobody fetched it");
        }
    }
}

impl Actor for BufferActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.expire(ctx);
        ctx.run_interval(EXPIRY_INTERVAL, |actor, ctx| actor.expire(ctx));
    }
}

impl Handler<AddBufferMsg> for BufferActor {
    type Result = ResponseActFuture<Self, Result<(), Error>>;

    fn handle(&mut self, message: AddBufferMsg, _: &mut Self::Context) -> Self::Result {
        let AddBufferMsg { buffer_uuid, message, delivery } = message;
        if self.has_come(delivery) {
            log::info!("message {buffer_uuid:?} is delivered again by the broker, and is not buffered again");
            return Box::pin(fut::ready(Ok(())));
        }
        let size = message.pickle.iter().map(|part| part.len() as u64).sum();
        let admitted = if self.draining { Err(Error::Stopping) } else { self.reserve(&buffer_uuid, size) };
        if let Err(error) = admitted {
            return Box::pin(fut::ready(Err(error)));
        }
        let stored_at_ms = now_ms();
        let fingerprint = delivery.map(|delivery| delivery.fingerprint);
        let meta = Meta {
            fingerprint,
            uuid: buffer_uuid.clone(),
            stored_at_ms,
            blend_at: message.blend.as_ref().map(|blend| blend.offset),
            blend_path: message.blend.as_ref().and_then(|blend| blend.path.clone()),
        };
        let put = self.store.put(encode_meta(&meta), message.pickle);
        Box::pin(put.into_actor(self).map(move |outcome, actor, ctx| {
            actor.reserved -= size;
            let (seq, payload) = outcome?;
            if actor.has_come(delivery) {
                // the first delivery was on its way to the store when this one came
                actor.store.remove(seq);
                return Ok(());
            }
            let blend = message.blend.map(Box::new);
            let held = Held { seq, payload, blend, stored_at_ms, fingerprint, lease: None };
            let waiting = actor.hold(buffer_uuid.clone(), held, Some(ctx));
            actor.lease_to_waiting(&buffer_uuid, waiting, &ctx.address());
            Ok(())
        }))
    }
}

impl Handler<LeaseBufferMsg> for BufferActor {
    type Result = ResponseFuture<Result<LeasedBufferMsg, Error>>;

    fn handle(&mut self, LeaseBufferMsg { buffer_uuid }: LeaseBufferMsg, ctx: &mut Self::Context) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        self.lease(&buffer_uuid, reply, &ctx.address());
        Box::pin(async move { answer.await.map_err(|_| Error::Stopping)? })
    }
}

impl Handler<PeekBufferMsg> for BufferActor {
    type Result = Result<BufferMsgView, Error>;

    fn handle(&mut self, PeekBufferMsg { buffer_uuid }: PeekBufferMsg, _: &mut Self::Context) -> Self::Result {
        self.view(&buffer_uuid)
    }
}

impl Handler<Settle> for BufferActor {
    type Result = ();

    fn handle(&mut self, Settle { uuid, seq, settled }: Settle, ctx: &mut Self::Context) {
        // an older message of that name is no longer here, and its delivery matters to nobody
        let Some(held) = self.messages.get_mut(&uuid).filter(|held| held.seq == seq) else { return };
        let waiting = match settled {
            Settled::Finishing => {
                if let Some(lease) = &mut held.lease {
                    lease.finishing = true;
                }
                return;
            }
            Settled::Delivered => {
                self.delivered_total += 1;
                self.remove(&uuid, Some(ctx))
            }
            Settled::Released => {
                let lease = held.lease.take();
                self.end_lease(lease)
            }
        };
        self.lease_to_waiting(&uuid, waiting, &ctx.address());
    }
}

/// What the store tells its owner.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct FromStore(pub StoreEvent);

impl Handler<FromStore> for BufferActor {
    type Result = ();

    fn handle(&mut self, FromStore(event): FromStore, _: &mut Self::Context) {
        match event {
            StoreEvent::Moved(moved) => {
                for (seq, payload) in moved {
                    let held = self.by_age.get(&seq).and_then(|uuid| self.messages.get_mut(uuid));
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
            in_delivery: self.in_delivery,
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
        Box::pin(self.store.flush().into_actor(self).map(|(), _, ctx| ctx.stop()))
    }
}
