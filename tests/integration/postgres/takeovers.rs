//! A gateway is lost in the middle of a download, or its worker goes to another one: the download goes on there.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::gateways::{HELD_BACK, eventually_absent, gateway_on, get, large};
use crate::harness::{Connection, Response, SOON, Server, Setup, add_buffer_msg, eventually, holds, request};
use crate::postgres::Postgres;

/// Longer than a lease lasts.
const LEASE_IS_OVER: Duration = Duration::from_secs(60);

/// The length of the message in MiB.
fn mebibytes() -> usize {
    std::env::var("TEST_TAKEOVER_MIB").map_or(64, |count| count.parse().expect("a number"))
}

/// A worker that has begun to fetch a message.
struct Worker {
    connection: Connection,
    head: Response,
    received: Vec<u8>,
}

impl Worker {
    fn begin(at: &Server, uuid: &str, len: usize) -> Self {
        let mut connection = Connection::open(at.http);
        connection.send_head("GET", &format!("/?bufferUUID={uuid}"), &[]);
        let head = connection.read_head();
        assert_eq!(head.status, 200, "{head:?}");
        let received = connection.read_exact(len);
        Self { connection, head, received }
    }

    /// Asks another gateway for the rest.
    fn rest(&self, at: &Server, uuid: &str) -> Response {
        let range = format!("bytes={}-", self.received.len());
        get(at, uuid, &[("Range", &range), ("If-Range", self.head.header("etag").expect("an ETag"))])
    }

    /// How many bytes come before the connection ends.
    fn total_until_the_end(&mut self) -> usize {
        let (mut rest, mut total) = (vec![0; 1 << 20], self.received.len());
        loop {
            match self.connection.read(&mut rest) {
                0 => return total,
                read => total += read,
            }
        }
    }
}

/// The message in the database, whose claim has not ended.
fn is_claimed(database: &Postgres) -> bool {
    database.ask("SELECT lease_until > clock_timestamp() FROM user_http_server.messages") == "t"
}

#[test]
fn a_gateway_is_killed_in_a_download_and_the_worker_goes_on_at_another_at_once() {
    let database = Postgres::start();
    let start = || {
        let args = ["--buffer-store", &database.url(), "--max-body", "2GiB", "--max-buffered", "4GiB"];
        Setup::default().args(args).start()
    };
    let (mut one, other) = (start(), start());
    let text = "0123456789abcdef".repeat(mebibytes() << 16);
    assert_eq!(add_buffer_msg(&one, "a", &json!(text)).status, 200);
    let mut worker = Worker::begin(&one, "a", text.len() / 2);
    one.kill9();
    assert!(is_claimed(&database), "the lease of the killed gateway is over");
    let rest = worker.rest(&other, "a");
    assert_eq!(rest.status, 206, "{:?}", rest.headers);
    worker.received.extend(&rest.body);
    assert_eq!(worker.received.len() as u64, worker.head.content_length(), "nothing is sent again");
    let at = worker.received.windows(16).position(|part| part == &text.as_bytes()[..16]).expect("the text");
    assert!(worker.received[at..at + text.len()] == *text.as_bytes(), "the bytes differ");
    eventually_absent(&other, "a");
}

#[test]
fn a_worker_without_its_etag_gets_the_message_when_the_lease_of_the_killed_gateway_is_over() {
    let database = Postgres::start();
    let (mut one, other) = (gateway_on(&database), gateway_on(&database));
    assert_eq!(add_buffer_msg(&one, "a", &large()).status, 200);
    let worker = Worker::begin(&one, "a", 5_000_000);
    one.kill9();
    let waiting = get(&other, "a", &[("Range", "bytes=5000000-")]);
    assert_eq!((waiting.status, waiting.header("retry-after")), (400, Some("1")), "{waiting:?}");
    let answer = eventually("the lease is over", LEASE_IS_OVER, || {
        let answer = get(&other, "a", &[]);
        if answer.status == 200 { Ok(answer) } else { Err(answer) }
    });
    assert_eq!(answer.body.len() as u64, worker.head.content_length());
    assert!(answer.body.starts_with(&worker.received), "the bytes differ");
    eventually_absent(&other, "a");
}

#[test]
fn a_worker_that_goes_to_another_gateway_gets_the_rest_there_and_its_first_download_breaks_off() {
    let database = Postgres::start();
    let (one, other) = (gateway_on(&database), gateway_on(&database));
    assert_eq!(add_buffer_msg(&one, "a", &large()).status, 200);
    let mut worker = Worker::begin(&one, "a", 1_000_000);
    let refused = worker.rest(&one, "a");
    assert_eq!((refused.status, refused.header("retry-after")), (400, Some("1")), "it is in delivery there");
    let rest = worker.rest(&other, "a");
    assert_eq!(rest.status, 206, "{:?}", rest.headers);
    let len = worker.head.content_length() as usize;
    assert_eq!(worker.received.len() + rest.body.len(), len);
    eventually_absent(&other, "a");
    let total = worker.total_until_the_end();
    assert!(total <= len - HELD_BACK, "{total} of {len} bytes have arrived");
    one.wait_for_log("delivery broken off");
    eventually_absent(&one, "a");
}

#[test]
fn a_message_with_its_blend_file_has_the_same_etag_at_every_gateway_and_its_download_goes_on_at_another() {
    let database = Postgres::start();
    let mut one = gateway_on(&database);
    let root = one.setup().blend_root();
    let scene: Vec<u8> = (0..40_000_000_u32).map(|at| (at * 31 % 253) as u8).collect();
    fs::write(root.join("scene.blend"), &scene).expect("a file");
    let args = ["--buffer-store", &database.url(), "--blend-root", root.to_str().expect("UTF-8")];
    let other = Setup::default().args(args).start();
    let path = root.join("scene.blend");
    let order = json!({ "DATA": { "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": path } });
    assert_eq!(add_buffer_msg(&one, "a", &order).status, 200);
    let [seen, there] = [&one, &other].map(|gateway| request(gateway.http, "HEAD", "/?bufferUUID=a", &[], b""));
    assert!(seen.header("etag").is_some() && seen.header("etag") == there.header("etag"), "{seen:?} {there:?}");
    let mut worker = Worker::begin(&one, "a", 20_000_000);
    one.kill9();
    let rest = worker.rest(&other, "a");
    assert_eq!((rest.status, rest.header("etag")), (206, seen.header("etag")), "{:?}", rest.headers);
    worker.received.extend(&rest.body);
    assert_eq!(worker.received.len() as u64, seen.content_length());
    let at = worker.received.windows(64).position(|part| part == &scene[..64]).expect("the file");
    assert!(worker.received[at..at + scene.len()] == *scene, "the bytes differ");
    eventually("it is gone", SOON, || {
        let answer = get(&other, "a", &[]);
        holds(answer.status == 400, answer)
    });

    // another file in its place has another ETag
    assert_eq!(add_buffer_msg(&other, "a", &order).status, 200);
    let before = request(other.http, "HEAD", "/?bufferUUID=a", &[], b"");
    fs::rename(&path, root.join("scene.blend1")).expect("a file");
    fs::write(&path, &scene).expect("a file");
    let after = request(other.http, "HEAD", "/?bufferUUID=a", &[], b"");
    assert!(before.header("etag") != after.header("etag"), "{before:?} {after:?}");
}
