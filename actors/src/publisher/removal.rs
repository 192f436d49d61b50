//! Messages that somebody deletes: a deletion is answered once it is on stable storage, or refused.

use actix::prelude::*;

use crate::error::Error;
use crate::messages::{DeleteMessage, DeleteParkedMessage};
use crate::publisher::{Route, UserManagerPublisher};
use crate::reply::{Deferred, Reply, deferred};
use crate::store::{Seq, StoreError};

/// A removal on its way to the store.
#[derive(Debug)]
pub struct Removal {
    /// The user manager has the message; otherwise it is discarded.
    forwarded: bool,
    replies: Vec<Reply<Result<(), Error>>>,
}

/// The store has answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct RemovalEnded {
    seq: Seq,
    outcome: Result<(), StoreError>,
}

impl UserManagerPublisher {
    /// Removes a message. Where the store refuses that, the message stays what it was.
    fn remove_durably(
        &mut self,
        found: Option<Seq>,
        forwarded: bool,
        ctx: &Context<Self>,
    ) -> Deferred<Result<(), Error>> {
        let (reply, deferred) = deferred();
        let Some(seq) = found else {
            reply.send(Err(Error::NoSuchMessage));
            return deferred;
        };
        if let Some(removal) = self.removals.get_mut(&seq) {
            removal.replies.push(reply);
            return deferred;
        }
        self.outbox.begin_removal(seq);
        self.removals.insert(seq, Removal { forwarded, replies: vec![reply] });
        let (removed, publisher) = (self.store.remove_durably(seq), ctx.address());
        // not a future of the actor's: it would poll each of them at every event
        actix::spawn(async move {
            let outcome = removed.await;
            publisher.do_send(RemovalEnded { seq, outcome });
        });
        deferred
    }
}

impl Handler<DeleteMessage> for UserManagerPublisher {
    type Result = Deferred<Result<(), Error>>;

    fn handle(&mut self, DeleteMessage { message_id }: DeleteMessage, ctx: &mut Self::Context) -> Self::Result {
        match &self.route {
            Route::Broker(_) => Deferred::now(Err(Error::BrokerIsConfigured)),
            Route::UserManager(_) => self.remove_durably(self.outbox.find(message_id), true, ctx),
        }
    }
}

impl Handler<DeleteParkedMessage> for UserManagerPublisher {
    type Result = Deferred<Result<(), Error>>;

    fn handle(
        &mut self,
        DeleteParkedMessage { message_id }: DeleteParkedMessage,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let found = self.outbox.find(message_id).filter(|seq| self.outbox.is_parked(*seq));
        if found.is_some() {
            log::info!("parked message {message_id} is deleted");
        }
        self.remove_durably(found, false, ctx)
    }
}

impl Handler<RemovalEnded> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, RemovalEnded { seq, outcome }: RemovalEnded, ctx: &mut Self::Context) {
        let Some(Removal { forwarded, replies }) = self.removals.remove(&seq) else { return };
        match &outcome {
            Ok(()) => {
                self.forget(seq);
                self.forwarded_total += u64::from(forwarded);
            }
            Err(_) => self.outbox.removal_refused(seq),
        }
        self.advance(ctx);
        for reply in replies {
            reply.send(outcome.clone().map_err(Error::from));
        }
    }
}
