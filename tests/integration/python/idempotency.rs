//! `Idempotency-Key` on `POST /`: a retry is answered as the first request was, and forwarded only once.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{Answer, Connection, Farm, Response, SOON, Setup, eventually, frame, holds, request};

const PICKLE: (&str, &str) = ("Content-Type", "application/octet-stream");

/// A worker posts a message with Python's `requests`. Returns the answer, and whether it is a replay.
#[track_caller]
fn post(farm: &mut Farm, value: &str, key: &str) -> (Answer, bool) {
    let url = farm.worker_url();
    let answer = farm.peer.answer("post_with_key", json!({ "url": url, "value": value, "protocol": 5, "key": key }));
    let replayed = answer.headers.get("idempotency-replayed").map(String::as_str);
    assert!(matches!(replayed, None | Some("true")), "{answer:?}");
    let is_replay = replayed.is_some();
    (answer, is_replay)
}

/// The first answer to a message.
#[track_caller]
fn post_first(farm: &mut Farm, value: &str, key: &str) -> Answer {
    let (answer, is_replay) = post(farm, value, key);
    assert_eq!((answer.status, is_replay), (200, false), "{answer:?}");
    answer
}

#[track_caller]
fn expect_replay(farm: &mut Farm, value: &str, key: &str, first: &Answer) {
    let (answer, is_replay) = post(farm, value, key);
    assert_eq!((answer.status, is_replay, &answer.value), (200, true, &first.value), "{answer:?}");
}

#[track_caller]
fn expect_reused(farm: &mut Farm, value: &str, key: &str) {
    let (answer, is_replay) = post(farm, value, key);
    assert_eq!((answer.status, is_replay), (422, false), "{answer:?}");
    assert!(answer.value.contains("Idempotency-Key was used") && answer.value.contains("FAILED"), "{answer:?}");
}

fn keys(farm: &Farm) -> u64 {
    farm.readyz()["outbox"]["idempotency_keys"].as_u64().expect("a number")
}

#[test]
fn a_retry_gets_the_first_answer_and_its_message_is_forwarded_once_across_kills() {
    let mut farm = Farm::start();
    let values = ["FRAME_RENDERED", "RENDER_COMPLETED", "TEST", "SOMETHING_ELSE"].map(|kind| frame(kind, "{'n': 1}"));
    // the second one is uploaded into a file
    let values = [values.to_vec(), vec![frame("FRAME_RENDERED", "bytes(3_000_000)")]].concat();
    let first: Vec<Answer> =
        values.iter().enumerate().map(|(at, value)| post_first(&mut farm, value, &format!("key {at}"))).collect();
    for round in 0..3 {
        for (at, (value, first)) in values.iter().zip(&first).enumerate() {
            expect_replay(&mut farm, value, &format!("key {at}"), first);
            expect_reused(&mut farm, &frame("FRAME_RENDERED", "'other'"), &format!("key {at}"));
        }
        assert_eq!(keys(&farm), 5);
        if round == 0 {
            let ready = farm.readyz();
            assert_eq!((&ready["outbox"]["test_total"], &ready["outbox"]["unknown_total"]), (&json!(1), &json!(1)));
            assert_eq!(farm.server.log().matches("TEST from").count(), 1);
            (0..3).for_each(|_| drop(farm.take()));
        }
        farm.expect_nothing_for_the_user_manager();
        if round == 0 {
            farm.server.kill9();
        } else {
            farm.server.stop();
        }
        farm.server.restart();
    }
}

