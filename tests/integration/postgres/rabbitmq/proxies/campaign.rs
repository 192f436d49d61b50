//! One of nine parts is killed every few seconds, while services and workers use the gateways behind a proxy: what they
//! have seen is recorded and checked.
//!
//! `TEST_CLUSTER_SECONDS` says how long, `TEST_SEED` in which order the parts are killed.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::nine::Nine;
use crate::harness::{Connection, Peer, Response, frame_number, order_in_json, try_send_frame};
use crate::history::{Answer, Fetched, Operation, Time, What, check};
use crate::kill::{Seed, from_environment};

const SECONDS: u64 = 60;

/// Each leaves messages and fetches them.
const FETCHING: usize = 4;
/// Each posts frames.
const POSTING: usize = 2;

/// The lengths of messages: in its row, in a chunk, and far more than can be on the way to a worker that hangs up.
const SHORT: usize = 300;
const LONG: usize = 300_000;
const LONGEST: usize = 12 << 20;
/// Every so many messages is long, or longest. A worker hangs up at each of the latter.
const LONG_EVERY: usize = 20;
const LONGEST_EVERY: usize = 150;
/// A worker that hangs up has read so much.
const READ_BEFORE_HANG_UP: usize = 64 << 10;
/// Every so many messages are asked for again at once.
const ASKED_AGAIN_EVERY: usize = 4;

/// The pause after a refusal, and before a message that is in delivery is asked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two frames of a worker.
const PACE: Duration = Duration::from_millis(5);
/// Until a message is accepted, while parts are killed.
const ACCEPTED: Duration = Duration::from_secs(120);
/// Until every message is received or absent: the lease of a killed gateway lasts 30 s.
const ALL_FETCHED: Duration = Duration::from_secs(120);
/// How long no frame has come when all have.
const SILENCE_SECONDS: u64 = 20;

/// The addresses of a cluster, and what was seen of it.
struct Record {
    workers: SocketAddr,
    services: SocketAddr,
    seen: Mutex<Vec<Operation>>,
    next_frame: AtomicUsize,
    is_ending: AtomicBool,
}

fn now() -> Time {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970")
}

impl Record {
    /// Records what was done, and with which outcome.
    fn add<T>(&self, act: impl FnOnce() -> (T, What)) -> T {
        let began = now();
        let (outcome, what) = act();
        let operation = Operation { began, ended: now(), what };
        self.seen.lock().expect("nobody has panicked").push(operation);
        outcome
    }

    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::SeqCst)
    }
}

/// A client with a connection that it opens anew when the old one has ended.
struct Client {
    to: SocketAddr,
    connection: Option<Connection>,
}

impl Client {
    fn new(to: SocketAddr) -> Self {
        Self { to, connection: None }
    }

    fn ask<T>(&mut self, ask: impl FnOnce(&mut Connection) -> io::Result<T>) -> io::Result<T> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::try_open(self.to)?,
        };
        let answer = ask(&mut connection)?;
        self.connection = Some(connection);
        Ok(answer)
    }
}

/// Where the order of a worker stands.
struct Order {
    uuid: String,
    length: usize,
    /// A worker hangs up at the next transfer.
    hangs_up: bool,
    not_before: Instant,
}

fn text(uuid: &str, length: usize) -> String {
    format!("{uuid} {} {uuid}", "0123456789abcdef".repeat(length / 16))
}

fn holds_text(body: &[u8], text: &str) -> bool {
    let text = text.as_bytes();
    let room = body.len().saturating_sub(text.len());
    (0..=room.min(64)).any(|at| body[at..].starts_with(text))
}

