//! Two gateways on one database act as one.

use serde_json::json;

use crate::harness::{
    Ca, Connection, Response, SOON, Server, Setup, add_buffer_msg, eventually, holds, post_user_msg, request,
};
use crate::postgres::Postgres;

/// What the book says to set up.
const ROLE: &str = "
CREATE ROLE gateway LOGIN PASSWORD 'secret';
CREATE DATABASE gateway OWNER gateway;
GRANT pg_monitor TO gateway;
";

/// The settings of each gateway.
const SETTINGS: &str = r#"
buffer-store = "postgres://gateway:secret@localhost:5432/gateway"
"#;

/// The last bytes of a message are held back while the lease is not confirmed.
pub const HELD_BACK: usize = 64 << 10;

pub fn gateway_on(database: &Postgres) -> Server {
    Setup::default().args(["--buffer-store", &database.url()]).start()
}

pub fn get(from: &Server, uuid: &str, headers: &[(&str, &str)]) -> Response {
    request(from.http, "GET", &from.worker_path(&format!("/?bufferUUID={uuid}")), headers, b"")
}

#[track_caller]
pub fn eventually_absent(from: &Server, uuid: &str) {
    eventually("the message is gone", SOON, || {
        let answer = get(from, uuid, &[]);
        let is_absent = answer.status == 400 && answer.body.windows(17).any(|part| part == b"No Buffer Message");
        holds(is_absent, answer)
    });
}

/// More than sockets hold.
pub fn large() -> serde_json::Value {
    json!("0123456789abcdef".repeat(2 << 20))
}

#[test]
fn a_message_left_at_one_gateway_has_the_same_etag_at_both_and_is_fetched_once_at_the_other() {
    let database = Postgres::start();
    let (one, other) = (gateway_on(&database), gateway_on(&database));
    for (uuid, message) in [("small", json!({ "FRAMES": [1, 2] })), ("large", json!("x".repeat(3_000_000)))] {
        let stored = add_buffer_msg(&one, uuid, &message);
        assert_eq!((stored.status, stored.json()), (200, json!({ "STATUS": "SUCCESS" })));
        let path = format!("/?bufferUUID={uuid}");
        let [seen, there] = [&one, &other].map(|gateway| request(gateway.http, "HEAD", &path, &[], b""));
        for header in ["etag", "repr-digest", "content-length"] {
            assert!(seen.header(header).is_some() && seen.header(header) == there.header(header), "{seen:?} {there:?}");
        }
        let fetched = get(&other, uuid, &[]);
        assert_eq!((fetched.status, fetched.header("etag")), (200, seen.header("etag")), "{:?}", fetched.headers);
        // the worker's next request comes before the removal is committed
        let again = get(&other, uuid, &[]);
        assert!(again.body.windows(17).any(|part| part == b"No Buffer Message"), "{again:?}");
        eventually_absent(&one, uuid);
    }
}

#[test]
fn a_role_that_owns_its_database_is_enough_and_its_password_is_shown_nowhere() {
    let database = Postgres::start();
    ROLE.trim().lines().for_each(|command| drop(database.ask(command)));
    let settings = SETTINGS.replace("5432", &database.port.to_string());
    let gateway = Setup::default().config(&settings).start();
    assert_eq!(add_buffer_msg(&gateway, "a", &json!(1)).status, 200);
    let checked = gateway.setup().command().arg("check").output().expect("the program");
    let shown = String::from_utf8(checked.stdout).expect("UTF-8");
    assert!(shown.contains("postgres://gateway:***@localhost:") && checked.status.success(), "{shown}");
    assert!(!shown.contains("secret") && !gateway.log().contains("secret"), "{shown}");
}

#[test]
fn a_database_is_reached_over_tls_if_a_trusted_ca_has_issued_its_certificate() {
    let ca = Ca::new();
    let [certificate, key] = ca.issue_files("database");
    let mut database = Postgres::prepare();
    database.launch_with_tls(&certificate, &key);
    let trusting = ca.path();
    let start = |ca: &str, query: &str| {
        let url = format!("{}{query}", database.url());
        Setup::default().env("SSL_CERT_FILE", ca).args(["--buffer-store", &url]).launch()
    };
    let gateway = start(trusting.to_str().expect("UTF-8"), "?sslmode=require");
    gateway.wait_for_log("the database takes messages");
    assert_eq!(
        database.ask(
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                             WHERE application_name = 'user-http-server'"
        ),
        "t"
    );
    let other = Ca::new();
    let distrusting = start(other.path().to_str().expect("UTF-8"), "?sslmode=require");
    distrusting.wait_for_log("invalid peer certificate");
    let plain = start(trusting.to_str().expect("UTF-8"), "");
    plain.wait_for_log("no encryption");
}

