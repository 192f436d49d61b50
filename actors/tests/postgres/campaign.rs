//! The database is killed again and again while gateways work: a history of what was seen from outside is checked for
//! messages that were lost, and for ones that were delivered twice.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use user_http_actors::Error;
use user_http_actors::lease::LeasedBufferMsg;

use super::harness::{
    CAPACITY, DAY, Gateway, NOW, assert_books_balance, deliver, eventually, long_body, message, read,
};
use crate::postgres::server::Postgres;

const GATEWAYS: usize = 3;
const SENDERS: usize = 3;
const WORKERS: usize = 6;
/// How often the database is killed, and how much work is done before and between.
const KILLS: usize = 4;
const STORED_BETWEEN: usize = 60;

/// What is known of each message, by its number.
#[derive(Default)]
struct History {
    messages: RefCell<BTreeMap<usize, Seen>>,
    next: Cell<usize>,
    acknowledged: Cell<usize>,
    refused: Cell<usize>,
    has_ended: Cell<bool>,
}

#[derive(Clone, Default, Debug)]
struct Seen {
    acknowledged: bool,
    /// The ETag that a worker has got.
    etag: Option<String>,
    /// Deliveries whose last byte was sent.
    complete: usize,
}

impl History {
    fn of(&self, number: usize, change: impl FnOnce(&mut Seen)) {
        change(self.messages.borrow_mut().entry(number).or_default());
    }

    fn missing(&self) -> Vec<usize> {
        let messages = self.messages.borrow();
        let missing = messages.iter().filter(|(_, seen)| seen.acknowledged && seen.complete == 0);
        missing.map(|(number, _)| *number).collect()
    }
}

fn uuid(number: usize) -> String {
    format!("message {number}")
}

/// Some are in their rows, others in chunks.
fn body(number: usize) -> Vec<u8> {
    let mut body = long_body(if number.is_multiple_of(7) { 150_000 } else { 300 });
    body.extend(number.to_le_bytes());
    body
}

/// Leaves messages, each under a UUID of its own, and none twice: whether one that was refused is stored is unknown.
async fn send(gateway: &Gateway, history: &History) {
    while !history.has_ended.get() {
        let number = history.next.replace(history.next.get() + 1);
        history.of(number, |_| {});
        if gateway.put(&uuid(number), message(body(number)), None).await.is_ok() {
            history.of(number, |seen| seen.acknowledged = true);
            history.acknowledged.set(history.acknowledged.get() + 1);
        } else {
            history.refused.set(history.refused.get() + 1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Fetches messages at random, goes on with what was begun at another gateway, and hangs up at times.
async fn fetch(gateway: &Gateway, history: &History, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !history.has_ended.get() || !history.missing().is_empty() {
        let some = {
            let messages = history.messages.borrow();
            let left = messages.iter().filter(|(_, seen)| seen.complete == 0).map(|(number, _)| *number);
            let left: Vec<usize> = left.collect();
            (!left.is_empty()).then(|| left[rng.random_range(0..left.len())])
        };
        // also one that another worker has at this moment, or that was delivered already
        let number = match some {
            Some(number) if rng.random_ratio(9, 10) => number,
            _ => rng.random_range(0..=history.next.get()),
        };
        let etag = history.messages.borrow().get(&number).and_then(|seen| seen.etag.clone());
        match gateway.resume(&uuid(number), etag, NOW).await {
            Ok(LeasedBufferMsg { view, lease }) => {
                history.of(number, |seen| seen.etag = Some(view.version.clone()));
                match rng.random_range(0..4) {
                    0 => continue,
                    // slowly: meanwhile another gateway may take it over
                    1 => tokio::time::sleep(Duration::from_millis(rng.random_range(0..50))).await,
                    _ => {}
                }
                let is_short = view.payload.is_in_memory();
                if is_short {
                    assert_eq!(read(&view).await, body(number));
                }
                // what is held back is sent only then
                let term = lease.term().expect("a lease in a shared database");
                if term.confirm().await && term.holds() {
                    history.of(number, |seen| seen.complete += 1);
                    deliver(lease, &view);
                }
            }
            Err(Error::InDelivery | Error::NoBufferMsg) => tokio::time::sleep(Duration::from_millis(2)).await,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Kills the database again and again, under load each time.
async fn kill(server: &mut Postgres, history: &History) {
    for _ in 0..KILLS {
        let before = history.acknowledged.get();
        eventually("messages are stored", async || {
            (history.acknowledged.get() >= before + STORED_BETWEEN).then_some(())
        })
        .await;
        let refused = history.refused.get();
        server.kill();
        eventually("it is missed", async || (history.refused.get() > refused).then_some(())).await;
        server.launch();
    }
    let before = history.acknowledged.get();
    eventually("messages are stored again", async || {
        (history.acknowledged.get() >= before + STORED_BETWEEN).then_some(())
    })
    .await;
    history.has_ended.set(true);
}

#[actix::test]
async fn however_often_the_database_is_killed_each_acknowledged_message_is_delivered_once() {
    let seed = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("repeat with TEST_SEED={seed}");
    let mut server = Postgres::start();
    let url = server.url();
    let gateways = [(); GATEWAYS].map(|()| Gateway::with(&url, CAPACITY, DAY));
    let history = History::default();
    let senders = (0..SENDERS).map(|number| send(&gateways[number % GATEWAYS], &history));
    let workers = (0..WORKERS)
        .map(|number| fetch(&gateways[number % GATEWAYS], &history, u64::wrapping_add(seed, number as u64)));
    let (senders, workers) = (futures::future::join_all(senders), futures::future::join_all(workers));
    let everybody_has_ended = async { futures::join!(senders, workers) };
    futures::join!(kill(&mut server, &history), everybody_has_ended);
    let messages = history.messages.take();
    let [acknowledged, complete] = [|seen: &Seen| seen.acknowledged, |seen: &Seen| seen.complete > 0]
        .map(|is: fn(&Seen) -> bool| messages.values().filter(|seen| is(seen)).count());
    println!("{} messages, {acknowledged} acknowledged, {complete} delivered", messages.len());
    for (number, seen) in &messages {
        let right = if seen.acknowledged { seen.complete == 1 } else { seen.complete <= 1 };
        assert!(right, "message {number}: {seen:?}");
    }
    // what is left is what nobody has acknowledged, and the books balance
    eventually("what was delivered is removed", async || {
        let left = server.ask("SELECT convert_from(uuid, 'UTF8') FROM user_http_server.messages");
        let delivered = left.lines().filter(|line| {
            let number: usize = line.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number");
            messages[&number].complete > 0
        });
        (delivered.count() == 0).then_some(())
    })
    .await;
    assert_books_balance(&server);
    let orphans = "SELECT count(*) FROM user_http_server.chunks
                   WHERE message NOT IN (SELECT id FROM user_http_server.messages)";
    eventually("chunks without a message are removed", async || (server.ask(orphans) == "0").then_some(())).await;
}
