//! What operators see of the outbox, and the messages that they discard.

use actix::prelude::*;

use crate::administration::{DiscardOutboxMessage, ListOutboxMessages, OutboxEntry, Page, PageRequest};
use crate::age;
use crate::error::Error;
use crate::publisher::UserManagerPublisher;
use crate::publisher::removal::Cause;
use crate::reply::Deferred;

impl Handler<ListOutboxMessages> for UserManagerPublisher {
    type Result = MessageResult<ListOutboxMessages>;

    fn handle(&mut self, ListOutboxMessages(page): ListOutboxMessages, _: &mut Self::Context) -> Self::Result {
        let PageRequest { after, limit } = page;
        let held = self.outbox.after(after).map(|(seq, message)| {
            let entry = OutboxEntry {
                message_id: message.meta.message_id,
                user_id: message.meta.user_id.clone(),
                kind: message.meta.kind,
                bytes: message.payload.len(),
                age: age::of(message.since),
                state: message.shown_state(),
            };
            (seq, Some(entry))
        });
        MessageResult(Page::take(held, limit, |entry| entry.user_id.len()))
    }
}

impl Handler<DiscardOutboxMessage> for UserManagerPublisher {
    type Result = Deferred<Result<(), Error>>;

    fn handle(&mut self, message: DiscardOutboxMessage, _: &mut Self::Context) -> Self::Result {
        let DiscardOutboxMessage { message_id, requester } = message;
        let found = self.outbox.find(message_id);
        match found {
            Some(seq) if self.outbox.is_in_flight(seq) => Deferred::now(Err(Error::InFlight)),
            Some(seq) if self.outbox.is_awaited(seq) => Deferred::now(Err(Error::SenderWaits)),
            _ => self.remove_durably(found, Cause::DiscardedBy(requester)),
        }
    }
}
