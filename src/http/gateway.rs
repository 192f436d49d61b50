//! What the routes share.

use std::time::Duration;

use user_http_actors::UserHttpActors;

use crate::http::connection::Terms;
use crate::http::{Inflight, Limits};

/// What the routes have to know.
#[derive(Clone, Debug)]
pub struct Gateway {
    pub(crate) actors: UserHttpActors,
    pub(crate) limits: Limits,
    pub(crate) inflight: Inflight,
}

impl Gateway {
    /// Routes in front of `actors`. All clones share `limits`.
    pub fn new(actors: UserHttpActors, limits: Limits) -> Self {
        Self { actors, limits, inflight: Inflight::default() }
    }

    /// What the connections of a server in front of these routes are to keep to.
    pub(crate) fn terms(&self, keep_alive: Duration) -> Terms {
        Terms { keep_alive, limits: self.limits, inflight: self.inflight.clone() }
    }
}
