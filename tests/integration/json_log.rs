//! `--log-format json`: one JSON object on each line.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Connection, SOON, Server, Setup, eventually, request};

fn setup() -> Setup {
    Setup::default().args(["--log-format", "json"])
}

/// The lines of the log, each of which must be an object with the fields that all have.
#[track_caller]
fn lines(log: &str) -> Vec<Value> {
    let parse = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        for field in ["time", "level", "target", "message"] {
            assert!(value[field].is_string(), "{field}: {line}");
        }
        let time = value["time"].as_str().unwrap_or_default();
        assert!(time.ends_with('Z') && humantime::parse_rfc3339(time).is_ok(), "{line}");
        value
    };
    log.lines().map(parse).collect()
}

/// Waits for a line whose message contains `text`.
#[track_caller]
fn wait_for(server: &Server, text: &str) -> Value {
    eventually(&format!("a line with {text:?}"), SOON, || {
        let log = server.log();
        // the last line may still be on its way
        let whole = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
        let has_text = |line: &Value| line["message"].as_str().is_some_and(|message| message.contains(text));
        lines(whole).into_iter().find(has_text).ok_or_else(|| log.clone())
    })
}

/// Sends a message that is logged, with an id.
fn send_test(server: &Server, id: &str, data: &str) {
    let body = json!({ "USER_ID": "u", "MAIN_DATA": { "TYPE": "TEST", "DATA": data } }).to_string();
    let answer = request(server.http, "POST", "/", &[("X-Request-Id", id)], body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn every_line_is_an_object_and_those_of_a_request_have_its_id() {
    let mut server = setup().start();
    send_test(&server, "one", "a\nline\u{1b}[31m\u{2028}");
    let line = wait_for(&server, "TEST from");
    assert_eq!((&line["level"], &line["request_id"]), (&json!("INFO"), &json!("one")), "{line}");
    send_test(&server, "two", "another");
    assert_eq!(wait_for(&server, "another")["request_id"], "two");
    let generated = request(server.http, "POST", "/", &[], br#"{"USER_ID":"u","MAIN_DATA":{"TYPE":"OTHER"}}"#);
    let id = generated.header("x-request-id").expect("an id").to_owned();
    let line = wait_for(&server, "unknown type");
    assert_eq!((&line["level"], &line["request_id"]), (&json!("WARN"), &json!(id)), "{line}");
    assert_eq!(server.stop().code(), Some(0));
    let lines = lines(&server.log());
    assert!(lines.iter().any(|line| line["message"] == "stopped"), "{lines:?}");
    for line in &lines {
        let of_request = line["message"].as_str().is_some_and(|text| text.contains(" from \"u\""));
        assert_eq!(line.get("request_id").is_some(), of_request, "{line}");
    }
}

#[test]
fn a_line_that_an_actor_writes_for_an_operator_has_the_id_of_the_request() {
    let server = setup().start();
    let order = br#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "job", "BUFFER_MSG": 1}}"#;
    assert_eq!(request(server.api, "POST", "/CommunicationInterface/AddBufferMsg", &[], order).status, 200);
    let id = [("X-Request-Id", "cleaning-up")];
    assert_eq!(request(server.api, "DELETE", "/admin/buffer/job", &id, b"").status, 204);
    let line = wait_for(&server, "is discarded by");
    assert_eq!(line["request_id"], "cleaning-up", "{line}");
    assert!(line["by"].as_str().is_some_and(|by| by.starts_with("127.0.0.1:")), "{line}");
}

#[test]
fn suppressed_lines_are_reported_as_json() {
    let mut server = setup().start();
    let body = json!({ "USER_ID": "u", "MAIN_DATA": { "TYPE": "TEST", "DATA": "x\ny" } }).to_string();
    let mut connection = Connection::open(server.http);
    for _ in 0..200 {
        assert_eq!(connection.request("POST", "/", &[], body.as_bytes()).status, 200);
    }
    assert_eq!(server.stop().code(), Some(0));
    let lines = lines(&server.log());
    let messages = || lines.iter().filter_map(|line| line["message"].as_str());
    let logged = messages().filter(|message| message.starts_with("TEST from")).count();
    let suppressed = messages().filter_map(|message| message.split_once(" lines like this were suppressed"));
    let suppressed: usize = suppressed.filter_map(|(number, _)| number.parse::<usize>().ok()).sum();
    assert_eq!(logged + suppressed, 200, "{lines:?}");
}

#[test]
fn a_start_that_fails_says_so_in_json() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    for (setup, code, text) in [
        (setup().args(["--api-bind", &address]), 1, "in use"),
        (setup().args(["--max-body", "much"]), 2, "expected a size"),
        (setup().args(["--no-such-flag"]), 2, "--no-such-flag"),
        (Setup::default().config("log-format = \"json\"\n").args(["--api-bind", &address]), 1, "in use"),
        (
            Setup::default().env("USER_HTTP_SERVER_LOG_FORMAT", "json").args(["--max-body", "much"]),
            2,
            "expected a size",
        ),
        (setup().env("RUST_LOG", "=/=").args(["--max-body", "much"]), 2, "expected a size"),
    ] {
        let (status, log) = setup.start_refused();
        assert_eq!(status.code(), Some(code), "{log}");
        let lines = lines(&log);
        let last = lines.last().unwrap_or_else(|| panic!("nothing is logged"));
        let message = last["message"].as_str().unwrap_or_default();
        assert!(last["level"] == "ERROR" && message.contains(text) && !message.starts_with("error"), "{log}");
    }
}

#[test]
fn a_format_that_there_is_not_is_refused() {
    let (status, log) = Setup::default().args(["--log-format", "xml"]).start_refused();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("--log-format \"xml\" on the command line: expected text or json"), "{log}");
}

#[test]
fn nothing_waits_for_a_reader_of_lines_of_json() {
    let mut server = setup().start();
    server.stop_reading_log();
    for number in 0..300 {
        send_test(&server, &number.to_string(), &"x".repeat(400));
    }
    server.terminate();
    let status = server.wait_for_exit(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{status}");
}