/// A service that leaves messages, each until it is accepted, and a worker that fetches them.
fn leave_and_fetch(record: &Record, number: usize) {
    let (mut service, mut worker) = (Client::new(record.services), Client::new(record.workers));
    let (mut waiting, mut received) = (VecDeque::<Order>::new(), Vec::new());
    for count in 1_usize.. {
        if record.is_ending() {
            break;
        }
        let length = if count.is_multiple_of(LONGEST_EVERY) {
            LONGEST
        } else if count.is_multiple_of(LONG_EVERY) {
            LONG
        } else {
            SHORT
        };
        let uuid = format!("{number}-{count}");
        let deadline = Instant::now() + ACCEPTED;
        while leave(record, &mut service, &uuid, length) == Answer::Unknown {
            assert!(Instant::now() < deadline, "{uuid} is not accepted");
            thread::sleep(PAUSE);
        }
        waiting.push_back(Order { uuid, length, hangs_up: length == LONGEST, not_before: Instant::now() });
        let due = waiting.iter().take_while(|order| order.not_before <= Instant::now()).count();
        for order in waiting.drain(..due).collect::<Vec<_>>() {
            pursue(record, &mut worker, order, &mut waiting, &mut received);
        }
        if count.is_multiple_of(ASKED_AGAIN_EVERY)
            && let Some(uuid) = received.last()
        {
            fetch(record, &mut worker, uuid, 0, false);
        }
    }
    let deadline = Instant::now() + ALL_FETCHED;
    while let Some(order) = waiting.pop_front() {
        assert!(Instant::now() < deadline, "{} is neither delivered nor absent", order.uuid);
        thread::sleep(order.not_before.saturating_duration_since(Instant::now()));
        pursue(record, &mut worker, order, &mut waiting, &mut received);
    }
    for uuid in &received {
        while fetch(record, &mut worker, uuid, 0, false) == Fetched::NotNow {
            assert!(Instant::now() < deadline, "{uuid} is neither delivered nor absent");
            thread::sleep(PAUSE);
        }
    }
}

/// Fetches the message of an order, which waits on if it was not received.
fn pursue(
    record: &Record,
    worker: &mut Client,
    mut order: Order,
    waiting: &mut VecDeque<Order>,
    received: &mut Vec<String>,
) {
    match fetch(record, worker, &order.uuid, order.length, order.hangs_up) {
        Fetched::Whole { .. } | Fetched::Absent => received.push(order.uuid),
        outcome => {
            order.hangs_up &= outcome == Fetched::NotNow;
            order.not_before = Instant::now() + PAUSE;
            waiting.push_back(order);
        }
    }
}

fn leave(record: &Record, service: &mut Client, uuid: &str, length: usize) -> Answer {
    let body = order_in_json(uuid, &text(uuid, length).into());
    record.add(|| {
        let path = "/CommunicationInterface/AddBufferMsg";
        let answer = service.ask(|connection| {
            connection.try_send_request("POST", path, &[("Content-Type", "application/json")], body.as_bytes())?;
            connection.try_read_response()
        });
        let answer = answer_of(answer);
        (answer, What::Add(uuid.to_owned(), answer))
    })
}

fn answer_of(answer: io::Result<Response>) -> Answer {
    match answer {
        Ok(answer) if answer.status == 200 => Answer::Accepted,
        // the gateway's, or the proxy's, whose gateway is gone or does not answer
        Ok(answer) if [502, 503, 504].contains(&answer.status) => Answer::Unknown,
        Ok(answer) => panic!("{answer:?}"),
        Err(_) => Answer::Unknown,
    }
}

/// Fetches a message, whose text has this length if there is one.
fn fetch(record: &Record, worker: &mut Client, uuid: &str, length: usize, hangs_up: bool) -> Fetched {
    record.add(|| {
        let outcome = worker.ask(|connection| {
            connection.try_send_request("GET", &format!("/?bufferUUID={uuid}"), &[], b"")?;
            let mut head = connection.try_read_head()?;
            if head.status != 200 {
                connection.try_read_body(&mut head)?;
                return Ok(not_received(&head));
            }
            let expected = head.content_length();
            if hangs_up {
                let read = connection.try_read_exact(READ_BEFORE_HANG_UP)?.len() as u64;
                return Ok(Fetched::Broken { missing: expected - read, hung_up: true });
            }
            let gateway = head.header("x-gateway").expect("the proxy names the gateway").to_owned();
            Ok(match connection.try_read_body(&mut head) {
                Err(_) => Fetched::Broken { missing: expected, hung_up: false },
                Ok(()) => {
                    assert!(length == 0 || holds_text(&head.body, &text(uuid, length)), "{uuid} has other bytes");
                    Fetched::Whole { gateway }
                }
            })
        });
        let outcome = outcome.unwrap_or(Fetched::NotNow);
        if matches!(outcome, Fetched::Broken { .. }) {
            worker.connection = None;
        }
        (outcome.clone(), What::Fetch(uuid.to_owned(), outcome))
    })
}

