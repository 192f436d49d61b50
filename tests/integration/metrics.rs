//! `GET /metrics` on the API server: what is there from the start, what is counted, and what never is.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};

use serde_json::json;

use crate::harness::{
    Ca, Connection, PREFIX, Scrape, Server, Setup, add_buffer_msg, assert_balanced, connect, eventually_scraped,
};
use crate::harness::{holds, request};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const ADD: &str = "/CommunicationInterface/AddBufferMsg";

fn leave(server: &Server, uuid: &str, message: &str) -> u16 {
    add_buffer_msg(server, uuid, &json!(message)).status
}

fn fetch(server: &Server, uuid: &str) -> u16 {
    request(server.http, "GET", &format!("/?bufferUUID={uuid}"), &[], b"").status
}

fn post(server: &Server, kind: &str, headers: &[(&str, &str)]) -> u16 {
    let body = format!(r#"{{"USER_ID": "me", "MAIN_DATA": {{"TYPE": "{kind}", "DATA": 1}}}}"#);
    request(server.http, "POST", "/", &[&[JSON], headers].concat(), body.as_bytes()).status
}

/// The rows of the documentation's tables: names, types and labels.
fn documented() -> BTreeSet<(String, String, Vec<String>)> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).expect("the documentation");
    let code = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let kind = cells.get(2).filter(|kind| ["counter", "gauge", "histogram"].contains(kind))?;
        Some((code(cells[1]).pop()?, (*kind).to_owned(), code(cells[3])))
    });
    rows.collect()
}

#[test]
fn each_documented_metric_is_there_with_its_type_and_labels_and_there_is_no_other() {
    let ca = Ca::new();
    let [cert, key] = ca.issue_files("server");
    let server = Server::with(&["--http-tls-cert", &cert, "--http-tls-key", &key]);
    request(server.api, "GET", "/healthz", &[], b"");
    let scrape = Scrape::of(server.api);
    let documented = documented();
    assert!(documented.len() > 30, "{documented:?}");
    for (name, kind, labels) in &documented {
        assert_eq!(scrape.types.get(&format!("{PREFIX}{name}")), Some(kind), "{name}: {}", scrape.text);
        let series = if kind == "histogram" { format!("{name}_bucket") } else { name.clone() };
        for label in labels {
            assert!(!scrape.labels(&series, label).is_empty(), "{name} has no label {label}: {}", scrape.text);
        }
    }
    let known: BTreeSet<&str> = documented.iter().map(|(name, ..)| name.as_str()).collect();
    let own = scrape.types.keys().filter_map(|name| name.strip_prefix(PREFIX));
    assert_eq!(own.collect::<BTreeSet<&str>>(), known);
    let process =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).expect("the documentation");
    let others = scrape.types.keys().filter(|name| !name.starts_with(PREFIX));
    for name in others {
        assert!(name.starts_with("process_") && process.contains(&format!("`{name}`")), "{name}");
    }
    assert_eq!(scrape.types.keys().filter(|name| name.starts_with("process_")).count(), 8, "{}", scrape.text);
}

#[test]
fn metrics_without_labels_are_there_from_the_start_and_0() {
    let server = Server::start();
    let scrape = Scrape::of(server.api);
    for (name, kind, _) in documented().iter().filter(|(_, _, labels)| labels.is_empty()) {
        let name = if kind == "histogram" { format!("{name}_count") } else { name.clone() };
        assert_eq!(scrape.value(&name) == 0.0, !name.ends_with("_limit_bytes"), "{name}");
    }
    for (name, label, values) in [
        ("buffer_accepted_total", "source", &["amqp", "http"][..]),
        ("outbox_accepted_total", "type", &["FRAME_RENDERED", "RENDER_COMPLETED"]),
        ("store_disk_bytes", "store", &["buffer", "outbox"]),
        ("http_connections", "server", &["api", "worker"]),
    ] {
        let mut found = scrape.labels(name, label);
        found.sort_unstable();
        assert_eq!(found, values, "{name}");
    }
}

