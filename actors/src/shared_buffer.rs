//! `SharedBuffer`: the buffer of several gateways. The messages are in a database; this actor owns what this gateway
//! holds of them: its leases, and the requests that wait.
//!
//! Each request to the database is a task of its own, outside of the actor's context, because actix polls every future
//! of an actor at every event.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use crate::age::AgeClock;
use crate::buffer::metrics::{BufferMetrics, Departure, Held};
use crate::error::Error;
use crate::messages::{
    AddBufferMsg, AddFileReference, BufferState, Drain, FileReferences, FindFileReferences, GetBufferState, ProbeStore,
    StopWaiting,
};
use crate::metrics::OldestAge;
use crate::postgres::{PostgresBuffer, Put};
use crate::reply::{Deferred, Reply, deferred};

mod administration;
mod leases;
mod waiting;

use leases::Leases;
use waiting::Waiting;

/// How often expired messages are removed, leases renewed if it is time, and the metrics set.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How often the database is asked for the messages that somebody waits for. One statement asks for all of them.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a stop waits for a database that does not answer. Leases end by themselves.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);

/// Owns the leases and the waiting requests of this gateway.
#[derive(Debug)]
pub struct SharedBuffer {
    local: Rc<Local>,
    clock: AgeClock,
    /// Whether the messages that were there at the start are counted: when the database has answered first.
    has_counted: bool,
    draining: Vec<Reply<()>>,
}

/// What the actor shares with its tasks, on one thread.
#[derive(Debug)]
struct Local {
    database: PostgresBuffer,
    leases: Leases,
    waiting: Waiting,
    metrics: std::cell::RefCell<BufferMetrics>,
    is_draining: std::cell::Cell<bool>,
    /// Whether the database is being asked for what is waited for, and whether what is old is being removed.
    is_looking: std::cell::Cell<bool>,
    is_sweeping: std::cell::Cell<bool>,
}

impl SharedBuffer {
    /// An actor over this database.
    pub fn new(database: PostgresBuffer) -> Self {
        let metrics = BufferMetrics::register(database.max_bytes()).into();
        let local = Local {
            database,
            leases: Leases::default(),
            waiting: Waiting::default(),
            metrics,
            is_draining: false.into(),
            is_looking: false.into(),
            is_sweeping: false.into(),
        };
        Self { local: Rc::new(local), clock: AgeClock::start(), has_counted: false, draining: Vec::new() }
    }

    /// The age of the oldest message, for whoever reads the metrics.
    pub(crate) fn oldest_age(&self) -> Arc<OldestAge> {
        Arc::clone(self.local.metrics.borrow().oldest())
    }

    /// Asks for the messages that somebody waits for.
    fn look(&self) {
        let local = Rc::clone(&self.local);
        let uuids = local.waiting.uuids();
        if uuids.is_empty() || local.is_looking.replace(true) {
            return;
        }
        actix::spawn(async move {
            // if the database does not answer, the waiting requests find out by themselves at their end
            for found in local.database.available(&uuids).await.unwrap_or_default() {
                local.waiting.wake(&uuids[found.index], found.free);
            }
            local.is_looking.set(false);
        });
    }

    fn upkeep(&mut self) {
        let health = self.local.database.health();
        let oldest = health.totals.oldest.map(|age| self.clock.now().saturating_sub_unsigned(age.as_millis() as u64));
        let held = Held {
            messages: health.totals.messages as usize,
            bytes: health.totals.bytes,
            in_delivery: self.local.leases.len(),
            oldest,
        };
        if health.failure.is_none() && !std::mem::replace(&mut self.has_counted, true) {
            self.local.metrics.borrow().recovered(held);
        } else {
            self.local.metrics.borrow().holds(held);
        }
        self.local.leases.renew_if_due();
        let local = Rc::clone(&self.local);
        if health.failure.is_some() || local.is_sweeping.replace(true) {
            return;
        }
        actix::spawn(async move {
            match local.database.sweep().await {
                Ok(swept) => {
                    (0..swept.messages).for_each(|_| local.metrics.borrow_mut().left(Departure::Expired));
                    if let Some(uuid) = swept.example {
                        log::info!(
                            "{} messages have expired, {uuid:?} among them: nobody fetched them",
                            swept.messages
                        );
                    }
                }
                Err(error) => log::warn!("expired messages are not removed: {error}"),
            }
            if let Err(error) = local.database.clean_up().await {
                log::warn!("what messages have left behind is not removed: {error}");
            }
            local.is_sweeping.set(false);
        });
    }