fn not_received(answer: &Response) -> Fetched {
    let says = |what: &str| answer.body.windows(what.len()).any(|part| part == what.as_bytes());
    match answer.status {
        400 if says("No Buffer Message") => Fetched::Absent,
        400 if says("Buffer Message In Delivery") => Fetched::NotNow,
        502..=504 => Fetched::NotNow,
        _ => panic!("{answer:?}"),
    }
}

/// A worker that posts frames, each number once.
fn post_frames(record: &Record) {
    let mut worker = Client::new(record.workers);
    while !record.is_ending() {
        let number = record.next_frame.fetch_add(1, Ordering::SeqCst);
        let image = if number.is_multiple_of(64) { 150_000 } else { 100 };
        let answer = record.add(|| {
            let answer = answer_of(worker.ask(|connection| try_send_frame(connection, number, image, None)));
            (answer, What::Post(number, answer))
        });
        thread::sleep(if answer == Answer::Accepted { PACE } else { PAUSE });
    }
}

/// The user manager receives until every accepted frame has come, or none comes any more.
fn receive_frames(record: &Record, peer: &mut Peer, url: &str) {
    let accepted = |operation: &Operation| match operation.what {
        What::Post(number, Answer::Accepted) => Some(number),
        _ => None,
    };
    let mut missing: BTreeSet<usize> =
        record.seen.lock().expect("nobody has panicked").iter().filter_map(accepted).collect();
    peer.call("user_manager_start", json!({ "url": url, "quorum": true }));
    while !missing.is_empty() {
        let began = now();
        let message = peer.call("user_manager_next", json!({ "url": url, "seconds": SILENCE_SECONDS }));
        if message.is_null() {
            break;
        }
        let number = frame_number(&message);
        let id = message["message_id"].as_str().expect("an id").to_owned();
        missing.remove(&number);
        record.seen.lock().expect("nobody has panicked").push(Operation {
            began,
            ended: now(),
            what: What::Arrival(number, id),
        });
    }
    peer.call("user_manager_stop", json!({ "url": url }));
}

#[test]
fn whichever_of_nine_parts_is_killed_nothing_accepted_is_lost_or_received_twice() {
    let seconds = from_environment("TEST_CLUSTER_SECONDS").unwrap_or(SECONDS);
    let seed = Seed::get();
    let nine = Nine::start();
    let mut peer = Peer::get();
    let url = nine.url("rabbit1");
    // the user manager's queue exists from now on
    peer.call("user_manager_start", json!({ "url": url, "quorum": true }));
    peer.call("user_manager_stop", json!({ "url": url }));
    let record = Record {
        workers: nine.address("workers"),
        services: nine.address("services"),
        seen: Mutex::default(),
        next_frame: AtomicUsize::new(0),
        is_ending: AtomicBool::new(false),
    };
    let deaths = thread::scope(|scope| {
        let record = &record;
        for number in 0..FETCHING {
            scope.spawn(move || leave_and_fetch(record, number));
        }
        for _ in 0..POSTING {
            scope.spawn(move || post_frames(record));
        }
        // whatever happens here, the others end
        let ending = Ending(&record.is_ending);
        let deaths = nine.kill_one_by_one(seconds, seed.0 % 32_768);
        drop(ending);
        deaths
    });
    receive_frames(&record, &mut peer, &url);
    let mut history = record.seen.into_inner().expect("nobody has panicked");
    history.extend(deaths);
    let verdict = check(&history);
    println!("{:#?}", verdict.counts);
    assert!(verdict.is_good(), "{verdict:#?}");
    let counts = &verdict.counts;
    let kinds: BTreeSet<_> = counts.deaths.keys().map(|part| part.trim_end_matches(char::is_numeric)).collect();
    assert!(counts.deliveries > 0 && counts.arrivals > 0 && !kinds.is_empty(), "{counts:?}");
    nine.stop();
}

/// Tells the clients to end when it is dropped.
struct Ending<'r>(&'r AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
