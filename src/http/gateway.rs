//! What the handlers of all routes share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use user_http_actors::UserHttpActors;

use crate::Metrics;
use crate::http::connection::ConnectionSettings;
use crate::http::{Inflight, Limits};
use crate::status::{RecentEvents, Status};

/// How many uploads write to their files at the same time. More would not make the disk faster; each takes a thread and
/// a file descriptor.
const UPLOAD_WRITES: usize = 8;

/// How many messages of more than 1 MiB are hashed at the same time. Each takes a thread, and the processor's cores
/// have other work.
const HASHED_MESSAGES: usize = 2;

/// What the handlers of the routes need: the actors and the limits. Clones share both.
#[derive(Clone, Debug)]
pub struct Gateway {
    pub(crate) actors: UserHttpActors,
    pub(crate) limits: Limits,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) inflight: Inflight,
    /// Bytes of request bodies in files.
    pub(crate) upload_space: Inflight,
    /// A permit for each upload that writes at the moment.
    pub(crate) upload_writes: Arc<Semaphore>,
    /// A permit for each message of more than 1 MiB that is hashed at the moment.
    pub(crate) hashing: Arc<Semaphore>,
    pub(crate) status: Status,
}

impl Gateway {
    /// For routes in front of `actors`.
    pub fn new(actors: UserHttpActors, limits: Limits) -> Self {
        Self::with_events(actors, limits, RecentEvents::default())
    }

    /// As [`Gateway::new`], for an application whose logger fills `events`. The status page shows them.
    pub fn with_events(actors: UserHttpActors, limits: Limits, events: RecentEvents) -> Self {
        let status = Status::new(actors.clone(), events, None);
        Self::with_status(actors, limits, status)
    }

    pub(crate) fn with_status(actors: UserHttpActors, limits: Limits, status: Status) -> Self {
        let (inflight, upload_space) = (Inflight::default(), Inflight::default());
        let [upload_writes, hashing] =
            [UPLOAD_WRITES, HASHED_MESSAGES].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { actors, limits, metrics: None, inflight, upload_space, upload_writes, hashing, status }
    }

    /// Adds `GET /metrics` to [`configure_api_routes`](crate::configure_api_routes).
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// The settings of connections on which these routes are served.
    pub(crate) fn connection_settings(&self, keep_alive: Duration) -> ConnectionSettings {
        ConnectionSettings { keep_alive, limits: self.limits, inflight: self.inflight.clone() }
    }
}
