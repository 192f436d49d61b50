//! A stop: nobody waits any longer than necessary, and what is in flight gets a last chance.

use std::time::Duration;

use actix::prelude::*;

use super::{PendingFlush, Route, UserManagerPublisher};
use crate::messages::{Drain, StopLeasing};
use crate::reply::{Deferred, Reply, deferred};

/// How long a stop waits for the broker's answers to what is in flight. What has none by then is sent again after the
/// next start, under the same `message-id`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The progress of a [`Drain`].
#[derive(Debug)]
pub(super) enum Draining {
    No,
    /// Waits for the broker's answers, at most for [`DRAIN_TIMEOUT`]. With those who wait for the end.
    InFlight(Vec<Reply<()>>),
    /// Waits for the store.
    Flushing(Vec<Reply<()>>),
}

impl UserManagerPublisher {
    /// A stop begins: nobody waits any longer than necessary.
    fn begin_stop(&mut self) {
        self.is_stopping = true;
        if let Route::UserManager(requests) = &mut self.route {
            requests.stop();
        }
        self.store_all();
    }

    /// Flushes the store and stops, if the actor drains and nothing is in flight any more.
    pub(super) fn stop_if_drained(&mut self, ctx: &mut Context<Self>) {
        if self.outbox.in_flight().len() == 0 {
            self.stop_draining(ctx);
        }
    }

    /// What is still in flight stays in the outbox.
    fn stop_draining(&mut self, ctx: &mut Context<Self>) {
        if let Draining::InFlight(replies) = &mut self.draining {
            self.draining = Draining::Flushing(std::mem::take(replies));
            self.flush(PendingFlush::Stop, ctx);
        }
    }
}

impl Handler<StopLeasing> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, _: StopLeasing, _: &mut Self::Context) {
        self.begin_stop();
    }
}

impl Handler<Drain> for UserManagerPublisher {
    type Result = Deferred<()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        match &mut self.draining {
            Draining::InFlight(replies) | Draining::Flushing(replies) => replies.push(reply),
            Draining::No => {
                self.draining = Draining::InFlight(vec![reply]);
                self.begin_stop();
                ctx.run_later(DRAIN_TIMEOUT, |actor, ctx| actor.stop_draining(ctx));
                self.stop_if_drained(ctx);
            }
        }
        deferred
    }
}