#[test]
fn the_answer_is_the_text_format_and_head_and_other_methods_are_answered_as_elsewhere() {
    let server = Server::start();
    let mut connection = Connection::open(server.api);
    let get = connection.request("GET", "/metrics", &[], b"");
    assert_eq!((get.status, get.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    let head = connection.request("HEAD", "/metrics", &[], b"");
    assert_eq!((head.status, head.header("content-type")), (200, get.header("content-type")));
    let put = connection.request("PUT", "/metrics", &[], b"");
    put.failure(405);
    assert_eq!(put.header("allow"), Some("GET, HEAD"));
    assert_eq!(request(server.http, "GET", "/metrics", &[], b"").status, 404, "not for workers");
}

#[test]
fn metrics_need_a_token_if_the_server_has_any() {
    let setup = Setup::default();
    let tokens = setup.path("tokens");
    fs::write(&tokens, "secret-token-of-the-test-1234567890\n").expect("a token file");
    let server = setup.args(["--api-token-file", tokens.to_str().expect("UTF-8")]).start();
    assert_eq!(request(server.api, "GET", "/metrics", &[], b"").status, 401);
    let bearer = [("Authorization", "Bearer secret-token-of-the-test-1234567890")];
    assert_eq!(request(server.api, "GET", "/metrics", &bearer, b"").status, 200);
}

#[test]
fn requests_are_counted_by_route_method_and_status_when_they_are_answered() {
    let server = Server::start();
    assert_eq!(post(&server, "TEST", &[]), 200);
    assert_eq!(fetch(&server, "nothing"), 400);
    assert_eq!(request(server.http, "GET", "/blends/xyz", &[], b"").status, 404);
    assert_eq!(request(server.http, "PUT", "/", &[], b"").status, 405);
    assert_eq!(request(server.http, "GET", "/nothing", &[], b"").status, 404);
    let id = "/UserManager/Messages/00000000-0000-4000-8000-000000000000";
    assert_eq!(request(server.api, "DELETE", id, &[], b"").status, 404);
    assert_eq!(request(server.api, "HEAD", "/healthz", &[], b"").status, 200);
    let scrape = Scrape::of(server.api);
    for (server, route, method, status) in [
        ("worker", "/", "POST", "200"),
        ("worker", "/", "GET", "400"),
        ("worker", "/blends/{digest}", "GET", "404"),
        ("worker", "other", "PUT", "405"),
        ("worker", "other", "GET", "404"),
        ("api", "/UserManager/Messages/{id}", "DELETE", "404"),
        ("api", "/healthz", "HEAD", "200"),
    ] {
        let labels = [("server", server), ("route", route), ("method", method), ("status", status)];
        assert_eq!(scrape.sum("http_requests_total", &labels), 1.0, "{labels:?}: {}", scrape.text);
    }
    eventually_scraped(server.api, "how long they took", |scrape| {
        let count = scrape.sum("http_request_duration_seconds_count", &[("server", "worker")]);
        holds(count == 5.0, scrape.text.clone())
    });
}

#[test]
fn what_is_no_request_is_counted_too() {
    let server = Server::start();
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(20_000));
    for (bytes, status) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "400"),
        (long.as_bytes(), "431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "408"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n", "413"),
    ] {
        let mut socket = connect(server.http).expect("the kernel accepts");
        socket.write_all(bytes).expect("the server to read");
        let mut answer = String::new();
        // the server closes the connection after the answer, or waits for the body
        let mut buffer = [0; 4096];
        while !answer.contains("\r\n\r\n") {
            let read = socket.read(&mut buffer).expect("an answer");
            answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        assert!(answer.contains(status), "{answer}");
        let scrape = Scrape::of(server.api);
        let labels = [("server", "worker"), ("status", status)];
        assert_eq!(scrape.sum("http_requests_total", &labels), 1.0, "{status}: {}", scrape.text);
    }
}

#[test]
fn a_thousand_strange_paths_and_methods_make_no_time_series_beyond_other() {
    let server = Server::start();
    let mut worker = Connection::open(server.http);
    let mut api = Connection::open(server.api);
    let ask = |worker: &mut Connection, api: &mut Connection, number: usize| {
        for connection in [worker, api] {
            connection.request("GET", &format!("/strange/{number}"), &[], b"");
            connection.request(&format!("STRANGE{number}"), "/", &[], b"");
            connection.request(&format!("ODD{number}"), &format!("/{number}"), &[], b"");
        }
    };
    ask(&mut worker, &mut api, 0);
    api.request("GET", "/metrics", &[], b"");
    let before = Scrape::of(server.api);
    (1..1_000).for_each(|number| ask(&mut worker, &mut api, number));
    let after = Scrape::of(server.api);
    assert_eq!(after.series(), before.series(), "{}", after.text);
    assert!(!after.text.contains("strange") && !after.text.contains("STRANGE"), "{}", after.text);
    assert!(after.sum("http_requests_total", &[("route", "other"), ("method", "other")]) >= 3_000.0);
}

