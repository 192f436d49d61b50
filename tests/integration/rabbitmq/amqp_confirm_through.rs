//! Frames that the broker confirms before they are stored, and `--frame-ack broker`.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::harness::{
    AmqpFarm, Arrivals, Broker, Connection, Farm, FaultyBroker, Response, SOON, Server, Setup, Version, eventually,
    files_below, for_each_broker, holds, io_bytes, post_frame, request, send_frame, try_send_frame,
};

for_each_broker!(
    what_a_healthy_broker_confirms_is_not_written,
    a_kill_loses_nothing_that_was_acknowledged_while_the_broker_confirms,
    a_kill_loses_nothing_that_was_acknowledged_while_the_broker_is_frozen,
    on_a_full_disk_frames_are_refused_while_the_broker_is_frozen_and_taken_while_it_confirms,
    without_a_confirm_frames_are_refused_if_only_the_broker_answers,
    what_was_stored_before_is_forwarded_in_order_if_only_the_broker_answers,
);

/// Such a body is in a file while it arrives.
const IMAGE: usize = 2 << 20;

/// Bytes that the process has caused to be written to a disk.
fn written(server: &Server) -> u64 {
    let number = |name| io_bytes(server.pid(), name);
    number("write_bytes").saturating_sub(number("cancelled_write_bytes"))
}

fn outbox_bytes(server: &Server) -> u64 {
    files_below(&server.setup().data_dir().join("outbox")).iter().map(|(_, len)| len).sum()
}

fn what_a_healthy_broker_confirms_is_not_written(version: Version) {
    const FRAMES: usize = 20;
    const ALLOWED: u64 = (FRAMES * IMAGE / 10) as u64;
    let mut amqp = AmqpFarm::start(version);
    let mut arrivals = amqp.first_frames(1);
    let mut posted = 1;
    // on a busy machine the broker may be silent for a second, and then frames are written
    let mut rounds = Vec::new();
    while rounds.last().is_none_or(|&(process, outbox)| process > ALLOWED || outbox > ALLOWED) {
        assert!(rounds.len() < 10, "bytes written for {} bytes of frames: {rounds:?}", FRAMES * IMAGE);
        let before = (written(&amqp.farm), outbox_bytes(&amqp.farm));
        let mut worker = Connection::open(amqp.farm.http);
        (posted..posted + FRAMES).for_each(|number| post_frame(&mut worker, number, IMAGE));
        posted += FRAMES;
        rounds.push((written(&amqp.farm) - before.0, outbox_bytes(&amqp.farm).saturating_sub(before.1)));
    }
    arrivals.receive_all(&mut amqp, 1..posted);
    let ready = amqp.farm.readyz();
    assert_eq!((&ready["outbox"]["messages"], &ready["outbox"]["unstored"]), (&json!(0), &json!(0)), "{ready}");
}

/// Posts frames with the next numbers until the server does not answer any more. Returns the number of the last one,
/// which has no answer.
fn post_until_the_end(to: &Server, next: &AtomicUsize) -> usize {
    let mut worker = Connection::open(to.http);
    loop {
        let number = next.fetch_add(1, Ordering::SeqCst);
        let image = if number.is_multiple_of(8) { IMAGE } else { 50_000 };
        match try_send_frame(&mut worker, number, image, None) {
            Ok(answer) => assert_eq!(answer.status, 200, "{answer:?}"),
            Err(_) => return number,
        }
    }
}

fn a_kill_loses_nothing_that_was_acknowledged_while_the_broker_confirms(version: Version) {
    const WORKERS: usize = 4;
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    let next = AtomicUsize::new(0);
    let mut arrivals = Arrivals::in_any_order();
    for _ in 0..5 {
        let goal = next.load(Ordering::SeqCst) + 60;
        let unanswered: Vec<usize> = std::thread::scope(|scope| {
            let post = || post_until_the_end(&amqp.farm, &next);
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(post)).collect();
            eventually("frames are posted", SOON, || {
                let begun = next.load(Ordering::SeqCst);
                holds(begun > goal, begun)
            });
            amqp.farm.signal("KILL");
            workers.into_iter().map(|worker| worker.join().expect("no other answer than 200")).collect()
        });
        // each of these has arrived, or it has not
        arrivals.lost.extend(unanswered);
        amqp.farm.kill9();
        amqp.farm.server.restart();
        amqp.wait_until_consuming();
        arrivals.receive_all(&mut amqp, 0..next.load(Ordering::SeqCst));
    }
}

fn a_kill_loses_nothing_that_was_acknowledged_while_the_broker_is_frozen(version: Version) {
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::at(&url);
    let mut arrivals = amqp.first_frames(5);
    broker.freeze();
    amqp.post_frames(5..25);
    amqp.farm.kill9();
    broker.thaw();
    amqp.farm.server.restart();
    amqp.wait_until_consuming();
    arrivals.receive_all(&mut amqp, 5..25);
}

