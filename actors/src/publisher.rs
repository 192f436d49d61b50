//! `UserManagerPublisher`: owns the outbox and the channel to the broker. What it has accepted reaches the user
//! manager.

use std::future;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use crate::broker::{PublisherEvent, PublisherLink};
use crate::error::Error;
use crate::lease::{NextMessage, OutboxLeaseEvent};
use crate::messages::{
    BrokerState, CountUserMessage, DeleteMessage, Drain, FromStore, GetOutboxState, OutboxState,
    SendMessageToUserManager, StopLeasing, TakeNextMessage,
};
use crate::reply::{Deferred, Reply, deferred};
use crate::store::puts::{PutDone, Puts};
use crate::store::{PutOutcome, Recovered, Seq, StoreError, StoreEvent, StoreHandle, cost, encode_meta, now_ms};

mod forward;
mod lend;
mod outbox;
mod parking;

use forward::{Forwarder, Next};
use lend::{EndLoan, Lender};
use outbox::{Outbox, OutboxMeta};

/// How long a stop waits for the broker's answer to what is on its way. What has none by then is sent again
/// after the next start, under the same `message-id`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Connects to the broker; called once, when the actor starts. What happens on the connection is told to the
/// function that it is given.
pub type StartLink = Box<dyn FnOnce(Box<dyn Fn(PublisherEvent) + Send>) -> Box<dyn PublisherLink>>;

/// Owns the outbox, the store below it, and the channel to the broker, if there is one.
#[derive(Debug)]
pub struct UserManagerPublisher {
    outbox: Outbox,
    /// Bytes of messages on their way to the store.
    reserved: u64,
    max_bytes: u64,
    /// A message was refused for want of room, and none has gone since.
    full: bool,
    route: Route,
    store: StoreHandle,
    puts: Puts<WhatFor>,
    store_failure: Option<StoreError>,
    draining: Option<Vec<oneshot::Sender<()>>>,
    forwarded_total: u64,
    test_total: u64,
    unknown_total: u64,
}

/// What is on its way to the store.
#[derive(Debug)]
enum WhatFor {
    Message(Box<Incoming>),
    /// The mark of a parked message.
    Mark(Seq),
}

#[derive(Debug)]
struct Incoming {
    meta: OutboxMeta,
    cost: u64,
    reply: Reply<Result<(), Error>>,
}

#[derive(Debug)]
enum Route {
    Broker(Forwarder),
    UserManager(Lender),
    /// Only until the actor has started.
    ToBe(ToBe),
}

struct ToBe(Option<StartLink>);

impl std::fmt::Debug for ToBe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ToBe")
    }
}

impl UserManagerPublisher {
    /// An actor that holds the `recovered` messages of `store` and keeps at most `max_bytes` bytes of messages.
    /// They go to the broker that `start_link` connects to; without it, to whoever asks for them.
    ///
    /// # Errors
    /// The number of a record that is no message of an outbox.
    pub fn new(
        store: StoreHandle,
        recovered: Vec<Recovered>,
        max_bytes: u64,
        start_link: Option<StartLink>,
    ) -> Result<Self, Seq> {
        let (outbox, useless) = Outbox::recover(recovered)?;
        useless.into_iter().for_each(|mark| store.remove(mark));
        Ok(Self {
            outbox,
            reserved: 0,
            max_bytes,
            full: false,
            route: Route::ToBe(ToBe(start_link)),
            store,
            puts: Puts::default(),
            store_failure: None,
            draining: None,
            forwarded_total: 0,
            test_total: 0,
            unknown_total: 0,
        })
    }

    /// A message that the broker is known to refuse is refused here.
    fn check_size(&self, size: u64) -> Result<(), Error> {
        match &self.route {
            Route::Broker(forwarder) => match forwarder.size_limit() {
                Some(limit) if size > limit => Err(Error::TooLargeForBroker { size, limit }),
                _ => Ok(()),
            },
            Route::UserManager(_) | Route::ToBe(_) => Ok(()),
        }
    }

