//! `POST /CommunicationInterface/AddBufferMsg` on the API server.

use serde_json::json;

use crate::harness::{Connection, Farm, frame, order};

const PICKLE: &str = "application/octet-stream";
const JSON: &str = "application/json";

#[test]
fn a_stored_message_is_answered_success() {
    let mut farm = Farm::start();
    let json =
        farm.order_bytes(JSON, br#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "id-1", "BUFFER_MSG": [1, 2]}}"#);
    assert_eq!(json.status, 200, "{json:?}");
    assert_eq!(json.header("content-type"), Some(JSON));
    assert_eq!(json.json(), json!({ "STATUS": "SUCCESS" }));
    assert_eq!(farm.fetch_value("id-1"), "[1, 2]");
    for protocol in 0..=5 {
        let body = farm.peer.dumps(&order("id-2", "{'b': (1, {2}), 'a': b'x', 3: frozenset()}"), protocol);
        let answer = farm.order_bytes("application/octet-stream; x=y", &body);
        assert_eq!((answer.status, answer.json()), (200, json!({ "STATUS": "SUCCESS" })));
        assert_eq!(farm.fetch_value("id-2"), "{'b': (1, {2}), 'a': b'x', 3: frozenset()}");
    }
}

#[test]
fn the_same_buffer_uuid_again_replaces_the_earlier_message() {
    let mut farm = Farm::start();
    farm.leave("id-1", "'earlier'");
    farm.leave("id-2", "'another'");
    farm.leave("id-1", "'later'");
    assert_eq!(farm.fetch_value("id-1"), "'later'");
    farm.expect_no_message("id-1");
    assert_eq!(farm.fetch_value("id-2"), "'another'");
}

#[test]
fn another_type_is_answered_unknown_message_type() {
    let mut farm = Farm::start();
    for kind in ["REMOVE_BUFFER_MSG", "add_buffer_msg", "", "ADD_BUFFER_MSG "] {
        let value = format!("{{'TYPE': '{kind}', 'DATA': {{'BUFFER_UUID': 'id-1', 'BUFFER_MSG': 1}}}}");
        let pickle = farm.peer.dumps(&value, 4);
        for (content_type, body) in [(JSON, value.replace('\'', "\"").into_bytes()), (PICKLE, pickle)] {
            let answer = farm.order_bytes(content_type, &body);
            assert_eq!(answer.failure(400), "Unknown message type", "{kind}");
            assert_eq!(answer.json(), json!({ "STATUS": "FAILED", "ERROR": "Unknown message type" }));
        }
    }
    farm.expect_no_message("id-1");
}

#[test]
fn a_malformed_message_is_refused_with_what_is_wrong() {
    let mut farm = Farm::start();
    for (value, named) in [
        ("{'DATA': {'BUFFER_UUID': 'id-1', 'BUFFER_MSG': 1}}", "TYPE"),
        ("{'TYPE': 7, 'DATA': {'BUFFER_UUID': 'id-1', 'BUFFER_MSG': 1}}", "TYPE"),
        ("{'TYPE': 'ADD_BUFFER_MSG'}", "DATA"),
        ("{'TYPE': 'ADD_BUFFER_MSG', 'DATA': []}", "DATA"),
        ("{'TYPE': 'ADD_BUFFER_MSG', 'DATA': {'BUFFER_MSG': 1}}", "BUFFER_UUID"),
        ("{'TYPE': 'ADD_BUFFER_MSG', 'DATA': {'BUFFER_UUID': 7, 'BUFFER_MSG': 1}}", "BUFFER_UUID"),
        ("{'TYPE': 'ADD_BUFFER_MSG', 'DATA': {'BUFFER_UUID': None, 'BUFFER_MSG': 1}}", "BUFFER_UUID"),
        ("{'TYPE': 'ADD_BUFFER_MSG', 'DATA': {'BUFFER_UUID': 'id-1'}}", "BUFFER_MSG"),
        ("[]", ""),
        ("7", ""),
    ] {
        let pickle = farm.peer.dumps(value, 4);
        for (content_type, body) in
            [(JSON, value.replace('\'', "\"").replace("None", "null").into_bytes()), (PICKLE, pickle)]
        {
            let error = farm.order_bytes(content_type, &body).failure(400);
            assert!(error.contains(named), "{content_type} {value}: no {named} in {error:?}");
        }
    }
    for body in [b"".as_slice(), b"{", b"no json", b"\x80\x04"] {
        farm.order_bytes(JSON, body).failure(400);
        farm.order_bytes(PICKLE, body).failure(400);
    }
    farm.expect_no_message("id-1");
}

#[test]
fn a_body_larger_than_the_limit_is_answered_413() {
    let mut farm = Farm::with(&["--max-body", "64KiB"]);
    let url = farm.server.api_url("/CommunicationInterface/AddBufferMsg");
    for chunked in [false, true] {
        let answer = farm.peer.answer("post_size", json!({ "url": url, "size": 100_000, "chunked": chunked }));
        assert_eq!(answer.status, 413, "{answer:?}");
        assert!(answer.value.starts_with("{'STATUS': 'FAILED', 'ERROR': '"), "{answer:?}");
    }
}

#[test]
fn a_full_buffer_is_answered_503_with_retry_after_while_other_work_goes_on() {
    let mut farm = Farm::with(&["--max-buffered", "1MiB"]);
    let body = |farm: &mut Farm, number: usize| farm.peer.dumps(&order(&format!("id-{number}"), "bytes(200_000)"), 4);
    let mut stored = 0;
    let refused = loop {
        let body = body(&mut farm, stored);
        let answer = farm.order_bytes(PICKLE, &body);
        if answer.status != 200 {
            break answer;
        }
        stored += 1;
        assert!(stored < 6, "six messages of 200 kB within 1 MiB");
    };
    assert!(stored >= 4, "{stored} messages of 200 kB within 1 MiB");
    refused.failure(503);
    let after: u64 = refused.header("retry-after").and_then(|text| text.parse().ok()).expect("Retry-After in seconds");
    assert!(after > 0);

    farm.post(&frame("FRAME_RENDERED", "bytes(300_000)"));
    farm.take();
    assert_eq!(farm.fetch("id-0").status, 200, "fetching goes on, and frees capacity");
    let again = body(&mut farm, stored);
    assert_eq!(farm.order_bytes(PICKLE, &again).status, 200, "there is capacity again");
}

#[test]
fn a_later_message_counts_only_by_how_much_larger_it_is() {
    let mut farm = Farm::with(&["--max-buffered", "1MiB"]);
    for round in 0..10 {
        farm.leave("id-1", &format!("'{round}' * 700_000"));
    }
    assert_eq!(farm.ask("HEAD", "id-1", &[]).status, 200);
}

#[test]
fn a_message_expires_after_its_time() {
    let mut farm = Farm::with(&["--buffer-ttl", "1s"]);
    farm.leave("id-1", "1");
    crate::harness::eventually("the message has expired", crate::harness::SOON, || {
        let answer = farm.ask("HEAD", "id-1", &[]);
        crate::harness::holds(answer.status == 400, answer)
    });
    farm.expect_no_message("id-1");
}

#[test]
fn a_connection_goes_on_after_a_failure() {
    let mut farm = Farm::start();
    let mut connection = Connection::open(farm.api);
    let path = "/CommunicationInterface/AddBufferMsg";
    for round in 0..3 {
        connection.request("POST", path, &[], b"no json").failure(400);
        let body = format!(r#"{{"TYPE": "ADD_BUFFER_MSG", "DATA": {{"BUFFER_UUID": "id-1", "BUFFER_MSG": {round}}}}}"#);
        assert_eq!(connection.request("POST", path, &[], body.as_bytes()).status, 200);
    }
    assert_eq!(farm.fetch_value("id-1"), "2");
}
