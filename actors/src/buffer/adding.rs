//! Adding a message: it is checked, stored, and in the buffer once the store has it.

use actix::prelude::*;

use super::message::{BufferedMsg, ColdFields};
use super::record::Meta;
use super::{BufferActor, PendingWrite};
use crate::buffer_uuid::BufferUuid;
use crate::digest::MessageDigest;
use crate::error::Error;
use crate::messages::{AddBufferMsg, BrokerDelivery};
use crate::payload::Payload;
use crate::reply::{Deferred, Reply, deferred};
use crate::store::{Seq, StoreError, check_failure, cost, encode_meta, now_ms};

/// A message that the store is writing.
#[derive(Debug)]
pub(super) struct PendingMsg {
    uuid: BufferUuid,
    meta_len: u32,
    /// Its share of `reserved`.
    cost: u64,
    stored_at_ms: u64,
    digest: Option<MessageDigest>,
    cold: Option<Box<ColdFields>>,
    delivery: Option<BrokerDelivery>,
    reply: Reply<Result<(), Error>>,
}

impl BufferActor {
    /// Whether the redelivery filter recognises this message as one that a broker has delivered before.
    fn is_duplicate(&self, delivery: Option<BrokerDelivery>) -> bool {
        delivery.is_some_and(|delivery| delivery.redelivered && self.redeliveries.contains(&delivery.fingerprint))
    }

    /// Reserves space for a message of this cost, which would replace the message of that UUID.
    fn reserve(&mut self, uuid: &BufferUuid, cost: u64) -> Result<(), Error> {
        if self.draining.is_some() {
            return Err(Error::Stopping);
        }
        check_failure(&self.store_failure)?;
        self.check_space(uuid, cost)?;
        self.reserved += cost;
        Ok(())
    }

    /// Whether there is space for a message of this cost, which would replace the message of that UUID.
    fn check_space(&self, uuid: &BufferUuid, cost: u64) -> Result<(), Error> {
        // A replaced message stays until its delivery ends.
        let replaced = self.messages.get(uuid).filter(|message| !self.leases.contains_key(&message.seq));
        let held = self.bytes + self.reserved + self.lingering_bytes - replaced.map_or(0, |message| message.cost());
        if held + cost > self.max_bytes {
            return Err(Error::NoCapacity { what: "buffered messages", size: cost, held, limit: self.max_bytes });
        }
        Ok(())
    }

    /// Handles the outcome of a message's put.
    pub(super) fn finish_message(
        &mut self,
        message: PendingMsg,
        seq: Seq,
        outcome: Result<Payload, StoreError>,
        ctx: &mut Context<Self>,
    ) {
        let PendingMsg { uuid, meta_len, cost, stored_at_ms, digest, cold, delivery, reply } = message;
        self.reserved -= cost;
        let payload = match outcome {
            Ok(payload) => payload,
            Err(error) => return reply.send(Err(error.into())),
        };
        if self.is_duplicate(delivery) {
            // The broker redelivered the message while it was being stored.
            self.store.remove(seq);
        } else if let Err(error) = self.check_space(&uuid, cost) {
            // The message that it would replace has been leased meanwhile, and stays until that delivery ends. The
            // reply follows the removal: once it is sent, a restart must not find this message instead of the other.
            self.store.remove_durably(seq);
            self.pending_puts.insert(seq, PendingWrite::Refused(error, reply));
            return;
        } else {
            let since = self.clock.now();
            let message = BufferedMsg { seq, payload, meta_len, stored_at_ms, since, digest, cold };
            self.replace(uuid.clone(), message);
            self.metrics.accepted(delivery);
            self.metrics.holds(self.held());
            self.by_age.push(since, seq, self.uuids.len(), |seq| self.uuids.contains_key(&seq));
            self.serve_waiters(&uuid, ctx);
        }
        reply.send(Ok(()));
    }
}

impl Handler<AddBufferMsg> for BufferActor {
    type Result = Deferred<Result<(), Error>>;

    fn handle(&mut self, message: AddBufferMsg, _: &mut Self::Context) -> Self::Result {
        let AddBufferMsg { buffer_uuid: uuid, message, delivery } = message;
        if self.is_duplicate(delivery) {
            log::info!("message {uuid:?} is delivered again by the broker, and is not buffered again");
            return Deferred::now(Ok(()));
        }
        let stored_at_ms = now_ms();
        let cold = ColdFields::new(message.blend, delivery.map(|delivery| delivery.fingerprint));
        let meta = encode_meta(&Meta::of(uuid.clone(), stored_at_ms, self.clock.boot_time(), cold.as_deref()));
        let cost = cost(meta.len(), message.pickle.len());
        if let Err(error) = self.reserve(&uuid, cost) {
            return Deferred::now(Err(error));
        }
        let meta_len = meta.len() as u32;
        let (reply, deferred) = deferred();
        let digest = message.sha256.map(MessageDigest::Known);
        let pending = PendingMsg { uuid, meta_len, cost, stored_at_ms, digest, cold, delivery, reply };
        let seq = self.store.put(meta, message.pickle);
        self.pending_puts.insert(seq, PendingWrite::Message(Box::new(pending)));
        deferred
    }
}
