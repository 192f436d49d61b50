//! `GET /status` and `GET /events` on the API server: the data of the status page.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Connection, Host, Response, SOON, Server, Setup, add_buffer_msg, eventually, for_each_host, holds, post_user_msg,
    request,
};

for_each_host!(
    the_status_has_everything_that_is_held_and_its_age,
    a_delivery_in_progress_shows_what_has_been_sent_until_it_ends,
    a_stream_has_an_event_for_each_change_and_one_a_second,
);

const JSON: [(&str, &str); 1] = [("Content-Type", "application/json")];

/// A .blend file that does not fit into the buffers of a socket: the kernel may give it 36 MiB.
const LARGE: u64 = 128 << 20;

fn status(server: &Server) -> Value {
    let answer = request(server.api, "GET", &server.api_path("/status"), &[], b"");
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{answer:?}");
    answer.json()
}

fn add(server: &Server, uuid: &str, message: &Value) {
    let answer = add_buffer_msg(server, uuid, message);
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn post(server: &Server, kind: &str) {
    let answer = post_user_msg(server, "worker-1", kind, &json!([1, 2, 3]));
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Leaves a message with a large .blend file.
fn add_large(server: &Server, uuid: &str) {
    server.sparse_blend_file("scene.blend", LARGE);
    let data = json!({ "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "scene.blend" });
    add(server, uuid, &json!({ "TYPE": "RENDER", "DATA": data }));
}

/// Waits until the status is as `is` says.
#[track_caller]
fn status_when(server: &Server, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(what, SOON, || {
        let status = status(server);
        if is(&status) { Ok(status) } else { Err(status) }
    })
}

/// The streams of a status page.
struct Events(Connection);

impl Events {
    fn open(server: &Server) -> Self {
        let mut connection = Connection::open(server.api);
        connection.send_head("GET", &server.api_path("/events"), &[]);
        let head = connection.read_head();
        let header = |name| head.header(name);
        assert_eq!(
            (head.status, header("content-type"), header("cache-control"), header("x-accel-buffering")),
            (200, Some("text/event-stream"), Some("no-store"), Some("no")),
            "{head:?}"
        );
        Self(connection)
    }

    /// The next event; `None` at the end of the stream.
    fn next(&mut self) -> Option<Value> {
        let chunk = self.0.try_read_chunk().expect("a stream that ends properly")?;
        let text = String::from_utf8(chunk).expect("UTF-8");
        let data = text.strip_prefix("event: status\ndata: ").and_then(|data| data.strip_suffix("\n\n"));
        let data = data.unwrap_or_else(|| panic!("no event: {text:?}"));
        Some(serde_json::from_str(data).expect("JSON"))
    }

    #[track_caller]
    fn wait_for(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let event = self.next().unwrap_or_else(|| panic!("the stream ended before {what}"));
            if is(&event) {
                return event;
            }
            assert!(start.elapsed() < SOON, "{what}: {event}");
        }
    }
}

/// The answer to a request for a stream that is refused. The body of one that is not would have no end.
fn refused_stream(server: &Server) -> Response {
    let mut connection = Connection::open(server.api);
    connection.send_head("GET", "/events", &[]);
    let mut answer = connection.read_head();
    assert_eq!(answer.status, 503, "{answer:?}");
    connection.try_read_body(&mut answer).expect("the reason");
    answer
}

fn the_status_has_everything_that_is_held_and_its_age(host: Host) {
    let server = Setup::on(host).start();
    let empty = status(&server);
    assert_eq!(
        (&empty["mode"], &empty["ready"], &empty["broker"], &empty["store"], &empty["problems"]),
        (&json!("embedded"), &json!(true), &json!("none"), &json!("ok"), &json!([])),
        "{empty}"
    );
    assert_eq!(empty["version"], env!("CARGO_PKG_VERSION"));
    assert!(empty["uptime_seconds"].as_f64().is_some_and(|uptime| uptime > 0.0), "{empty}");
    for (part, fields) in [("buffer", &["in_delivery"][..]), ("outbox", &["parked"])] {
        for field in fields.iter().chain(&["messages", "bytes", "oldest_seconds"]) {
            assert_eq!(empty[part][field].as_f64(), Some(0.0), "{part}.{field}: {empty}");
        }
    }
    assert_eq!(empty["deliveries"], json!([]));
    for uuid in ["id-1", "id-2", "id-3"] {
        add(&server, uuid, &json!({ "FRAMES": [1, 2] }));
    }
    post(&server, "FRAME_RENDERED");
    let held = status_when(&server, "both ages", |status| {
        ["buffer", "outbox"].iter().all(|part| status[part]["oldest_seconds"].as_f64() > Some(0.0))
    });
    assert_eq!((&held["buffer"]["messages"], &held["outbox"]["messages"]), (&json!(3), &json!(1)), "{held}");
    assert!(held["buffer"]["bytes"].as_u64() > Some(3 * 512) && held["outbox"]["bytes"].as_u64() > Some(512), "{held}");
    let fetched = request(server.http, "GET", &server.worker_path("/?bufferUUID=id-1"), &[], b"");
    assert_eq!(fetched.status, 200);
    let after = status_when(&server, "one is delivered", |status| status["buffer"]["messages"] == 2);
    let totals = &after["totals"];
    assert_eq!(
        (&totals["buffered"], &totals["delivered"], &totals["posted"], &totals["sent_bytes"]),
        (&json!(3), &json!(1), &json!(1), &json!(fetched.body.len())),
        "{after}"
    );
}

fn a_delivery_in_progress_shows_what_has_been_sent_until_it_ends(host: Host) {
    let server = Setup::on(host).start();
    add_large(&server, "id-1");
    let mut connection = Connection::open(server.http);
    connection.send_head("GET", &server.worker_path("/?bufferUUID=id-1"), &[]);
    let total = connection.read_head().content_length();
    let mut read = 8 << 20;
    connection.read_exact(read);
    let first = status_when(&server, "a delivery", |status| {
        status["deliveries"][0]["bytes_sent"].as_u64() >= Some(read as u64)
    });
    let delivery = &first["deliveries"][0];
    assert_eq!((&delivery["id"], &delivery["bytes_total"]), (&json!("id-1"), &json!(total)), "{first}");
    assert!(delivery["bytes_sent"].as_u64() < Some(total), "{first}");
    assert!(delivery["client"].as_str().is_some_and(|client| client.starts_with("127.0.0.1:")), "{first}");
    let started = delivery["started"].as_str().expect("a time");
    assert!(started.len() == 24 && started.starts_with("20") && started.ends_with('Z'), "{started}");
    assert_eq!((&first["deliveries_count"], &first["buffer"]["in_delivery"]), (&json!(1), &json!(1)), "{first}");
    read += connection.read_exact(8 << 20).len();
    status_when(&server, "it goes on", |status| status["deliveries"][0]["bytes_sent"].as_u64() >= Some(read as u64));
    drop(connection);
    status_when(&server, "the client has hung up", |status| status["deliveries"] == json!([]));

    // a range is shown with its own length, and ends with its last byte
    let range = [("Range", "bytes=1000-")];
    let mut connection = Connection::open(server.http);
    connection.send_head("GET", &server.worker_path("/?bufferUUID=id-1"), &range);
    let head = connection.read_head();
    assert_eq!((head.status, head.content_length()), (206, total - 1_000));
    let shown = status_when(&server, "a range", |status| status["deliveries_count"] == 1);
    assert_eq!(shown["deliveries"][0]["bytes_total"], total - 1_000, "{shown}");
    connection.read_exact((total - 1_000) as usize);
    let ended = status_when(&server, "its end", |status| status["deliveries"] == json!([]));
    let sent = ended["totals"]["sent_bytes"].as_u64().expect("a number");
    assert!((total - 1_000 + read as u64..2 * total).contains(&sent), "{ended}");
}

#[test]
fn a_download_of_a_blend_file_is_a_delivery_too() {
    let server = Server::start();
    add_large(&server, "id-1");
    let answer = request(server.http, "GET", "/?bufferUUID=id-1", &[("Prefer", "blend-reference")], b"");
    let text = answer.body.escape_ascii().to_string();
    let digest = text.split_once("/blends/").map(|(_, rest)| rest[..64].to_owned()).expect("a reference");
    let mut connection = Connection::open(server.http);
    connection.send_head("GET", &format!("/blends/{digest}"), &[]);
    assert_eq!(connection.read_head().content_length(), LARGE);
    let shown = status_when(&server, "a download", |status| status["deliveries_count"] == 1);
    let delivery = &shown["deliveries"][0];
    assert_eq!(
        (&delivery["id"], &delivery["kind"], &delivery["bytes_total"]),
        (&json!(digest), &json!("blend"), &json!(LARGE)),
        "{shown}"
    );
    connection.read_exact(LARGE as usize);
    status_when(&server, "its end", |status| status["deliveries"] == json!([]));
}

fn a_stream_has_an_event_for_each_change_and_one_a_second(host: Host) {
    let server = Setup::on(host).start();
    let mut events = Events::open(&server);
    let first = events.next().expect("the state at once");
    assert_eq!((&first["buffer"]["messages"], &first["ready"]), (&json!(0), &json!(true)), "{first}");
    // nothing changes but time
    let second = events.next().expect("one a second");
    assert!(second["uptime_seconds"].as_f64() > first["uptime_seconds"].as_f64(), "{first}, {second}");
    for number in 1..=3 {
        add(&server, &format!("id-{number}"), &json!(number));
        events.wait_for("the change", |event| event["buffer"]["messages"] == number);
    }
    // a stream that is opened beside it has the same
    assert_eq!(Events::open(&server).next().expect("the state at once")["buffer"]["messages"], 3);
}

#[test]
fn a_stream_has_at_most_ten_events_a_second() {
    let server = Server::start();
    let mut events = Events::open(&server);
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < Duration::from_secs(2) {
        add(&server, "id-1", &json!(count));
        events.next().expect("an event");
        count += 1;
    }
    let most = 1 + (start.elapsed().as_secs_f64() * 10.0) as u32;
    assert!(count <= most, "{count} events within {:?}", start.elapsed());
}

#[test]
fn streams_are_bounded_and_end_with_their_clients() {
    let server = Server::start();
    let mut open: Vec<_> = (0..64).map(|_| Events::open(&server)).collect();
    let refused = refused_stream(&server);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert!(refused.failure(503).contains("status pages"));
    // what the others need is there
    assert_eq!(request(server.api, "GET", "/readyz", &[], b"").status, 200);
    assert_eq!(request(server.api, "HEAD", "/events", &[], b"").header("content-type"), Some("text/event-stream"));
    open.pop();
    eventually("another page can be opened", SOON, || {
        let mut connection = Connection::open(server.api);
        connection.send_head("GET", "/events", &[]);
        let head = connection.read_head();
        holds(head.status == 200, head)
    });
    for mut events in open {
        assert!(events.next().is_some());
    }
}

#[test]
fn streams_leave_connections_to_the_services_of_the_farm() {
    let server = Server::with(&["--max-connections", "16"]);
    let _open: Vec<_> = (0..4).map(|_| Events::open(&server)).collect();
    refused_stream(&server).failure(503);
    assert_eq!(request(server.api, "GET", "/readyz", &[], b"").status, 200);
}

#[test]
fn a_stop_ends_the_streams_at_once() {
    let mut server = Server::start();
    let mut events = Events::open(&server);
    events.next().expect("the state at once");
    server.terminate();
    let last = events.wait_for("the stop", |event| event["stopping"] == true);
    assert_eq!(last["ready"], false, "{last}");
    assert!(last["problems"][0]["text"].as_str().is_some_and(|text| text.contains("stopping")), "{last}");
    assert_eq!(events.next(), None);
    assert!(server.wait_for_exit(SOON).success());
}

#[test]
fn a_broker_that_is_away_is_reported_with_what_waits_and_what_to_do() {
    let server = Server::with(&["--amqp-url", "amqp://guest:guest@127.0.0.1:1/%2f"]);
    for _ in 0..2 {
        post(&server, "FRAME_RENDERED");
    }
    server.wait_for_log("no connection to the broker");
    let status = status_when(&server, "an event", |status| {
        let events = status["events"].as_array().expect("a list");
        events.iter().any(|event| event["text"].as_str().is_some_and(|text| text.contains("no connection to the")))
    });
    assert_eq!(
        (&status["mode"], &status["broker"], &status["ready"]),
        (&json!("broker"), &json!("disconnected"), &json!(true)),
        "{status}"
    );
    let problem = &status["problems"][0];
    let text = problem["text"].as_str().expect("a text");
    assert!(text.starts_with("The broker has been away for ") && text.contains("; 2 messages ("), "{text}");
    assert!(text.ends_with(") wait here and will be sent when it is back."), "{text}");
    assert_eq!(problem["command"], "user-http-server doctor");
    for event in status["events"].as_array().expect("a list") {
        assert!(["info", "warn", "error"].contains(&event["level"].as_str().expect("a level")), "{event}");
        assert!(event["time"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')), "{event}");
    }
}

#[test]
fn an_event_that_a_worker_causes_a_thousand_times_leaves_the_others() {
    let server = Server::start();
    let mut connection = Connection::open(server.http);
    for _ in 0..500 {
        let message = json!({ "USER_ID": "<b>", "MAIN_DATA": { "TYPE": "TEST", "DATA": 1 } }).to_string();
        assert_eq!(connection.request("POST", "/", &JSON, message.as_bytes()).status, 200);
    }
    let status = status(&server);
    let texts: Vec<_> = status["events"].as_array().expect("a list").iter().map(|event| &event["text"]).collect();
    let has = |part: &str| texts.iter().any(|text| text.as_str().is_some_and(|text| text.contains(part)));
    assert!(has("API server listening") && has("TEST from \"<b>\""), "{texts:?}");
    assert!(texts.len() <= 100, "{texts:?}");
}

#[test]
fn both_need_a_token_where_the_other_routes_do() {
    let setup = Setup::default();
    let tokens = setup.path("tokens");
    std::fs::write(&tokens, "a-token-of-an-operator\n").expect("a token file");
    let server = setup.args(["--api-token-file", tokens.to_str().expect("UTF-8")]).start();
    for path in ["/status", "/events"] {
        request(server.api, "GET", path, &[], b"").failure(401);
        let token = [("Authorization", "Bearer a-token-of-an-operator")];
        assert_eq!(request(server.api, "HEAD", path, &token, b"").status, 200, "{path}");
    }
    for path in ["/status", "/events"] {
        assert_eq!(request(server.http, "GET", path, &[], b"").status, 404, "workers see nothing");
    }
}
