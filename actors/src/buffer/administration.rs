//! What operators see of the buffer, and the messages that they discard.

use std::ops::Bound;

use actix::prelude::*;

use crate::administration::{BufferEntry, DiscardBufferMsg, ListBufferMsgs, Page, PageRequest, Requester};
use crate::age;
use crate::buffer::BufferActor;
use crate::buffer::message::BufferedMsg;
use crate::buffer::metrics::Departure;
use crate::buffer_uuid::BufferUuid;
use crate::error::Error;
use crate::reply::{Deferred, Reply, deferred};
use crate::store::{Seq, StoreError, check_failure};

/// A message whose removal the store is writing. It is leased meanwhile, so that nobody gets it.
#[derive(Debug)]
pub(super) struct Discard {
    uuid: BufferUuid,
    requester: Requester,
    replies: Vec<Reply<Result<(), Error>>>,
}

impl BufferActor {
    fn entry(&self, uuid: &BufferUuid, message: &BufferedMsg) -> BufferEntry {
        BufferEntry {
            buffer_uuid: uuid.clone(),
            bytes: message.payload.len(),
            age: age::of(message.since),
            blend: message.blend().and_then(|blend| blend.path.clone()),
            in_delivery: self.leases.contains_key(&message.seq) && !self.discards.contains_key(&message.seq),
        }
    }

    /// How many messages are leased because they are being discarded, and not delivered.
    pub(super) fn discards_held(&self) -> usize {
        self.discards.keys().filter(|seq| self.leases.contains_key(seq)).count()
    }

    fn begin_discard(&mut self, discard: DiscardBufferMsg, reply: Reply<Result<(), Error>>) {
        let DiscardBufferMsg { buffer_uuid: uuid, requester } = discard;
        let (seq, fingerprint) = match self.find(&uuid) {
            Ok(message) => (message.seq, message.fingerprint()),
            Err(error) => return reply.send(Err(error)),
        };
        if let Some(discard) = self.discards.get_mut(&seq) {
            return discard.replies.push(reply);
        }
        if self.leases.contains_key(&seq) {
            return reply.send(Err(Error::InDelivery));
        }
        if self.draining.is_some() {
            return reply.send(Err(Error::Stopping));
        }
        if let Err(error) = check_failure(&self.store_failure) {
            return reply.send(Err(error.into()));
        }
        // durable no later than the removal, so that a redelivery by the broker never brings the message back
        fingerprint.into_iter().for_each(|fingerprint| self.bury(fingerprint));
        self.lease_for_removal(seq);
        self.discards.insert(seq, Discard { uuid, requester, replies: vec![reply] });
        self.store.remove_durably(seq);
    }

    /// Handles the outcome of the removal of a message that an operator discards, if it is one.
    pub(super) fn finish_discard(&mut self, seq: Seq, outcome: Result<(), StoreError>, ctx: &mut Context<Self>) {
        let Some(Discard { uuid, requester, replies }) = self.discards.remove(&seq) else { return };
        let is_held = self.messages.get(&uuid).is_some_and(|message| message.seq == seq);
        let outcome = match outcome {
            // another message has replaced it, and has removed it
            _ if !is_held => {
                self.end_lingering(seq);
                Ok(())
            }
            Ok(()) => {
                self.forget(&uuid);
                self.left(Departure::Discarded);
                let (by, request_id) = (requester.name.as_str(), requester.request_id.as_str());
                log::info!(request_id, by; "message {uuid:?} is discarded by {by}");
                Ok(())
            }
            Err(error) => {
                self.offer_again(&uuid, seq);
                Err(error)
            }
        };
        self.serve_waiters(&uuid, ctx);
        replies.into_iter().for_each(|reply| reply.send(outcome.clone().map_err(Error::from)));
    }

    /// The store has failed, and reports no more outcomes.
    pub(super) fn fail_discards(&mut self, error: &StoreError, ctx: &mut Context<Self>) {
        while let Some(&seq) = self.discards.keys().next() {
            self.finish_discard(seq, Err(error.clone()), ctx);
        }
    }
}

impl Handler<ListBufferMsgs> for BufferActor {
    type Result = Result<Page<BufferEntry>, Error>;

    fn handle(&mut self, ListBufferMsgs(page): ListBufferMsgs, _: &mut Self::Context) -> Self::Result {
        let PageRequest { after, limit } = page;
        let held = self.uuids.range((Bound::Excluded(after), Bound::Unbounded)).map(|(seq, uuid)| {
            let message = self.find(uuid).ok();
            (*seq, message.map(|message| self.entry(uuid, message)))
        });
        let text_len =
            |entry: &BufferEntry| entry.buffer_uuid.as_str().len() + entry.blend.as_ref().map_or(0, String::len);
        Ok(Page::take(held, limit, text_len))
    }
}

impl Handler<DiscardBufferMsg> for BufferActor {
    type Result = Deferred<Result<(), Error>>;

    fn handle(&mut self, discard: DiscardBufferMsg, _: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        self.begin_discard(discard, reply);
        deferred
    }
}