    /// Replies to every [`Drain`] and stops, once nothing of this gateway is on its way to the database.
    fn stop_if_settled(&mut self, ctx: &mut Context<Self>) {
        if self.local.is_draining.get() && self.local.leases.are_settled() {
            self.stop(ctx);
        }
    }

    fn stop(&mut self, ctx: &mut Context<Self>) {
        self.draining.drain(..).for_each(|reply| reply.send(()));
        ctx.stop();
    }
}

impl Actor for SharedBuffer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(UPKEEP_INTERVAL, |actor, _| actor.upkeep());
        ctx.run_interval(LOOK_INTERVAL, |actor, _| actor.look());
    }
}

impl Handler<AddBufferMsg> for SharedBuffer {
    type Result = Deferred<Result<(), Error>>;

    fn handle(&mut self, message: AddBufferMsg, _: &mut Self::Context) -> Self::Result {
        let AddBufferMsg { buffer_uuid: uuid, message, delivery } = message;
        if self.local.is_draining.get() {
            return Deferred::now(Err(Error::Stopping));
        }
        let (reply, deferred) = deferred();
        let local = Rc::clone(&self.local);
        actix::spawn(async move {
            let put = local.database.put(uuid.clone(), message, delivery).await;
            reply.send(match put {
                Ok(Put::Stored { replaced }) => {
                    let mut metrics = local.metrics.borrow_mut();
                    metrics.accepted(delivery);
                    if replaced {
                        metrics.left(Departure::Replaced);
                    }
                    local.waiting.wake(&uuid, true);
                    Ok(())
                }
                Ok(Put::Duplicate) => {
                    log::info!("message {uuid:?} is delivered again by the broker, and is not buffered again");
                    Ok(())
                }
                Ok(Put::Full { size, held }) => {
                    let limit = local.database.max_bytes();
                    Err(Error::NoCapacity { what: "buffered messages", size, held, limit })
                }
                Err(error) => Err(error.into()),
            });
        });
        deferred
    }
}

impl Handler<AddFileReference> for SharedBuffer {
    type Result = ResponseFuture<Result<(), Error>>;

    fn handle(&mut self, AddFileReference(reference): AddFileReference, _: &mut Self::Context) -> Self::Result {
        let database = self.local.database.clone();
        Box::pin(async move { Ok(database.add_reference(reference).await?) })
    }
}

impl Handler<FindFileReferences> for SharedBuffer {
    type Result = ResponseFuture<Result<FileReferences, Error>>;

    fn handle(&mut self, FindFileReferences(digest): FindFileReferences, _: &mut Self::Context) -> Self::Result {
        let database = self.local.database.clone();
        Box::pin(async move { Ok(FileReferences(database.find_references(digest).await?)) })
    }
}

impl Handler<GetBufferState> for SharedBuffer {
    type Result = BufferState;

    /// Answers at once, with what the database has said last.
    fn handle(&mut self, _: GetBufferState, _: &mut Self::Context) -> Self::Result {
        let (health, metrics) = (self.local.database.health(), self.local.metrics.borrow());
        let max_bytes = self.local.database.max_bytes();
        BufferState {
            messages: health.totals.messages as usize,
            bytes: health.totals.bytes,
            max_bytes,
            free_bytes: max_bytes.saturating_sub(health.totals.bytes),
            in_delivery: self.local.leases.len(),
            waiting: self.local.waiting.len(),
            oldest: health.totals.oldest,
            accepted_total: metrics.accepted_total(),
            delivered_total: metrics.delivered.value(),
            expired_total: metrics.expired.value(),
            discarded_total: metrics.discarded.value(),
            store_failure: health.failure,
            store_busy: None,
            is_stopping: self.local.waiting.has_ended(),
        }
    }
}

impl Handler<ProbeStore> for SharedBuffer {
    type Result = ();

    /// The database is asked all the time.
    fn handle(&mut self, _: ProbeStore, _: &mut Self::Context) {}
}

impl Handler<StopWaiting> for SharedBuffer {
    type Result = ();

    fn handle(&mut self, _: StopWaiting, _: &mut Self::Context) {
        self.local.waiting.end();
    }
}

impl Handler<Drain> for SharedBuffer {
    type Result = Deferred<()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.local.waiting.end();
        self.local.is_draining.set(true);
        let (reply, deferred) = deferred();
        self.draining.push(reply);
        ctx.run_later(DRAIN_TIMEOUT, |actor, ctx| actor.stop(ctx));
        self.stop_if_settled(ctx);
        deferred
    }
}
