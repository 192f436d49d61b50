//! `GET /metrics` of a server.

use std::fmt::Debug;
use std::net::SocketAddr;

use super::{SOON, eventually, holds, request};

#[path = "../../support/scrape.rs"]
mod scrape;
pub use scrape::{PREFIX, Scrape};

impl Scrape {
    #[track_caller]
    pub fn of(api: SocketAddr) -> Self {
        let answer = request(api, "GET", "/metrics", &[], b"");
        assert_eq!(answer.status, 200, "{answer:?}");
        Self::parse(String::from_utf8(answer.body).expect("UTF-8"))
    }
}

/// Waits until the metrics fulfil `fact`, and returns them. Some are counted when a client has its answer already.
#[track_caller]
pub fn eventually_scraped<S: Debug>(
    api: SocketAddr,
    what: &str,
    mut fact: impl FnMut(&Scrape) -> Result<(), S>,
) -> Scrape {
    eventually(what, SOON, || {
        let scrape = Scrape::of(api);
        fact(&scrape).map(|()| scrape)
    })
}

/// Waits until the books balance: nothing is in progress. Returns the metrics.
#[track_caller]
pub fn assert_balanced(api: SocketAddr) -> Scrape {
    eventually_scraped(api, "the books balance", |scrape| {
        let unbalanced = scrape.unbalanced(0);
        holds(unbalanced.is_empty(), unbalanced)
    })
}
