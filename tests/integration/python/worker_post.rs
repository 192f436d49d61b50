//! `POST /` on the workers' server.

use std::time::SystemTime;

use serde_json::json;

use crate::harness::{Connection, Farm, SOON, Server, Setup, eventually, forwarded, frame, holds, request};

const PICKLE: &str = "application/octet-stream";
const JSON: &str = "application/json";

#[test]
fn a_received_message_is_answered_with_the_time() {
    let mut farm = Farm::start();
    for kind in ["FRAME_RENDERED", "RENDER_COMPLETED", "TEST", "SOMETHING_ELSE"] {
        let body = farm.peer.dumps(&frame(kind, "{'n': 1}"), 4);
        let answer = farm.post_bytes(PICKLE, &body);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert_eq!(answer.status, 200, "{kind}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some(JSON));
        let json = answer.json();
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(2), "{answer:?}");
        assert_eq!(json["DATA"], "RECEIVED", "{kind}");
        assert!(json["TIME"].is_f64(), "{kind}: a float, as Python's time.time() is: {answer:?}");
        let time = json["TIME"].as_f64().expect("a float");
        assert!((now - time).abs() < 60.0, "{kind}: {time} is not about {now}");
    }
}

#[test]
fn time_is_a_float_in_python() {
    let mut farm = Farm::start();
    let answer = farm.peer.answer("post_json", json!({ "url": farm.server.worker_url(), "value": frame("TEST", "1") }));
    let (_, time) = answer.value.split_once("'TIME': ").expect("TIME");
    assert!(time.contains('.'), "{answer:?}");
}

#[test]
fn frame_rendered_is_forwarded_as_a_pickle() {
    let mut farm = Farm::start();
    let data = "{'FRAME': 7, 'IMAGE': b'\\x89PNG\\x00', 'z': (1, {2}), 'a': None}";
    farm.post(&frame("FRAME_RENDERED", data));
    farm.post_json(&frame("FRAME_RENDERED", "{'FRAME': 8, 'z': [1.5, None], 'a': ''}"));
    let pickled = farm.take();
    assert_eq!(pickled.value, forwarded("FRAME_RENDERED", data));
    assert_eq!(pickled.content_type, PICKLE);
    assert_eq!(pickled.data_format.as_deref(), Some("BYTES"));
    let json = farm.take();
    assert_eq!(json.value, forwarded("FRAME_RENDERED", "{'FRAME': 8, 'z': [1.5, None], 'a': ''}"));
    assert_eq!(json.content_type, PICKLE);
}

#[test]
fn render_completed_is_forwarded_as_json() {
    let mut farm = Farm::start();
    for data in ["{'z': [1, 2.5, True, None], 'a': {'ä€😀': 10 ** 30}}", "'done'", "None", "[]", "-0.0", "1e300"] {
        farm.post(&frame("RENDER_COMPLETED", data));
        farm.post_json(&frame("RENDER_COMPLETED", data));
        let expected = farm.peer.show(&forwarded("RENDER_COMPLETED", data));
        for _ in 0..2 {
            let message = farm.take();
            assert_eq!(message.value, expected);
            assert_eq!((message.content_type.as_str(), message.data_format), (JSON, None));
        }
    }
}

#[test]
fn render_completed_without_a_json_form_is_forwarded_as_a_pickle() {
    let mut farm = Farm::start();
    for data in [
        "b'bytes'",
        "bytearray(b'bytes')",
        "{1, 2}",
        "frozenset([1])",
        "nan",
        "-inf",
        "{1: 2}",
        "{'a': [{None: 1}]}",
        "[(b'x',)]",
        "{True: 1}",
    ] {
        farm.post(&frame("RENDER_COMPLETED", data));
        let message = farm.take();
        let expected = farm.peer.show(&forwarded("RENDER_COMPLETED", data));
        assert_eq!(message.value, expected);
        assert_eq!((message.content_type.as_str(), message.data_format.as_deref()), (PICKLE, Some("BYTES")), "{data}");
    }
    let body = br#"{"USER_ID": "worker-1", "MAIN_DATA": {"TYPE": "RENDER_COMPLETED", "DATA": [NaN, -Infinity]}}"#;
    assert_eq!(farm.post_bytes(JSON, body).status, 200);
    let message = farm.take();
    assert_eq!(message.value, forwarded("RENDER_COMPLETED", "[nan, -inf]"));
    assert_eq!(message.content_type, PICKLE);
}

#[test]
fn a_tuple_in_render_completed_becomes_a_json_list() {
    let mut farm = Farm::start();
    farm.post(&frame("RENDER_COMPLETED", "(1, ('x', ()), [(2,)])"));
    let message = farm.take();
    assert_eq!(message.value, forwarded("RENDER_COMPLETED", "[1, ['x', []], [[2]]]"));
    assert_eq!(message.content_type, JSON);
}