#[test]
fn connections_and_bytes_are_counted() {
    let server = Server::start();
    let open = Connection::open(server.http);
    eventually_scraped(server.api, "an open connection", |scrape| {
        holds(scrape.sum("http_connections", &[("server", "worker")]) == 1.0, scrape.text.clone())
    });
    drop(open);
    eventually_scraped(server.api, "no open connection", |scrape| {
        holds(scrape.sum("http_connections", &[("server", "worker")]) == 0.0, scrape.text.clone())
    });
    let before = Scrape::of(server.api);
    assert_eq!(leave(&server, "large", &"x".repeat(3_000_000)), 200);
    let stored = Scrape::of(server.api);
    assert!(stored.sum("store_disk_bytes", &[("store", "buffer")]) > 3_000_000.0, "{}", stored.text);
    assert_eq!(fetch(&server, "large"), 200);
    // the client may have read the last bytes before the server counts them
    let after = eventually_scraped(server.api, "the bytes of the message, received and sent", |after| {
        let grown = |name: &str, of: &str| after.sum(name, &[("server", of)]) - before.sum(name, &[("server", of)]);
        let bytes = [grown("http_received_bytes_total", "api"), grown("http_sent_bytes_total", "worker")];
        holds(bytes.iter().all(|bytes| (3_000_000.0..3_010_000.0).contains(bytes)), bytes)
    });
    assert!(after.sum("store_commit_seconds_count", &[("store", "buffer")]) >= 1.0, "{}", after.text);
}

#[test]
fn each_message_for_a_worker_is_counted_where_it_comes_and_where_it_goes() {
    let mut server = Server::with(&["--buffer-ttl", "2s"]);
    assert_eq!(leave(&server, "delivered", "1"), 200);
    assert_eq!(fetch(&server, "delivered"), 200);
    assert_eq!((leave(&server, "replaced", "1"), leave(&server, "replaced", "2")), (200, 200));
    // a worker may have read the last byte before the message is counted as delivered
    let scrape = eventually_scraped(server.api, "one is delivered and one replaced", |scrape| {
        let left = ["buffer_delivered_total", "buffer_replaced_total"].map(|name| scrape.value(name));
        holds(left == [1.0, 1.0], left)
    });
    assert_eq!(scrape.sum("buffer_accepted_total", &[("source", "http")]), 3.0);
    assert_balanced(server.api);
    let scrape = eventually_scraped(server.api, "the last one expires", |scrape| {
        holds(scrape.value("buffer_expired_total") == 1.0, scrape.text.clone())
    });
    assert_eq!((scrape.value("buffer_messages"), scrape.value("buffer_bytes")), (0.0, 0.0));
    assert_eq!(scrape.value("buffer_oldest_seconds"), 0.0);
    assert_balanced(server.api);
    assert_eq!(leave(&server, "left", "1"), 200);
    server.kill9();
    server.restart();
    let scrape = assert_balanced(server.api);
    assert_eq!(scrape.value("buffer_recovered_messages"), 1.0);
}

#[test]
fn each_message_for_the_user_manager_is_counted_where_it_comes_and_where_it_goes() {
    let mut server = Server::start();
    assert_eq!((post(&server, "FRAME_RENDERED", &[]), post(&server, "RENDER_COMPLETED", &[])), (200, 200));
    let key = [("Idempotency-Key", "1")];
    for _ in 0..2 {
        assert_eq!(post(&server, "FRAME_RENDERED", &key), 200);
    }
    let scrape = assert_balanced(server.api);
    assert_eq!(scrape.sum("outbox_accepted_total", &[("type", "FRAME_RENDERED")]), 2.0, "a replay is none");
    assert_eq!(scrape.sum("outbox_accepted_total", &[("type", "RENDER_COMPLETED")]), 1.0);
    let message = request(server.api, "GET", "/UserManager/NextMessage", &[], b"");
    let id = message.header("message-id").expect("a message").to_owned();
    for status in [204, 404] {
        let path = format!("/UserManager/Messages/{id}");
        assert_eq!(request(server.api, "DELETE", &path, &[], b"").status, status);
        let scrape = Scrape::of(server.api);
        assert_eq!((scrape.value("outbox_forwarded_total"), scrape.value("outbox_messages")), (1.0, 2.0));
    }
    assert_balanced(server.api);
    assert!(server.stop().success());
    server.restart();
    assert_eq!(assert_balanced(server.api).value("outbox_recovered_messages"), 2.0);
}

