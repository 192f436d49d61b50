//! Gateways that freeze, break off and overtake one another at random, with delays between all of their steps: each
//! message is delivered completely once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use user_http_actors::postgres::{Claim, PostgresBuffer};

use super::harness::{CAPACITY, DAY, database_at, long_body, message};
use crate::postgres::server::Postgres;

const MESSAGES: usize = 40;
const GATEWAYS: usize = 3;
const WORKERS: usize = 2;

/// What has happened to each message, by its number.
type Deliveries = RefCell<BTreeMap<usize, Outcomes>>;

#[derive(Default, Debug)]
struct Outcomes {
    /// The ETag that a worker has seen.
    etag: Option<String>,
    /// Claims that were taken over from another gateway.
    taken_over: usize,
    /// Deliveries whose last byte was sent, after a renewal for the end had succeeded.
    complete: usize,
    /// Deliveries that were removed from the database.
    removed: usize,
    /// Deliveries whose lease was over.
    broken_off: usize,
}

fn uuid(number: usize) -> String {
    format!("message {number}")
}

/// Whether it is sent at once, so that nobody takes it over.
fn is_small(number: usize) -> bool {
    number.is_multiple_of(3)
}

fn body(number: usize) -> Vec<u8> {
    long_body(if is_small(number) { 10 } else { 100_000 })
}

/// What comes next is late.
async fn delay(rng: &mut StdRng) {
    if rng.random_ratio(1, 2) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..25))).await;
    }
}

/// The gateway is frozen for longer than a lease lasts. Not while the end of a large message is sent, since somebody
/// else may have taken the message over and be there: a gateway whose own deadline is over sends nothing.
fn freeze(server: &Postgres, number: usize) {
    server.ask(&format!(
        "UPDATE user_http_server.messages SET lease_until = clock_timestamp()
         WHERE uuid = '{}' AND (NOT ending OR body IS NOT NULL)",
        uuid(number)
    ));
}

/// Claims a message, or takes it over for a worker that has begun to fetch it.
async fn claim(gateway: &PostgresBuffer, number: usize, deliveries: &Deliveries) -> Claim {
    let uuid = uuid(number).as_str().into();
    let claim = gateway.claim(&uuid).await.expect("a database");
    let etag = deliveries.borrow().get(&number).and_then(|outcomes| outcomes.etag.clone());
    let (Claim::InDelivery, Some(etag)) = (&claim, etag) else { return claim };
    let taken = gateway.take_over(&uuid, &etag).await.expect("a database");
    if let Claim::Claimed(_) = taken {
        deliveries.borrow_mut().entry(number).or_default().taken_over += 1;
    }
    taken
}

/// Fetches messages until all are gone.
async fn work(server: &Postgres, gateway: &PostgresBuffer, seed: u64, deliveries: &Deliveries) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut left: Vec<usize> = (0..MESSAGES).collect();
    while !left.is_empty() {
        let at = rng.random_range(0..left.len());
        let number = left[at];
        let claimed = match claim(gateway, number, deliveries).await {
            Claim::Absent => {
                left.swap_remove(at);
                continue;
            }
            Claim::InDelivery => {
                delay(&mut rng).await;
                continue;
            }
            Claim::Claimed(claimed) => claimed,
        };
        let count = |change: fn(&mut Outcomes)| change(deliveries.borrow_mut().entry(number).or_default());
        deliveries.borrow_mut().entry(number).or_default().etag = Some(claimed.view.version.clone());
        if rng.random_ratio(1, 4) {
            freeze(server, number);
        }
        delay(&mut rng).await;
        let mut holds = true;
        for _ in 0..rng.random_range(0..3) {
            // a part of it is sent
            holds &= gateway.renew(claimed.id.clone(), false).await.expect("a database").is_some();
            delay(&mut rng).await;
        }
        if !is_small(number) && rng.random_ratio(1, 5) {
            // the gateway is gone, or the worker's connection without a word: somebody takes the message over
            continue;
        }
        // what is held back is sent only if this succeeds
        let confirmed = gateway.renew(claimed.id.clone(), true).await.expect("a database").is_some();
        assert!(holds || !confirmed, "{number}: a claim that is over begins again");
        if !confirmed {
            count(|outcomes| outcomes.broken_off += 1);
            continue;
        }
        delay(&mut rng).await;
        count(|outcomes| outcomes.complete += 1);
        delay(&mut rng).await;
        if gateway.deliver(claimed.id).await.expect("a database") {
            count(|outcomes| outcomes.removed += 1);
        }
    }
}

#[actix::test]
async fn whatever_gateways_freeze_and_overtake_one_another_each_message_is_completed_and_removed_once() {
    let seed = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("repeat with TEST_SEED={seed}");
    let server = Postgres::start();
    let gateways: Vec<_> = (0..GATEWAYS).map(|_| database_at(&server.url(), 0, CAPACITY, DAY)).collect();
    for number in 0..MESSAGES {
        gateways[0].put(uuid(number).as_str().into(), message(body(number)), None).await.expect("stored");
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
    let [taken_over, broken_off] =
        [|outcomes: &Outcomes| outcomes.taken_over, |outcomes: &Outcomes| outcomes.broken_off]
            .map(|of: fn(&Outcomes) -> usize| deliveries.values().map(of).sum::<usize>());
    println!("{taken_over} taken over, {broken_off} broken off");
    assert!(taken_over > 0 && broken_off > 0);
}
