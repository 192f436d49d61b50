//! Gateways that freeze, break off and overtake one another at random: each message is delivered completely once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use user_http_actors::postgres::{Claim, PostgresBuffer};

use super::harness::{CAPACITY, DAY, database_at, message};
use crate::server::Postgres;

const MESSAGES: usize = 40;
const GATEWAYS: usize = 3;
const WORKERS: usize = 2;

/// What has happened to each message, by its number.
type Deliveries = RefCell<BTreeMap<usize, Outcomes>>;

#[derive(Default, Debug)]
struct Outcomes {
    /// Deliveries whose last byte was sent, after a renewal had succeeded.
    complete: usize,
    /// Deliveries that were removed from the database.
    removed: usize,
    /// Deliveries whose lease was over.
    broken_off: usize,
}

fn uuid(number: usize) -> String {
    format!("message {number}")
}

/// Fetches messages until all are gone.
async fn work(server: &Postgres, gateway: &PostgresBuffer, seed: u64, deliveries: &Deliveries) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut left: Vec<usize> = (0..MESSAGES).collect();
    while !left.is_empty() {
        let at = rng.random_range(0..left.len());
        let number = left[at];
        let claimed = match gateway.claim(&uuid(number).as_str().into()).await.expect("a database") {
            Claim::Absent => {
                left.swap_remove(at);
                continue;
            }
            Claim::InDelivery => {
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..5))).await;
                continue;
            }
            Claim::Claimed(claimed) => claimed,
        };
        if rng.random_ratio(1, 3) {
            // frozen for longer than a lease lasts
            server.ask(&format!(
                "UPDATE user_http_server.messages SET lease_until = clock_timestamp() WHERE uuid = '{}'",
                uuid(number)
            ));
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..40))).await;
        }
        if rng.random_ratio(1, 5) {
            gateway.renew(claimed.id.clone()).await.expect("a database");
            drop(gateway.peek(&uuid(number).as_str().into()).await.expect("a database"));
        }
        let renewed = gateway.renew(claimed.id.clone()).await.expect("a database");
        let count = |change: fn(&mut Outcomes)| change(deliveries.borrow_mut().entry(number).or_default());
        if renewed.is_none() {
            // what is held back is not sent
            count(|outcomes| outcomes.broken_off += 1);
            continue;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..10))).await;
        count(|outcomes| outcomes.complete += 1);
        if gateway.deliver(claimed.id).await.expect("a database") {
            count(|outcomes| outcomes.removed += 1);
        }
    }
}

#[actix::test]
async fn whatever_gateways_freeze_each_message_is_completed_and_removed_once() {
    let seed = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("repeat with TEST_SEED={seed}");
    let server = Postgres::start();
    let gateways: Vec<_> = (0..GATEWAYS).map(|_| database_at(&server.url(), 0, CAPACITY, DAY)).collect();
    for number in 0..MESSAGES {
        gateways[0].put(uuid(number).as_str().into(), message("b"), None).await.expect("stored");
    }
    let deliveries = Deliveries::default();
    let workers = (0..GATEWAYS * WORKERS)
        .map(|number| work(&server, &gateways[number % GATEWAYS], u64::wrapping_add(seed, number as u64), &deliveries));
    futures::future::join_all(workers).await;
    let deliveries = deliveries.into_inner();
    assert_eq!(deliveries.len(), MESSAGES);
    for (number, outcomes) in &deliveries {
        assert_eq!((outcomes.complete, outcomes.removed), (1, 1), "{number}: {outcomes:?}");
    }
}