    fn reserve(&mut self, cost: u64) -> Result<(), Error> {
        if self.draining.is_some() {
            return Err(Error::Stopping);
        }
        let held = self.outbox.bytes() + self.reserved;
        if held + cost > self.max_bytes {
            self.full = true;
            let (what, limit) = ("messages for the user manager", self.max_bytes);
            return Err(Error::NoRoom { what, size: cost, held, limit });
        }
        self.reserved += cost;
        Ok(())
    }

    /// A message has been stored, or could not be.
    fn take_in(&mut self, incoming: Incoming, outcome: PutOutcome, ctx: &mut Context<Self>) {
        let Incoming { meta, cost, reply } = incoming;
        self.reserved -= cost;
        let (seq, payload) = match outcome {
            Ok(stored) => stored,
            Err(error) => return reply.send(Err(error.into())),
        };
        if let Route::UserManager(lender) = &mut self.route {
            lender.added(meta.message_id, seq);
        }
        self.outbox.add(seq, meta, payload, cost);
        self.advance(ctx);
        reply.send(Ok(()));
    }

    /// Moves messages on, as far as they can go.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        if self.draining.is_some() {
            return;
        }
        loop {
            match &mut self.route {
                Route::Broker(forwarder) => match forwarder.send(&mut self.outbox) {
                    Some((seq, reason)) => self.park(seq, reason),
                    None => return,
                },
                Route::UserManager(lender) => return lender.lend(&mut self.outbox, &ctx.address().recipient()),
                Route::ToBe(_) => return,
            }
        }
    }

    fn remove(&mut self, seq: Seq) {
        // the message first: a mark of nothing is harmless
        self.store.remove(seq);
        self.forget(seq);
    }

    /// A message is no more in the store.
    fn forget(&mut self, seq: Seq) {
        self.outbox.remove(seq).into_iter().for_each(|mark| self.store.remove(mark));
        self.full = false;
    }

    fn forwarded(&mut self, seq: Seq) {
        self.remove(seq);
        self.forwarded_total += 1;
    }

    /// Removes a message, durably. Where that is refused, the message stays.
    fn remove_durably(
        &self,
        found: Option<Seq>,
        forwarded: bool,
        ctx: &Context<Self>,
    ) -> ResponseFuture<Result<(), Error>> {
        let Some(seq) = found else { return Box::pin(future::ready(Err(Error::NoSuchMessage))) };
        let (removal, publisher) = (self.store.remove_durably(seq), ctx.address());
        Box::pin(async move {
            let removed = removal.await;
            publisher.send(EndRemoval { seq, removed: removed.is_ok(), forwarded }).await?;
            Ok(removed?)
        })
    }

    fn tell_if_drained(&mut self) {
        if let (Route::Broker(forwarder), Some(waiting)) = (&self.route, &mut self.draining)
            && forwarder.is_idle()
        {
            for reply in waiting.drain(..) {
                let _ = reply.send(());
            }
        }
    }
}

impl Actor for UserManagerPublisher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(self.puts.clone());
        let Route::ToBe(ToBe(start_link)) = &mut self.route else { return };
        self.route = match start_link.take() {
            Some(start_link) => {
                let this = ctx.address();
                let link = start_link(Box::new(move |event| this.do_send(FromBroker(event))));
                Route::Broker(Forwarder::new(link))
            }
            None => {
                let lender = Lender::new(&self.outbox);
                ctx.add_stream(lender.deadlines());
                Route::UserManager(lender)
            }
        };
    }
}

impl Handler<SendMessageToUserManager> for UserManagerPublisher {
    type Result = Deferred<Result<(), Error>>;