#[test]
fn keys_of_different_users_and_requests_without_a_key_are_independent() {
    let mut farm = Farm::start();
    let of = |user: &str| frame("FRAME_RENDERED", "1").replace("worker-1", user);
    let first = post_first(&mut farm, &of("anna"), "7");
    post_first(&mut farm, &of("bert"), "7");
    post_first(&mut farm, &of("anna"), "8");
    expect_replay(&mut farm, &of("anna"), "7", &first);
    for _ in 0..2 {
        farm.post(&of("anna"));
    }
    (0..5).for_each(|_| drop(farm.take()));
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn a_key_survives_that_its_message_is_deleted_and_is_kept_in_memory_without_a_data_directory() {
    for setup in [Setup::default(), Setup::default().args(["--memory"])] {
        let mut farm = Farm::of(setup);
        let value = frame("FRAME_RENDERED", "1");
        let first = post_first(&mut farm, &value, "7");
        expect_replay(&mut farm, &value, "7", &first);
        farm.take();
        expect_replay(&mut farm, &value, "7", &first);
        farm.expect_nothing_for_the_user_manager();
    }
}

/// Posts a body with these lines of the header.
fn post_lines(farm: &Farm, body: &[u8], keys: &[&str]) -> Response {
    let mut headers = vec![PICKLE];
    headers.extend(keys.iter().map(|key| ("Idempotency-Key", *key)));
    request(farm.http, "POST", "/", &headers, body)
}

#[test]
fn what_is_no_key_is_refused_with_what_would_be_right() {
    let mut farm = Farm::start();
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "1"), 4);
    let too_long = "k".repeat(256);
    for keys in [&[""][..], &["  "], &[&too_long], &["caf\u{e9}"], &["a\tb"], &["7", "7"], &["7", "8"]] {
        let error = post_lines(&farm, &body, keys).failure(400);
        assert!(
            error.contains("Idempotency-Key must be given once, with 1 to 255 printable ASCII"),
            "{keys:?}: {error}"
        );
    }
    farm.expect_nothing_for_the_user_manager();
    let longest = "k".repeat(255);
    for (key, same) in [(longest.as_str(), "k"), ("  a b ", "a b"), ("\"7\"", "\"7\""), ("~", "~"), ("a,b", "a,b")] {
        let same = if same == "k" { longest.as_str() } else { same };
        let first = post_lines(&farm, &body, &[key]);
        assert_eq!((first.status, first.header("idempotency-replayed")), (200, None), "{key:?}: {first:?}");
        let again = post_lines(&farm, &body, &[same]);
        assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")), "{key:?}: {again:?}");
        assert_eq!(again.body, first.body);
        farm.take();
    }
    // quotes are a part of it
    assert_eq!(post_lines(&farm, &body, &["7"]).header("idempotency-replayed"), None);
    farm.take();
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn a_failure_is_not_remembered() {
    let mut farm = Farm::with(&["--max-outbox", "1MiB", "--max-body", "10MiB"]);
    let large = frame("FRAME_RENDERED", "bytes(2_000_000)");
    let (answer, _) = post(&mut farm, &large, "7");
    assert_eq!(answer.status, 503, "{answer:?}");
    let broken = post_lines(&farm, b"no pickle", &["7"]);
    broken.failure(400);
    assert_eq!(keys(&farm), 0);
    let first = post_first(&mut farm, &frame("FRAME_RENDERED", "1"), "7");
    expect_reused(&mut farm, &large, "7");
    expect_replay(&mut farm, &frame("FRAME_RENDERED", "1"), "7", &first);
}

#[test]
fn of_simultaneous_requests_with_a_key_one_is_forwarded_and_all_get_its_answer() {
    let mut farm = Farm::start();
    for (number, size) in [(0, 100), (1, 40_000), (2, 2_000_000)] {
        let body = farm.peer.dumps(&frame("FRAME_RENDERED", &format!("bytes({size})")), 5);
        let key = format!("key {number}");
        let answers: Vec<Response> = std::thread::scope(|scope| {
            let posting: Vec<_> = (0..8).map(|_| scope.spawn(|| post_lines(&farm, &body, &[&key]))).collect();
            posting.into_iter().map(|posting| posting.join().expect("an answer")).collect()
        });
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        let firsts = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_none()).count();
        let bodies: BTreeSet<_> = answers.iter().map(|answer| &answer.body).collect();
        assert_eq!((firsts, bodies.len()), (1, 1), "{answers:?}");
        farm.take();
        farm.expect_nothing_for_the_user_manager();
    }
}

#[test]
fn a_client_that_hangs_up_leaves_its_key_free_or_its_message_accepted() {
    let mut farm = Farm::start();
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(10_000)"), 5);
    let length = body.len().to_string();
    let headers = [PICKLE, ("Content-Length", length.as_str()), ("Idempotency-Key", "7")];
    let mut unfinished = Connection::open(farm.http);
    unfinished.send_head("POST", "/", &headers);
    unfinished.send(&body[..5_000]);
    let complete = post_lines(&farm, &body, &["7"]);
    assert_eq!((complete.status, complete.header("idempotency-replayed")), (200, None), "it waits for nobody");
    unfinished.send(&body[5_000..]);
    let late = unfinished.read_response();
    assert_eq!((late.status, late.header("idempotency-replayed")), (200, Some("true")), "{late:?}");
    assert_eq!(late.body, complete.body);
    farm.take();
    // it hangs up when everything is sent
    let mut gone = Connection::open(farm.http);
    gone.send_head("POST", "/", &[headers[0], headers[1], ("Idempotency-Key", "8")]);
    gone.send(&body);
    eventually("the message is accepted", SOON, || holds(keys(&farm) == 2, farm.readyz()));
    drop(gone);
    assert_eq!(post_lines(&farm, &body, &["8"]).header("idempotency-replayed"), Some("true"));
    farm.take();
    farm.expect_nothing_for_the_user_manager();
}
