//! Messages that somebody deletes: a deletion is answered once it is on stable storage, or refused.

use actix::prelude::*;

use crate::administration::Requester;
use crate::error::Error;
use crate::messages::{DeleteMessage, DeleteParkedMessage};
use crate::publisher::metrics::Departure;
use crate::publisher::{Route, UserManagerPublisher};
use crate::reply::{Deferred, Reply, deferred};
use crate::store::{Seq, StoreError, check_failure};

/// A removal that the store is writing.
#[derive(Debug)]
pub struct Removal {
    cause: Cause,
    replies: Vec<Reply<Result<(), Error>>>,
}

/// Why a message is removed.
#[derive(Debug)]
pub(super) enum Cause {
    /// The user manager has processed it.
    Forwarded,
    /// An operator deletes it as a parked message.
    Discarded,
    /// An operator discards it.
    DiscardedBy(Requester),
}

impl Cause {
    fn departure(&self) -> Departure {
        match self {
            Self::Forwarded => Departure::Forwarded,
            Self::Discarded | Self::DiscardedBy(_) => Departure::Discarded,
        }
    }
}

impl UserManagerPublisher {
    /// Removes a message. If the store refuses that, the message stays what it was.
    pub(super) fn remove_durably(&mut self, found: Option<Seq>, cause: Cause) -> Deferred<Result<(), Error>> {
        let Some(seq) = found else { return Deferred::now(Err(Error::NoSuchMessage)) };
        if let Err(error) = check_failure(&self.store_failure) {
            return Deferred::now(Err(error.into()));
        }
        let (reply, deferred) = deferred();
        if let Some(removal) = self.removals.get_mut(&seq) {
            removal.replies.push(reply);
            return deferred;
        }
        self.outbox.begin_removal(seq);
        self.removals.insert(seq, Removal { cause, replies: vec![reply] });
        self.store.remove_durably(seq);
        deferred
    }

    /// Handles the outcome of a removal.
    pub(super) fn finish_removal(&mut self, seq: Seq, outcome: Result<(), StoreError>, ctx: &mut Context<Self>) {
        let Some(Removal { cause, replies }) = self.removals.remove(&seq) else { return };
        match &outcome {
            Ok(()) => {
                let departure = cause.departure();
                if let (Cause::DiscardedBy(requester), Some(message)) = (cause, self.outbox.get(seq)) {
                    let (id, kind, user, len) =
                        (message.meta.message_id, message.meta.kind, &message.meta.user_id, message.payload.len());
                    let (by, request_id) = (requester.name.as_str(), requester.request_id.as_str());
                    log::info!(request_id, by; "message {id} ({kind:?} of {user:?}, {len} bytes) is discarded by {by}");
                }
                self.forget(seq, departure);
            }
            Err(_) => self.outbox.removal_refused(seq),
        }
        self.advance(ctx);
        for reply in replies {
            reply.send(outcome.clone().map_err(Error::from));
        }
    }
}

impl Handler<DeleteMessage> for UserManagerPublisher {
    type Result = Deferred<Result<(), Error>>;

    fn handle(&mut self, DeleteMessage { message_id }: DeleteMessage, _: &mut Self::Context) -> Self::Result {
        match &self.route {
            Route::Broker(_) => Deferred::now(Err(Error::BrokerIsConfigured)),
            Route::UserManager(_) => self.remove_durably(self.outbox.find(message_id), Cause::Forwarded),
        }
    }
}

impl Handler<DeleteParkedMessage> for UserManagerPublisher {
    type Result = Deferred<Result<(), Error>>;

    fn handle(
        &mut self,
        DeleteParkedMessage { message_id }: DeleteParkedMessage,
        _: &mut Self::Context,
    ) -> Self::Result {
        let found = self.outbox.find(message_id).filter(|seq| self.outbox.is_parked(*seq));
        if found.is_some() {
            log::info!("parked message {message_id} is deleted");
        }
        self.remove_durably(found, Cause::Discarded)
    }
}
