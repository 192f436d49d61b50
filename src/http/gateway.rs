//! What the handlers of all routes share.

use std::time::Duration;

use user_http_actors::UserHttpActors;

use crate::http::connection::ConnectionSettings;
use crate::http::{Inflight, Limits};

/// What the handlers of the routes need: the actors and the limits. Clones share both.
#[derive(Clone, Debug)]
pub struct Gateway {
    pub(crate) actors: UserHttpActors,
    pub(crate) limits: Limits,
    pub(crate) inflight: Inflight,
}

impl Gateway {
    /// For routes in front of `actors`.
    pub fn new(actors: UserHttpActors, limits: Limits) -> Self {
        Self { actors, limits, inflight: Inflight::default() }
    }

    /// The settings of connections on which these routes are served.
    pub(crate) fn connection_settings(&self, keep_alive: Duration) -> ConnectionSettings {
        ConnectionSettings { keep_alive, limits: self.limits, inflight: self.inflight.clone() }
    }
}