#[test]
fn a_frozen_gateway_that_wakes_up_does_not_complete_a_delivery_that_another_has_made() {
    let database = Postgres::start();
    let (one, other) = (gateway_on(&database), gateway_on(&database));
    assert_eq!(add_buffer_msg(&one, "a", &large()).status, 200);
    let mut worker = Connection::open(one.http);
    worker.send_head("GET", "/?bufferUUID=a", &[]);
    let len = worker.read_head().content_length() as usize;
    let received = worker.read_exact(1_000_000).len();
    eventually("its claim is no longer fresh", SOON, || {
        let old = "SELECT lease_until < clock_timestamp() + interval '28 s' FROM user_http_server.messages";
        holds(database.ask(old) == "t", "it is")
    });
    one.signal("STOP");
    // it has been frozen for longer than a claim lasts
    database.ask("UPDATE user_http_server.messages SET lease_until = clock_timestamp()");
    let mut next_worker = Connection::open(other.http);
    next_worker.send_head("GET", "/?bufferUUID=a", &[]);
    assert_eq!(next_worker.read_head().status, 200);
    one.signal("CONT");
    let (mut rest, mut total) = (vec![0; 1 << 20], received);
    loop {
        match worker.read(&mut rest) {
            0 => break,
            read => total += read,
        }
    }
    assert!(total <= len - HELD_BACK, "{total} of {len} bytes have arrived");
    one.wait_for_log("the lease is over");
    next_worker.read_exact(len);
    eventually_absent(&one, "a");
}

#[test]
fn while_the_database_is_away_messages_are_refused_frames_go_on_and_everything_says_why() {
    let mut database = Postgres::start();
    let gateway = gateway_on(&database);
    assert_eq!(add_buffer_msg(&gateway, "kept", &json!(1)).status, 200);
    database.kill();
    for answer in [add_buffer_msg(&gateway, "refused", &json!(1)), get(&gateway, "kept", &[])] {
        assert!(answer.status == 503 && answer.header("retry-after").is_some(), "{answer:?}");
    }
    assert_eq!(post_user_msg(&gateway, "worker", "FRAME_RENDERED", &json!(1)).status, 200);
    let not_ready = eventually("it is not ready", SOON, || {
        let answer = request(gateway.api, "GET", "/readyz", &[], b"");
        if answer.status == 503 { Ok(answer.json()) } else { Err(answer) }
    });
    assert_eq!(not_ready["store"], "failed", "{not_ready}");
    let reason = not_ready["not_ready"][0].as_str().expect("a reason");
    assert!(reason.starts_with("buffer: the buffer's database takes no messages"), "{reason}");
    let status = request(gateway.api, "GET", "/status", &[], b"").json();
    let problem = status["problems"][0]["text"].as_str().expect("a problem");
    assert!(problem.starts_with("Messages for workers are refused (503), and frames go on"), "{problem}");
    database.launch();
    eventually("it is ready", SOON, || {
        let answer = request(gateway.api, "GET", "/readyz", &[], b"");
        holds(answer.status == 200, answer)
    });
    assert_eq!(get(&gateway, "kept", &[]).status, 200);
}

#[test]
fn a_gateway_starts_while_its_database_is_away() {
    let mut database = Postgres::prepare();
    let gateway = Setup::default().args(["--buffer-store", &database.url()]).launch();
    gateway.wait_for_log("API server listening on ");
    gateway.wait_for_log("takes no messages at the moment");
    database.launch();
    gateway.wait_for_log("the database takes messages");
}

#[test]
fn the_books_of_all_gateways_balance_together() {
    let database = Postgres::start();
    let gateways = [gateway_on(&database), gateway_on(&database)];
    for number in 0..6 {
        let [leaves, fetches] = [&gateways[number % 2], &gateways[(number + 1) % 2]];
        assert_eq!(add_buffer_msg(leaves, &number.to_string(), &json!(number)).status, 200);
        if number < 4 {
            assert_eq!(get(fetches, &number.to_string(), &[]).status, 200);
        }
    }
    assert_eq!(add_buffer_msg(&gateways[0], "5", &json!("again")).status, 200);
    let value = |gateway: &Server, name: &str| -> f64 {
        let answer = request(gateway.api, "GET", "/metrics", &[], b"");
        let text = String::from_utf8(answer.body).expect("UTF-8");
        let name = format!("user_http_server_{name}");
        let lines = text.lines().filter(|line| line.starts_with(&name)).filter_map(|line| line.rsplit_once(' '));
        lines.map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
    };
    let sum = |name: &str| gateways.iter().map(|gateway| value(gateway, name)).sum::<f64>();
    eventually("the books balance", SOON, || {
        let [accepted, delivered, replaced] =
            ["buffer_accepted_total", "buffer_delivered_total", "buffer_replaced_total"].map(sum);
        let held = gateways.each_ref().map(|gateway| value(gateway, "buffer_messages"));
        let all = (accepted, delivered, replaced, held);
        holds(all == (7.0, 4.0, 1.0, [2.0, 2.0]), all)
    });
}
