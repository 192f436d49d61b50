//! `/admin/buffer` and `/admin/outbox`: operators list what the gateway holds, and discard single messages.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::{
    Connection, Host, Response, SOON, Server, Setup, add_buffer_msg, eventually, for_each_host, holds, post_user_msg,
    request,
};

for_each_host!(
    a_buffered_message_is_listed_and_discarded_whatever_its_uuid_is,
    an_outbox_message_is_listed_and_discarded_in_every_state_without_a_broker,
    a_malformed_limit_or_cursor_is_answered_400_and_says_what_is_right,
);

fn leave(server: &Server, uuid: &str) {
    let answer = add_buffer_msg(server, uuid, &json!({ "SECRET": "the payload" }));
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn post(server: &Server, kind: &str) {
    let answer = post_user_msg(server, "me", kind, &json!("the payload"));
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn get(server: &Server, path: &str) -> Response {
    request(server.api, "GET", &server.api_path(path), &[], b"")
}

fn delete(server: &Server, path: &str) -> Response {
    request(server.api, "DELETE", &server.api_path(path), &[], b"")
}

/// All messages of a list, which is read in pages of this many.
fn list(server: &Server, path: &str, limit: usize) -> Vec<Value> {
    let (mut messages, mut query) = (Vec::new(), format!("{path}?limit={limit}"));
    loop {
        let answer = get(server, &query);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{answer:?}");
        assert!(!answer.body.windows(7).any(|part| part == b"payload"), "a payload is shown: {answer:?}");
        let page = answer.json();
        let listed = page["messages"].as_array().unwrap_or_else(|| panic!("{page}"));
        assert!(listed.len() <= limit, "{page}");
        messages.extend(listed.iter().cloned());
        match &page["next"] {
            Value::Null => return messages,
            next => query = format!("{path}?limit={limit}&after={}", next.as_str().expect("a string")),
        }
        assert!(messages.len() < 10_000, "the pages do not end: {query}");
    }
}

fn of_all(messages: &[Value], field: &str) -> Vec<String> {
    messages.iter().map(|message| message[field].as_str().unwrap_or_else(|| panic!("{message}")).to_owned()).collect()
}

/// Checks that this is a failure in the form of RFC 9457; returns its detail.
#[track_caller]
fn problem(answer: &Response, status: u16) -> String {
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (status, Some("application/problem+json")),
        "{answer:?}"
    );
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{problem}");
    for field in ["type", "title"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
    problem["detail"].as_str().filter(|detail| !detail.is_empty()).unwrap_or_else(|| panic!("{problem}")).to_owned()
}

fn encoded(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn a_buffered_message_is_listed_and_discarded_whatever_its_uuid_is(host: Host) {
    let server = Setup::on(host).start();
    let long = "ü".repeat(2_048);
    let uuids = [
        "job-1",
        "a/b",
        "..",
        ".",
        "../../etc",
        "a b",
        "a%2Fb",
        "%",
        "+",
        "?x=1#y",
        "ä/ö",
        "\n\r\0",
        "\u{fffd}",
        "'\"",
        &long,
    ];
    for uuid in uuids {
        leave(&server, uuid);
    }
    let listed = list(&server, "/admin/buffer", 4);
    assert_eq!(of_all(&listed, "uuid"), uuids);
    for message in &listed {
        let is_right = message["bytes"].as_u64().is_some_and(|bytes| (20..100).contains(&bytes))
            && message["age_seconds"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age))
            && message["blend"].is_null()
            && message["in_delivery"] == false;
        assert!(is_right, "{message}");
    }
    // is not the name of the message whose name is U+FFFD
    problem(&delete(&server, "/admin/buffer/%FF"), 404);
    for (at, uuid) in uuids.iter().enumerate() {
        let path = format!("/admin/buffer/{}", encoded(uuid));
        let answer = delete(&server, &path);
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{uuid:?}: {answer:?}");
        problem(&delete(&server, &path), 404);
        assert_eq!(of_all(&list(&server, "/admin/buffer", 1_000), "uuid"), uuids[at + 1..], "after {uuid:?}");
    }
    assert_eq!(get(&server, "/readyz").json()["buffer"]["discarded_total"], uuids.len());
}

fn an_outbox_message_is_listed_and_discarded_in_every_state_without_a_broker(host: Host) {
    let server = Setup::on(host).start();
    for kind in ["FRAME_RENDERED", "RENDER_COMPLETED", "FRAME_RENDERED"] {
        post(&server, kind);
    }
    let leased = get(&server, "/UserManager/NextMessage");
    assert_eq!(leased.status, 200, "{leased:?}");
    let listed = list(&server, "/admin/outbox", 2);
    assert_eq!(of_all(&listed, "type"), ["FRAME_RENDERED", "RENDER_COMPLETED", "FRAME_RENDERED"]);
    assert_eq!(of_all(&listed, "state"), ["leased", "waiting", "waiting"]);
    assert_eq!(of_all(&listed, "user"), ["me", "me", "me"]);
    assert_eq!(listed[0]["bytes"], leased.body.len());
    assert!(listed[0]["age_seconds"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age)), "{listed:?}");
    let ids = of_all(&listed, "id");
    assert_eq!(leased.header("message-id"), Some(ids[0].as_str()));
    for id in &ids {
        let path = format!("/admin/outbox/{id}");
        assert_eq!(delete(&server, &path).status, 204, "{id}");
        problem(&delete(&server, &path), 404);
    }
    problem(&delete(&server, "/admin/outbox/no-id"), 404);
    assert_eq!(delete(&server, &format!("/UserManager/Messages/{}", ids[0])).status, 404, "it is discarded");
    let readiness = get(&server, "/readyz").json();
    let outbox = &readiness["outbox"];
    assert_eq!(
        (&outbox["messages"], &outbox["bytes"], &outbox["discarded_total"], &outbox["forwarded_total"]),
        (&json!(0), &json!(0), &json!(3), &json!(0))
    );
}

fn a_malformed_limit_or_cursor_is_answered_400_and_says_what_is_right(host: Host) {
    let server = Setup::on(host).start();
    for path in ["/admin/buffer", "/admin/outbox"] {
        for limit in
            ["0", "-1", "+1", "1.0", "1e2", "x", "", "%201", "1001", "99999999999999999999", "1&limit=1", "%FF"]
        {
            let detail = problem(&get(&server, &format!("{path}?limit={limit}")), 400);
            assert!(detail.contains("limit must be given once, as a number from 1 to 1000"), "{limit}: {detail}");
        }
        for after in ["x", "-1", "", "1.5", "01", "10000000000000000000", "1&after=1", "null"] {
            let detail = problem(&get(&server, &format!("{path}?after={after}")), 400);
            assert!(detail.contains("after must be given once, as the \"next\" of an earlier page"), "{detail}");
        }
        for query in ["", "?limit=1", "?limit=1000", "?limit=007&after=0", "?after=9999999999999999999"] {
            let answer = get(&server, &format!("{path}{query}"));
            assert_eq!((answer.status, answer.json()), (200, json!({ "messages": [], "next": null })), "{query}");
        }
    }
}

#[test]
fn a_message_in_delivery_is_shown_as_such_and_not_discarded() {
    let server = Server::start();
    let path = server.blend_file("scene.blend", &vec![b'x'; 64 << 20]);
    let data = json!({ "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "scene.blend" });
    let data = json!({ "BUFFER_UUID": "job", "BUFFER_MSG": { "DATA": data } });
    let body = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": data }).to_string();
    let answer = request(server.api, "POST", "/CommunicationInterface/AddBufferMsg", &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(path.exists());
    let mut worker = Connection::open(server.http);
    worker.send_head("GET", "/?bufferUUID=job", &[]);
    assert_eq!(worker.read_head().status, 200);
    let listed = list(&server, "/admin/buffer", 10);
    assert_eq!((&listed[0]["in_delivery"], &listed[0]["blend"]), (&json!(true), &json!("scene.blend")), "{listed:?}");
    let refused = delete(&server, "/admin/buffer/job");
    assert!(problem(&refused, 409).contains("is being delivered"));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    drop(worker);
    eventually("the delivery has broken off, and the message is discarded", SOON, || {
        let answer = delete(&server, "/admin/buffer/job");
        holds(answer.status == 204, answer)
    });
}

#[test]
fn what_is_discarded_stays_so_through_a_kill_right_after_the_answer() {
    let mut server = Server::start();
    for round in 0..5 {
        for number in 0..3 {
            leave(&server, &format!("{round}-{number}"));
        }
        post(&server, "FRAME_RENDERED");
        post(&server, "FRAME_RENDERED");
        let ids = of_all(&list(&server, "/admin/outbox", 10), "id");
        assert_eq!(delete(&server, &format!("/admin/outbox/{}", ids[0])).status, 204);
        assert_eq!(delete(&server, &format!("/admin/buffer/{round}-1")).status, 204);
        server.kill9();
        server.restart();
        assert_eq!(of_all(&list(&server, "/admin/outbox", 10), "id"), ids[1..], "round {round}");
        let uuids = of_all(&list(&server, "/admin/buffer", 10), "uuid");
        assert_eq!(uuids, [0, 2].map(|number| format!("{round}-{number}")), "round {round}");
        for uuid in uuids {
            assert_eq!(delete(&server, &format!("/admin/buffer/{uuid}")).status, 204);
        }
        assert_eq!(delete(&server, &format!("/admin/outbox/{}", ids[1])).status, 204);
    }
}

#[test]
fn a_cursor_is_valid_after_a_restart() {
    let mut server = Server::start();
    (0..4).for_each(|number| leave(&server, &number.to_string()));
    let first = get(&server, "/admin/buffer?limit=2").json();
    assert_eq!(server.stop().code(), Some(0));
    server.restart();
    let next = first["next"].as_str().expect("another page");
    let second = get(&server, &format!("/admin/buffer?limit=2&after={next}")).json();
    assert_eq!(of_all(second["messages"].as_array().expect("a list"), "uuid"), ["2", "3"]);
    assert_eq!(second["next"], Value::Null);
}

/// Discards with these headers, and returns the line of the log that says so.
fn log_of_discard(server: &Server, to: SocketAddr, uuid: &str, headers: &[(&str, &str)]) -> String {
    let text = format!("message {uuid:?} is discarded");
    let body = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": { "BUFFER_UUID": uuid, "BUFFER_MSG": 1 } }).to_string();
    let answer = request(to, "POST", "/CommunicationInterface/AddBufferMsg", headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(request(to, "DELETE", &format!("/admin/buffer/{uuid}"), headers, b"").status, 204);
    eventually("a line in the log", SOON, || {
        let log = server.log();
        log.lines().find(|line| line.contains(&text)).map(str::to_owned).ok_or(log)
    })
}

#[test]
fn the_log_says_who_has_discarded_a_message() {
    let server = Server::start();
    let line = log_of_discard(&server, server.api, "one", &[]);
    assert!(line.contains(" by 127.0.0.1:"), "{line}");
    let setup = Setup::default();
    let (tokens, file) = (["a".repeat(32), "b".repeat(32)], setup.path("tokens"));
    fs::write(&file, format!("{} night shift\n{}\n", tokens[0], tokens[1])).expect("a token file");
    let server = setup.args(["--api-token-file", file.to_str().expect("UTF-8")]).start();
    let [labelled, other] = tokens.map(|token| format!("Bearer {token}"));
    let line = log_of_discard(&server, server.api, "two", &[("Authorization", &labelled)]);
    assert!(line.ends_with(" by token \"night shift\""), "{line}");
    let line = log_of_discard(&server, server.api, "three", &[("Authorization", &other)]);
    assert!(line.contains(" by 127.0.0.1:"), "{line}");
}

#[test]
fn every_refusal_on_these_routes_has_problem_details_and_nothing_happens() {
    let setup = Setup::default();
    let file = setup.path("tokens");
    fs::write(&file, format!("{}\n", "a".repeat(32))).expect("a token file");
    let guarded = setup.args(["--api-token-file", file.to_str().expect("UTF-8")]).start();
    let open = Server::start();
    leave(&open, "stays");
    for (method, path, allowed) in [
        ("GET", "/admin/buffer", "GET, HEAD"),
        ("DELETE", "/admin/buffer/stays", "DELETE"),
        ("GET", "/admin/outbox", "GET, HEAD"),
        ("DELETE", "/admin/outbox/x", "DELETE"),
    ] {
        problem(&request(guarded.api, method, path, &[], b""), 401);
        for origin in [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site"), ("Host", "evil.example")] {
            if origin.0 == "Host" {
                let mut connection = Connection::open(open.api);
                connection.send(format!("{method} {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n").as_bytes());
                problem(&connection.read_response(), 403);
            } else {
                problem(&request(open.api, method, path, &[origin], b""), 403);
            }
        }
        let answer = request(open.api, "PUT", path, &[], b"");
        problem(&answer, 405);
        assert_eq!(answer.header("allow"), Some(allowed), "{path}");
    }
    problem(&request(open.api, "GET", "/admin/nothing", &[], b""), 404);
    let mut connection = Connection::open(open.api);
    let head = connection.request("HEAD", "/admin/buffer", &[], b"");
    let listed = connection.request("GET", "/admin/buffer", &[], b"");
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/json")));
    assert_eq!(of_all(listed.json()["messages"].as_array().expect("a list"), "uuid"), ["stays"]);
    // strangers have no such routes
    for path in ["/admin/buffer", "/admin/outbox"] {
        assert_eq!(request(open.http, "GET", path, &[], b"").status, 404);
    }
}

#[test]
fn a_buffer_of_many_messages_is_listed_whole_and_a_page_has_100_unless_it_says_otherwise() {
    let server = Server::with(&["--memory"]);
    let mut connection = Connection::open(server.api);
    for number in 0..3_000 {
        let data = json!({ "BUFFER_UUID": number.to_string(), "BUFFER_MSG": 1 });
        let body = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": data }).to_string();
        let answer = connection.request("POST", "/CommunicationInterface/AddBufferMsg", &[], body.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let default = get(&server, "/admin/buffer").json();
    assert_eq!(default["messages"].as_array().map(Vec::len), Some(100), "without a limit");
    let mut seen = BTreeMap::new();
    for message in list(&server, "/admin/buffer", 1_000) {
        *seen.entry(message["uuid"].as_str().expect("a string").to_owned()).or_insert(0) += 1;
    }
    assert_eq!((seen.len(), seen.values().max()), (3_000, Some(&1)));
}
