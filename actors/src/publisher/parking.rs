//! Messages that the broker has refused for good: parked, listed, and published or deleted at somebody's word.

use actix::prelude::*;

use crate::error::Error;
use crate::messages::{DeleteParkedMessage, GetParkedMessages, ParkedMessage, ParkedMessages, PublishParkedMessage};
use crate::publisher::outbox::{Mark, OutboxMessage};
use crate::publisher::{Route, UserManagerPublisher, WhatFor};
use crate::store::{Seq, StoreError, encode_meta, now_ms};

impl UserManagerPublisher {
    /// Keeps a message until somebody decides about it, through a restart too.
    pub(super) fn park(&mut self, seq: Seq, reason: String) {
        let since_ms = now_ms();
        self.outbox.park(seq, reason.clone(), since_ms);
        let meta = Mark { parked: seq, reason, since_ms };
        self.puts.add(self.store.put(encode_meta(&meta), Vec::new()), WhatFor::Mark(seq));
    }

    /// The mark of a parked message has been stored, or could not be.
    pub(super) fn marked(&mut self, seq: Seq, mark: Result<Seq, StoreError>) {
        match mark {
            Ok(mark) => self.outbox.marked(seq, mark).into_iter().for_each(|mark| self.store.remove(mark)),
            Err(error) => log::warn!("a restart will send a parked message again: {error}"),
        }
    }
}

impl Handler<GetParkedMessages> for UserManagerPublisher {
    type Result = ResponseFuture<ParkedMessages>;

    fn handle(&mut self, _: GetParkedMessages, _: &mut Self::Context) -> Self::Result {
        let parked = self.outbox.parked().filter_map(|(seq, parked)| {
            let OutboxMessage { meta, payload, .. } = self.outbox.get(seq)?;
            Some(ParkedMessage {
                message_id: meta.message_id,
                user_id: meta.user_id.clone(),
                kind: meta.kind,
                size: payload.len(),
                reason: parked.reason.clone(),
                since_ms: parked.since_ms,
            })
        });
        let parked = ParkedMessages(parked.collect());
        // what is listed stays parked through a kill
        let marked = self.store.flush();
        Box::pin(async move {
            // on a full disk too they are listed: deleting them makes room
            let _ = marked.await;
            parked
        })
    }
}

impl Handler<PublishParkedMessage> for UserManagerPublisher {
    type Result = Result<(), Error>;

    fn handle(&mut self, message: PublishParkedMessage, ctx: &mut Self::Context) -> Self::Result {
        let seq = self.outbox.find_parked(message.message_id).ok_or(Error::NoSuchMessage)?;
        log::info!("parked message {} is published after all", message.message_id);
        self.outbox.unpark(seq).into_iter().for_each(|mark| self.store.remove(mark));
        if let Route::Broker(forwarder) = &mut self.route {
            forwarder.insist(seq);
        }
        self.advance(ctx);
        Ok(())
    }
}

impl Handler<DeleteParkedMessage> for UserManagerPublisher {
    type Result = ResponseFuture<Result<(), Error>>;

    fn handle(&mut self, message: DeleteParkedMessage, ctx: &mut Self::Context) -> Self::Result {
        let found = self.outbox.find_parked(message.message_id);
        if found.is_some() {
            log::info!("parked message {} is deleted", message.message_id);
        }
        self.remove_durably(found, false, ctx)
    }
}