#[test]
fn what_an_operator_discards_is_counted_as_discarded() {
    let server = Server::start();
    assert_eq!((leave(&server, "1", "1"), post(&server, "FRAME_RENDERED", &[])), (200, 200));
    let message = request(server.api, "GET", "/UserManager/NextMessage?lease=0", &[], b"");
    let id = message.header("message-id").expect("a message");
    for path in ["/admin/buffer/1".to_owned(), format!("/admin/outbox/{id}")] {
        for status in [204, 404] {
            assert_eq!(request(server.api, "DELETE", &path, &[], b"").status, status, "{path}");
        }
    }
    let scrape = assert_balanced(server.api);
    assert_eq!((scrape.value("buffer_discarded_total"), scrape.value("outbox_discarded_total")), (1.0, 1.0));
    assert_eq!((scrape.value("buffer_messages"), scrape.value("outbox_messages")), (0.0, 0.0));
    let labels = [("route", "/admin/buffer/{uuid}"), ("status", "204")];
    assert_eq!(scrape.sum("http_requests_total", &labels), 1.0, "{}", scrape.text);
}

#[test]
fn the_age_of_the_oldest_message_is_that_at_the_time_of_the_scrape() {
    let server = Server::start();
    assert_eq!((leave(&server, "1", "1"), post(&server, "FRAME_RENDERED", &[])), (200, 200));
    // nothing changes any more
    let ages = |scrape: &Scrape| ["buffer", "outbox"].map(|of| scrape.value(&format!("{of}_oldest_seconds")));
    let first = ages(&Scrape::of(server.api));
    eventually_scraped(server.api, "both grow", |scrape| {
        let now = ages(scrape);
        holds(now[0] > first[0] + 0.5 && now[1] > first[1] + 0.5, (first, now))
    });
    assert_eq!(fetch(&server, "1"), 200);
    eventually_scraped(server.api, "nothing is held", |scrape| {
        holds(scrape.value("buffer_oldest_seconds") == 0.0, ages(scrape))
    });
}