#[test]
fn test_is_logged_and_not_forwarded() {
    let mut farm = Farm::start();
    farm.post(&frame("TEST", "{'note': 'hello from a worker'}"));
    farm.post_json(&frame("TEST", "'and again'"));
    farm.wait_for_log("hello from a worker");
    farm.wait_for_log("and again");
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn any_other_type_is_logged_and_not_forwarded() {
    let mut farm = Farm::start();
    farm.post(&frame("DANCE", "{'step': 1}"));
    farm.post_json(&frame("frame_rendered", "1"));
    farm.wait_for_log("DANCE");
    farm.wait_for_log("frame_rendered");
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn nothing_from_outside_forges_a_log_line() {
    let mut farm = Farm::start();
    for kind in ["TEST", "A\\n[2026-01-01T00:00:00Z ERROR forged] line\\r\\n\\x1b[31m"] {
        farm.post(&format!(
            "{{'USER_ID': 'u\\nforged user', 'MAIN_DATA': {{'TYPE': '{kind}', 'DATA': 'd\\nforged data'}}}}"
        ));
    }
    farm.post(&frame("TEST", "'the end'"));
    farm.wait_for_log("the end");
    for line in farm.log().lines() {
        assert!(!line.starts_with("forged") && !line.starts_with("[2026-01-01T00:00:00Z ERROR forged"), "{line}");
        assert!(!line.contains('\x1b') && !line.contains('\r'), "{line}");
    }
}

#[test]
fn the_content_type_decides_with_parameters_allowed_and_case_ignored() {
    let mut farm = Farm::start();
    let pickle = farm.peer.dumps(&frame("FRAME_RENDERED", "b'pickle'"), 4);
    for content_type in [
        "application/octet-stream",
        "application/octet-stream; charset=binary",
        "Application/Octet-Stream",
        "APPLICATION/OCTET-STREAM;x=y",
        "application/octet-stream ; x=\"a;b\"",
    ] {
        let answer = farm.post_bytes(content_type, &pickle);
        assert_eq!(answer.status, 200, "{content_type}: {answer:?}");
        assert_eq!(farm.take().value, forwarded("FRAME_RENDERED", "b'pickle'"), "{content_type}");
    }
    let json = br#"{"USER_ID": "worker-1", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": "json"}}"#;
    for content_type in
        ["application/json", "Application/JSON; charset=utf-8", "text/plain", "application/octet-stream2", "x"]
    {
        let answer = farm.post_bytes(content_type, json);
        assert_eq!(answer.status, 200, "{content_type}: {answer:?}");
        assert_eq!(farm.take().value, forwarded("FRAME_RENDERED", "'json'"), "{content_type}");
        farm.post_bytes(content_type, &pickle).failure(400);
    }
    let answer = request(farm.http, "POST", "/", &[], json);
    assert_eq!(answer.status, 200, "without a Content-Type: {answer:?}");
    assert_eq!(farm.take().value, forwarded("FRAME_RENDERED", "'json'"));
    farm.post_bytes(PICKLE, json).failure(400);
}

#[test]
fn other_keys_and_any_order_of_keys_are_taken() {
    let mut farm = Farm::start();
    let body =
        "{'x': [1], 'MAIN_DATA': {'DATA': [1], 'y': {2}, 'TYPE': 'FRAME_RENDERED'}, 'USER_ID': 'worker-1', 'z': b''}";
    farm.post(body);
    assert_eq!(farm.take().value, forwarded("FRAME_RENDERED", "[1]"));
}

#[test]
fn what_is_no_envelope_is_refused_with_what_is_wrong() {
    let mut farm = Farm::start();
    let main = "{'TYPE': 'FRAME_RENDERED', 'DATA': 1}";
    for (value, named) in [
        (format!("{{'MAIN_DATA': {main}}}"), "USER_ID"),
        (format!("{{'USER_ID': 7, 'MAIN_DATA': {main}}}"), "USER_ID"),
        (format!("{{'USER_ID': None, 'MAIN_DATA': {main}}}"), "USER_ID"),
        ("{'USER_ID': 'u'}".to_owned(), "MAIN_DATA"),
        ("{'USER_ID': 'u', 'MAIN_DATA': []}".to_owned(), "MAIN_DATA"),
        ("{'USER_ID': 'u', 'MAIN_DATA': 'x'}".to_owned(), "MAIN_DATA"),
        ("{'USER_ID': 'u', 'MAIN_DATA': {'DATA': 1}}".to_owned(), "TYPE"),
        ("{'USER_ID': 'u', 'MAIN_DATA': {'TYPE': 1, 'DATA': 1}}".to_owned(), "TYPE"),
        ("{'USER_ID': 'u', 'MAIN_DATA': {'TYPE': None, 'DATA': 1}}".to_owned(), "TYPE"),
        ("[]".to_owned(), ""),
        ("'text'".to_owned(), ""),
        ("None".to_owned(), ""),
        ("{}".to_owned(), "USER_ID"),
    ] {
        for (what, more) in [
            ("post_json", json!({})),
            ("post_pickle", json!({ "protocol": 4 })),
            ("post_pickle", json!({ "protocol": 0 })),
        ] {
            let mut arguments = json!({ "url": farm.server.worker_url(), "value": value });
            arguments.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
            let answer = farm.peer.answer(what, arguments);
            assert_eq!(answer.status, 400, "{what} {value}: {answer:?}");
            assert!(answer.value.starts_with("{'STATUS': 'FAILED', 'ERROR': '"), "{what} {value}: {answer:?}");
            assert!(answer.value.contains(named), "{what} {value}: no {named} in {answer:?}");
        }
    }
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn what_is_no_json_or_pickle_is_refused() {
    let mut farm = Farm::start();
    for body in [
        b"".as_slice(),
        b"{",
        b"no json",
        b"{\"USER_ID\": \"u\", \"MAIN_DATA\": {\"TYPE\": \"TEST\"}} more",
        b"\xff\xfe\xfd",
        b"\0",
    ] {
        farm.post_bytes(JSON, body).failure(400);
        farm.post_bytes(PICKLE, body).failure(400);
    }
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn a_body_larger_than_the_limit_is_answered_413_declared_or_in_chunks() {
    let mut farm = Farm::with(&["--max-body", "1MiB"]);
    for chunked in [false, true] {
        for size in [(1 << 20) + 1, 8 << 20] {
            let arguments = json!({ "url": farm.server.worker_url(), "size": size, "chunked": chunked });
            let answer = farm.peer.answer("post_size", arguments);
            assert_eq!(answer.status, 413, "{size} bytes, chunked: {chunked}: {answer:?}");
            assert!(answer.value.starts_with("{'STATUS': 'FAILED', 'ERROR': '"), "{answer:?}");
        }
    }
    farm.post(&frame("FRAME_RENDERED", "bytes(1000_000)"));
}

#[test]
fn a_body_that_declares_too_much_is_refused_before_it_is_sent() {
    let server = Server::with(&["--max-body", "1MiB"]);
    let mut connection = Connection::open(server.http);
    connection.send_head(
        "POST",
        "/",
        &[("Content-Type", PICKLE), ("Content-Length", "1048577"), ("Expect", "100-continue")],
    );
    connection.read_response().failure(413);
}

/// Posts frames until one is refused, and checks its answer; the frame, and how many were taken.
#[track_caller]
fn fill(farm: &mut Farm, len: usize, at_most: usize) -> (Vec<u8>, usize) {
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", &format!("bytes({len})")), 4);
    let mut accepted = 0;
    let refused = loop {
        let answer = farm.post_bytes(PICKLE, &body);
        if answer.status != 200 {
            break answer;
        }
        accepted += 1;
        assert!(accepted <= at_most, "{accepted} frames of {len} bytes were taken");
    };
    refused.failure(503);
    let after: u64 = refused.header("retry-after").and_then(|text| text.parse().ok()).expect("Retry-After in seconds");
    assert!(after > 0 && accepted > 0, "{accepted} frames were taken, then: {refused:?}");
    (body, accepted)
}

/// Deletes all frames, and checks that the refused one then fits.
#[track_caller]
fn empty(farm: &mut Farm, (body, accepted): (Vec<u8>, usize)) {
    for _ in 0..accepted {
        let message = farm.next_answer("wait=30");
        assert_eq!(farm.delete(message.header("message-id").expect("a message")), 204);
    }
    farm.expect_nothing_for_the_user_manager();
    eventually("there is capacity again", SOON, || {
        let answer = farm.post_bytes(PICKLE, &body);
        holds(answer.status == 200, answer)
    });
}

#[test]
fn a_full_outbox_is_answered_503_with_retry_after_until_it_has_capacity() {
    let mut farm = Farm::with(&["--max-outbox", "1MiB"]);
    let filled = fill(&mut farm, 200_000, 5);
    farm.leave("id-1", "'goes on'");
    assert_eq!(farm.fetch_value("id-1"), "'goes on'");
    empty(&mut farm, filled);
}

/// These tests mount a file system.
mod mounts {
    use super::*;

    #[test]
    fn a_full_disk_is_answered_503_with_retry_after_until_there_is_space() {
        // A disk of its own, and a small one, that goes with the process.
        let setup = Setup::default();
        let disk = setup.path("disk");
        std::fs::create_dir(&disk).expect("a mount point");
        let mount = format!("mount -t tmpfs -o size=96m none {} && exec \"$@\"", disk.display());
        let data_dir = disk.join("data");
        let setup = setup
            .wrapper(&["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"])
            .args(["--data-dir", data_dir.to_str().expect("UTF-8")]);
        let mut farm = Farm::of(setup);
        let filled = fill(&mut farm, 4_000_000, 25);
        let ready = request(farm.api, "GET", "/readyz", &[], b"");
        assert_eq!((ready.status, &ready.json()["store"]), (503, &"full".into()), "{ready:?}");
        empty(&mut farm, filled);
        assert_eq!(farm.readyz()["store"], "ok");
    }
}