    fn handle(
        &mut self,
        SendMessageToUserManager(message): SendMessageToUserManager,
        _: &mut Self::Context,
    ) -> Self::Result {
        let (reply, deferred) = deferred();
        let meta = OutboxMeta::new(&message, now_ms());
        let encoded = encode_meta(&meta);
        let size = message.body.iter().map(|part| part.len() as u64).sum();
        let cost = cost(encoded.len(), size);
        if let Err(error) = self.check_size(size).and_then(|()| self.reserve(cost)) {
            reply.send(Err(error));
            return deferred;
        }
        let put = self.store.put(encoded, message.body);
        self.puts.add(put, WhatFor::Message(Box::new(Incoming { meta, cost, reply })));
        deferred
    }
}

impl StreamHandler<PutDone<WhatFor>> for UserManagerPublisher {
    fn handle(&mut self, (outcome, what_for): PutDone<WhatFor>, ctx: &mut Self::Context) {
        match what_for {
            WhatFor::Message(incoming) => self.take_in(*incoming, outcome, ctx),
            WhatFor::Mark(seq) => self.marked(seq, outcome.map(|(mark, _)| mark)),
        }
    }
}

impl Handler<CountUserMessage> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, message: CountUserMessage, _: &mut Self::Context) {
        match message {
            CountUserMessage::Test => self.test_total += 1,
            CountUserMessage::Other => self.unknown_total += 1,
        }
    }
}

/// What happens on the connection to the broker.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct FromBroker(PublisherEvent);

impl Handler<FromBroker> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, FromBroker(event): FromBroker, ctx: &mut Self::Context) {
        let Route::Broker(forwarder) = &mut self.route else { return };
        match forwarder.handle(event, &mut self.outbox) {
            Next::Send => self.advance(ctx),
            Next::Remove(seq) => {
                self.forwarded(seq);
                self.advance(ctx);
            }
            Next::Park(seq, reason) => {
                self.park(seq, reason);
                self.advance(ctx);
            }
            Next::Rest(delay) => {
                ctx.run_later(delay, |actor, ctx| {
                    if let Route::Broker(forwarder) = &mut actor.route {
                        forwarder.rested();
                    }
                    actor.advance(ctx);
                });
            }
            Next::Nothing => {}
        }
        self.tell_if_drained();
    }
}

impl Handler<TakeNextMessage> for UserManagerPublisher {
    type Result = Deferred<Result<Option<NextMessage>, Error>>;

    fn handle(&mut self, TakeNextMessage { lease, wait }: TakeNextMessage, ctx: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        match &mut self.route {
            Route::UserManager(lender) if wait || lender.has_next(&self.outbox) => {
                lender.queue(lease, reply);
                self.advance(ctx);
            }
            Route::UserManager(_) => reply.send(Ok(None)),
            Route::Broker(_) | Route::ToBe(_) => reply.send(Err(Error::BrokerIsConfigured)),
        }
        deferred
    }
}

impl Handler<StopLeasing> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, _: StopLeasing, _: &mut Self::Context) {
        if let Route::UserManager(lender) = &mut self.route {
            lender.stop();
        }
    }
}

impl Handler<OutboxLeaseEvent> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, event: OutboxLeaseEvent, ctx: &mut Self::Context) {
        let Route::UserManager(lender) = &mut self.route else { return };
        match event {
            OutboxLeaseEvent::Released { seq, lease } => lender.end_loan(seq, lease, &mut self.outbox),
            // two readers may find that out at the same time, or it has been deleted since
            OutboxLeaseEvent::Unreadable { seq, .. }
                if self.outbox.get(seq).is_none() || self.outbox.is_parked(seq) =>
            {
                return;
            }
            OutboxLeaseEvent::Unreadable { seq, reason } => {
                lender.forget_loan(seq);
                self.outbox.take_out(seq);
                self.park(seq, reason);
            }
        }
        self.advance(ctx);
    }
}

/// The visibility timeouts that have passed.
impl StreamHandler<EndLoan> for UserManagerPublisher {
    fn handle(&mut self, EndLoan(seq): EndLoan, ctx: &mut Self::Context) {
        if let Route::UserManager(lender) = &mut self.route {
            lender.expire(seq, &mut self.outbox);
            self.advance(ctx);
        }
    }
}