#[test]
fn what_is_refused_is_counted_by_its_reason_and_never_as_accepted() {
    let server = Server::with(&["--max-body", "10KiB", "--max-buffered", "8KiB", "--max-outbox", "8KiB"]);
    let long = "x".repeat(9_000);
    let digest = ("Content-Digest", "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:");
    let add = |headers: &[(&str, &str)], body: &str| request(server.api, "POST", ADD, headers, body.as_bytes()).status;
    let frame =
        |headers: &[(&str, &str)], body: &str| request(server.http, "POST", "/", headers, body.as_bytes()).status;
    assert_eq!(add(&[], "{"), 400);
    assert_eq!(add(&[], r#"{"TYPE": "OTHER", "DATA": {}}"#), 400);
    assert_eq!(add(&[], &"x".repeat(20_000)), 413);
    assert_eq!(add(&[digest], "{}"), 400);
    assert_eq!(leave(&server, "1", &long), 503, "it never fits");
    assert_eq!((leave(&server, "1", &long[..6_000]), leave(&server, "2", &long[..6_000])), (200, 503));
    assert_eq!(frame(&[], "{"), 400);
    assert_eq!(frame(&[], r#"{"USER_ID": 1, "MAIN_DATA": {"TYPE": "TEST", "DATA": 1}}"#), 400);
    assert_eq!(frame(&[("Idempotency-Key", "")], "{}"), 400);
    assert_eq!(frame(&[("Content-Encoding", "gzip")], "{}"), 415);
    assert_eq!((post(&server, "OTHER", &[]), post(&server, "TEST", &[])), (200, 200));
    let scrape = Scrape::of(server.api);
    let refused = |of: &str| {
        ["malformed", "unknown_type", "too_large", "transfer", "no_capacity"]
            .map(|reason| scrape.sum(&format!("{of}_refused_total"), &[("reason", reason)]))
    };
    assert_eq!(refused("buffer"), [1.0, 1.0, 2.0, 1.0, 1.0], "{}", scrape.text);
    assert_eq!(refused("outbox"), [3.0, 1.0, 0.0, 1.0, 0.0], "{}", scrape.text);
    assert_eq!((scrape.sum("buffer_accepted_total", &[]), scrape.sum("outbox_accepted_total", &[])), (1.0, 0.0));
    assert_balanced(server.api);
}

#[test]
fn a_start_is_unclean_after_a_kill_and_only_then() {
    let setup = Setup::default();
    // as versions without the mark leave it
    fs::create_dir(setup.data_dir()).expect("a data directory");
    let mut server = setup.start();
    let unclean = |server: &Server| Scrape::of(server.api).value("unclean_starts_total");
    assert_eq!(unclean(&server), 0.0, "the first start");
    assert!(server.stop().success());
    server.restart();
    assert_eq!(unclean(&server), 0.0, "after a stop");
    for _ in 0..2 {
        server.kill9();
        server.restart();
        assert_eq!(unclean(&server), 1.0, "after a kill");
    }
    assert!(server.stop().success());
    server.restart();
    assert_eq!(unclean(&server), 0.0, "after a stop again");
}

#[test]
fn memory_does_not_grow_if_nobody_scrapes() {
    const WARM_UP: usize = 40_000;
    const REQUESTS: usize = 200_000;
    const BATCH: usize = 500;
    let server = Server::start();
    let ask = b"GET /?bufferUUID=x HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = request(server.http, "GET", "/?bufferUUID=x", &[], b"");
    let mut connection = connect(server.http).expect("the kernel accepts");
    // all answers have the same length
    connection.write_all(ask).expect("the server to read");
    let mut first = vec![0; 4096];
    let mut len = 0;
    while !first[..len].ends_with(&answer.body) {
        len += connection.read(&mut first[len..]).expect("an answer");
    }
    let (batch, mut answers) = (ask.repeat(BATCH), vec![0; len * BATCH]);
    let mut ask = |requests: usize| {
        for _ in 0..requests / BATCH {
            connection.write_all(&batch).expect("the server to read");
            connection.read_exact(&mut answers).expect("answers");
        }
    };
    ask(WARM_UP);
    let before = server.rss_kib();
    ask(REQUESTS);
    // 16 bytes for each would be 3 MiB, and those of a histogram come in addition
    let after = server.rss_kib();
    assert!(after < before + 2_048, "{before} KiB before, {after} KiB after");
    // the time of a request is known once its answer was sent
    eventually_scraped(server.api, "all requests took their time", |scrape| {
        let count = scrape.sum("http_request_duration_seconds_count", &[]);
        holds(count >= (WARM_UP + REQUESTS) as f64, count)
    });
}

/// These tests need Debian's package prometheus.
mod prometheus {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn promtool_finds_nothing_to_object_to() {
        let server = Server::start();
        assert_eq!((leave(&server, "1", "1"), post(&server, "FRAME_RENDERED", &[])), (200, 200));
        let scrape = Scrape::of(server.api);
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut promtool = promtool.spawn().expect("promtool, of the package prometheus");
        promtool.stdin.take().expect("a pipe").write_all(scrape.text.as_bytes()).expect("promtool to read");
        let checked = promtool.wait_with_output().expect("promtool's end");
        let said = [checked.stdout, checked.stderr].concat();
        assert!(checked.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }
}

/// These tests need RabbitMQ.
mod rabbitmq {
    use super::*;
    use crate::harness::{AmqpFarm, Broker, Direction, Proxy, Version, order};

    #[test]
    fn with_a_broker_the_books_balance_and_a_scrape_is_answered_while_it_is_silent() {
        let url = Broker::of(Version::Debian).url;
        let proxy = Proxy::to(&url);
        let mut amqp = AmqpFarm::behind(&proxy, &url);
        let api = amqp.farm.api;
        amqp.user_manager();
        amqp.publish_value(&order("first", "1"));
        amqp.publish(b"no message", false);
        amqp.post_frames(0..5);
        let scrape = eventually_scraped(api, "all has come", |scrape| {
            let come = (
                scrape.sum("buffer_accepted_total", &[("source", "amqp")]),
                scrape.sum("buffer_refused_total", &[("reason", "malformed")]),
                scrape.value("outbox_forwarded_total"),
            );
            holds(come == (1.0, 1.0, 5.0), scrape.text.clone())
        });
        assert_eq!((scrape.value("broker_connected"), scrape.value("broker_connections_total")), (1.0, 1.0));
        assert!(scrape.value("publish_confirm_seconds_count") >= 5.0, "{}", scrape.text);
        assert_balanced(api);

        amqp.lose_the_acknowledgement_of(&proxy, &order("second", "2"));
        proxy.forward();
        amqp.wait_until_consuming();
        amqp.wait_for_own_queue(1, 0);
        let scrape = assert_balanced(api);
        assert_eq!(scrape.sum("buffer_accepted_total", &[("source", "amqp")]), 2.0, "a redelivery is none");

        proxy.swallow(&[Direction::ToBroker, Direction::ToServer]);
        // its sender waits for the confirm, and then for the disk
        amqp.post_frames(5..6);
        let scrape = assert_balanced(api);
        assert_eq!((scrape.value("outbox_messages"), scrape.sum("outbox_accepted_total", &[])), (1.0, 6.0));
        proxy.cut();
        proxy.forward();
        eventually_scraped(api, "it is forwarded", |scrape| {
            holds(scrape.value("outbox_messages") == 0.0, scrape.text.clone())
        });
        assert!(assert_balanced(api).value("broker_connections_total") >= 2.0);
    }
}