/// Posts a frame of which a disk of 48 MiB has space for five. The connection is made when all is ready to be sent.
fn send_large(to: &Server, number: usize) -> Response {
    let image = "x".repeat(8 << 20);
    let data = format!(r#"{{ "FRAME": {number}, "IMAGE": "{image}" }}"#);
    let body = format!(r#"{{ "USER_ID": "worker-1", "MAIN_DATA": {{ "TYPE": "FRAME_RENDERED", "DATA": {data} }} }}"#);
    request(to.http, "POST", "/", &[("Content-Type", "application/json")], body.as_bytes())
}

fn on_a_full_disk_frames_are_refused_while_the_broker_is_frozen_and_taken_while_it_confirms(version: Version) {
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let setup = Setup::on_a_small_disk().args(["--amqp-url", &url, "--amqp-settle", "0"]);
    let mut amqp = AmqpFarm { farm: Farm::of(setup), url };
    amqp.wait_until_consuming();
    let mut arrivals = amqp.first_frames(1);
    broker.freeze();
    let mut accepted = 1..1;
    let refused = loop {
        let answer = send_large(&amqp.farm, accepted.end);
        if answer.status != 200 {
            break answer;
        }
        accepted.end += 1;
        assert!(accepted.end < 10, "the disk is full by now");
    };
    assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true), "{refused:?}");
    assert!(accepted.end > 2, "some have space: {accepted:?}");
    broker.thaw();
    // the broker has maybe been given the refused one
    arrivals.lost.insert(accepted.end);
    arrivals.receive_all(&mut amqp, accepted.clone());
    eventually("the outbox is empty", SOON, || {
        let ready = amqp.farm.readyz();
        holds(ready["outbox"]["messages"] == 0, (ready, amqp.farm.log()))
    });
    let more = accepted.end + 1..accepted.end + 10;
    for number in more.clone() {
        let answer = send_large(&amqp.farm, number);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    arrivals.receive_all(&mut amqp, more);
}

/// A frame is answered 503 for one of these reasons.
#[track_caller]
fn assert_not_confirmed(to: &Server, number: usize, reasons: &[&str]) {
    let answer = send_frame(&mut Connection::open(to.http), number, 100);
    let retry_after = answer.header("retry-after").and_then(|seconds| seconds.parse::<u32>().ok());
    assert!(retry_after.is_some_and(|seconds| (1..=10).contains(&seconds)), "{answer:?}");
    let error = answer.failure(503);
    let is_expected = reasons.iter().any(|reason| error.contains(reason));
    assert!(error.contains("not confirmed") && is_expected, "{error}; log:\n{}", to.log());
}

/// Posts frames of these numbers until one is answered 200. Returns its number.
#[track_caller]
fn post_until_confirmed(to: &Server, mut numbers: Range<usize>) -> usize {
    eventually("a frame is confirmed", SOON, || {
        let number = numbers.next().expect("numbers");
        let answer = send_frame(&mut Connection::open(to.http), number, 100);
        if answer.status == 200 { Ok(number) } else { Err((answer, to.log())) }
    })
}

fn without_a_confirm_frames_are_refused_if_only_the_broker_answers(version: Version) {
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::with(&url, &["--amqp-url", &url, "--amqp-settle", "0", "--frame-ack", "broker"]);
    amqp.wait_until_consuming();
    // those that are refused may arrive all the same
    let mut arrivals = Arrivals::default();
    arrivals.lost.extend(0..200_001);
    assert_not_confirmed(&amqp.farm, 0, &["refused or returned"]);
    amqp.user_manager();
    let confirmed = post_until_confirmed(&amqp.farm, 1..100_000);
    while arrivals.receive(&mut amqp) != confirmed {}

    broker.freeze();
    // a slow machine may lose the connection by now
    let reasons = ["does not answer", "no connection"];
    assert_not_confirmed(&amqp.farm, 100_000, &reasons);
    assert_not_confirmed(&amqp.farm, 100_001, &reasons);
    broker.thaw();
    let confirmed = post_until_confirmed(&amqp.farm, 100_002..200_000);
    while arrivals.receive(&mut amqp) != confirmed {}

    broker.kill9();
    amqp.wait_until("disconnected");
    assert_not_confirmed(&amqp.farm, 200_000, &["no connection"]);
    let ready = amqp.farm.readyz();
    assert_eq!((&ready["outbox"]["messages"], &ready["outbox"]["bytes"]), (&json!(0), &json!(0)), "{ready}");
    assert_eq!(
        (&ready["ready"], &ready["frames_refused"]),
        (&json!(true), &json!("there is no connection")),
        "{ready}"
    );
    assert!(outbox_bytes(&amqp.farm) <= 1 << 20, "nothing but what an empty store has");
    broker.launch();
}

fn what_was_stored_before_is_forwarded_in_order_if_only_the_broker_answers(version: Version) {
    const BEFORE: Range<usize> = 0..10;
    let url = Broker::of(version).url;
    let mut amqp = AmqpFarm::at(&url);
    // nobody takes them
    amqp.post_frames(BEFORE);
    amqp.farm.kill9();
    let data_dir = amqp.farm.server.setup().data_dir();
    let data_dir = data_dir.to_str().expect("UTF-8");
    let args = ["--amqp-url", &url, "--amqp-settle", "0", "--frame-ack", "broker", "--data-dir", data_dir];
    let mut after = AmqpFarm::with(&url, &args);
    after.wait_until_consuming();
    after.user_manager();
    let mut arrivals = Arrivals::default();
    arrivals.receive_all(&mut after, BEFORE);
    after.post_frames(BEFORE.end..BEFORE.end + 5);
    arrivals.receive_all(&mut after, BEFORE.end..BEFORE.end + 5);
}
