//! Parked messages: those that the broker refuses permanently, or whose body cannot be read. An operator publishes or
//! deletes them.

use actix::prelude::*;

use crate::error::Error;
use crate::messages::{GetParkedMessages, ParkedMessage, ParkedMessages, PublishParkedMessage};
use crate::payload::Payload;
use crate::publisher::outbox::{OutboxMessage, Parked};
use crate::publisher::record::ParkedMarker;
use crate::publisher::{PendingFlush, Route, UserManagerPublisher};
use crate::reply::{Deferred, deferred};
use crate::store::{Seq, StoreError, encode_meta, now_ms};

impl UserManagerPublisher {
    /// Keeps a message until an operator decides about it, through a restart too.
    pub(super) fn park(&mut self, seq: Seq, reason: String) {
        let since_ms = now_ms();
        // the message before its marker
        self.store_message(seq);
        if self.outbox.park(seq, reason.clone(), since_ms) {
            let meta = ParkedMarker { parked: seq, reason, since_ms };
            let marker = self.store.put(encode_meta(&meta), Payload::empty());
            self.pending_markers.insert(marker, seq);
            self.metrics.holds(&self.outbox);
        }
    }

    /// The marker of a parked message has been stored, or could not be.
    pub(super) fn marker_stored(&mut self, seq: Seq, marker: Result<Seq, StoreError>) {
        match marker {
            Ok(marker) => {
                self.outbox.marker_stored(seq, marker).into_iter().for_each(|marker| self.store.remove(marker))
            }
            Err(error) => log::warn!("a restart will send a parked message again: {error}"),
        }
    }
}

impl Handler<GetParkedMessages> for UserManagerPublisher {
    type Result = Deferred<ParkedMessages>;

    fn handle(&mut self, _: GetParkedMessages, ctx: &mut Self::Context) -> Self::Result {
        let parked =
            self.outbox.parked().map(|(OutboxMessage { meta, payload, .. }, Parked { reason, since_ms, .. })| {
                ParkedMessage {
                    message_id: meta.message_id,
                    user_id: meta.user_id.clone(),
                    kind: meta.kind,
                    size: payload.len(),
                    reason: reason.clone(),
                    since_ms: *since_ms,
                }
            });
        let parked = ParkedMessages(parked.collect());
        let (reply, deferred) = deferred();
        // what is listed stays parked through a kill
        self.flush(PendingFlush::ListParked(parked, reply), ctx);
        deferred
    }
}

impl Handler<PublishParkedMessage> for UserManagerPublisher {
    type Result = Result<(), Error>;

    fn handle(
        &mut self,
        PublishParkedMessage { message_id }: PublishParkedMessage,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let found = self.outbox.find(message_id).filter(|seq| self.outbox.is_parked(*seq));
        let seq = found.filter(|seq| !self.outbox.is_being_removed(*seq)).ok_or(Error::NoSuchMessage)?;
        log::info!("parked message {message_id} is published after all");
        self.outbox.unpark(seq).into_iter().for_each(|marker| self.store.remove(marker));
        self.metrics.holds(&self.outbox);
        if let Route::Broker(forwarder) = &mut self.route {
            forwarder.insist(seq);
        }
        self.advance(ctx);
        Ok(())
    }
}