impl Handler<DeleteMessage> for UserManagerPublisher {
    type Result = ResponseFuture<Result<(), Error>>;

    fn handle(&mut self, DeleteMessage { message_id }: DeleteMessage, ctx: &mut Self::Context) -> Self::Result {
        let Route::UserManager(lender) = &mut self.route else {
            return Box::pin(future::ready(Err(Error::BrokerIsConfigured)));
        };
        let found = lender.take_back(message_id);
        found.into_iter().for_each(|seq| self.outbox.take_out(seq));
        self.remove_durably(found, true, ctx)
    }
}

/// A removal is durable, or was refused.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct EndRemoval {
    seq: Seq,
    removed: bool,
    /// The user manager is done with the message.
    forwarded: bool,
}

impl Handler<EndRemoval> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, message: EndRemoval, ctx: &mut Self::Context) {
        let EndRemoval { seq, removed, forwarded } = message;
        if !removed {
            self.outbox.put_back(seq);
            return self.advance(ctx);
        }
        // it may have been removed twice at once
        let Some(message_id) = self.outbox.get(seq).map(|message| message.meta.message_id) else { return };
        if let Route::UserManager(lender) = &mut self.route {
            lender.forget(message_id);
        }
        self.forget(seq);
        self.forwarded_total += u64::from(forwarded);
    }
}

impl Handler<FromStore> for UserManagerPublisher {
    type Result = ();

    fn handle(&mut self, FromStore(event): FromStore, ctx: &mut Self::Context) {
        match event {
            StoreEvent::Moved(moved) => {
                // what has been put only just may be among it
                self.puts.take_ready().into_iter().for_each(|done| StreamHandler::handle(self, done, ctx));
                for (seq, payload) in moved {
                    if let Some(message) = self.outbox.get_mut(seq) {
                        message.payload = payload;
                    }
                }
            }
            StoreEvent::Status(failure) => self.store_failure = failure,
        }
    }
}

impl Handler<GetOutboxState> for UserManagerPublisher {
    type Result = OutboxState;

    fn handle(&mut self, _: GetOutboxState, _: &mut Self::Context) -> Self::Result {
        OutboxState {
            messages: self.outbox.len(),
            bytes: self.outbox.bytes(),
            parked: self.outbox.parked().len(),
            max_bytes: self.max_bytes,
            full: self.full,
            broker: match &self.route {
                Route::Broker(forwarder) => forwarder.state(),
                Route::ToBe(ToBe(Some(_))) => BrokerState::Disconnected,
                Route::UserManager(_) | Route::ToBe(ToBe(None)) => BrokerState::None,
            },
            waiting_for: match &self.route {
                Route::Broker(forwarder) => forwarder.waiting_for().map(str::to_owned),
                Route::UserManager(_) | Route::ToBe(_) => None,
            },
            forwarded_total: self.forwarded_total,
            test_total: self.test_total,
            unknown_total: self.unknown_total,
            store_failure: self.store_failure.clone(),
        }
    }
}

impl Handler<Drain> for UserManagerPublisher {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let (reply, drained) = oneshot::channel();
        self.draining.get_or_insert_default().push(reply);
        match &mut self.route {
            Route::UserManager(lender) => {
                lender.stop();
                self.draining = Some(Vec::new());
            }
            Route::Broker(_) => self.tell_if_drained(),
            Route::ToBe(_) => {}
        }
        let settled = async move {
            // whatever has no outcome by then stays in the outbox
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
        };
        let flushed = settled.into_actor(self).then(|(), actor, _| actor.store.flush().into_actor(actor));
        // the outcome of every put has been told by then, but maybe not taken in
        let settled = flushed.then(|flushed, actor, _| {
            flushed
                .unwrap_or_else(|error| log::warn!("forwarded messages may be there again after a restart: {error}"));
            actor.puts.all_settled().into_actor(actor)
        });
        Box::pin(settled.map(|(), _, ctx| ctx.stop()))
    }
}
