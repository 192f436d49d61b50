//! The user manager without a broker: `/UserManager/NextMessage` and `/UserManager/Messages/{Message-Id}`.

use std::time::{Duration, Instant};

use crate::harness::{Connection, Farm, SOON, eventually, frame, request};

fn numbered(number: usize) -> String {
    frame("FRAME_RENDERED", &format!("{{'FRAME': {number}}}"))
}

fn number_of(value: &str) -> usize {
    let (_, rest) = value.split_once("'FRAME': ").unwrap_or_else(|| panic!("no frame's number: {value}"));
    rest.split('}').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn next_message_gives_a_pickle_with_its_headers() {
    let mut farm = Farm::start();
    farm.post(&numbered(1));
    let message = farm.next("wait=30").expect("a message");
    assert_eq!(message.content_type, "application/octet-stream");
    assert_eq!(message.data_format.as_deref(), Some("BYTES"));
    assert_eq!(message.delivery_count, "1");
    assert!(!message.id.is_empty());
}

#[test]
fn next_message_gives_json_without_the_header_data_format() {
    let mut farm = Farm::start();
    farm.post(&frame("RENDER_COMPLETED", "[1]"));
    let message = farm.next("wait=30").expect("a message");
    assert_eq!(message.content_type, "application/json");
    assert_eq!(message.data_format, None);
    assert_eq!(
        message.value,
        "{'TYPE': 'MESSAGE_FOR_USER_MANAGER', 'DATA': {'TYPE': 'USER_MESSAGE', 'DATA': \
         {'TYPE': 'RENDER_COMPLETED', 'DATA': [1], 'MESSAGE': [1], 'USER_ID': 'worker-1'}}}"
    );
}

#[test]
fn messages_come_oldest_first() {
    let mut farm = Farm::start();
    for number in 0..50 {
        farm.post(&numbered(number));
    }
    let numbers: Vec<usize> = (0..50).map(|_| number_of(&farm.take().value)).collect();
    assert_eq!(numbers, (0..50).collect::<Vec<_>>());
}

#[test]
fn a_message_under_lease_is_not_given_to_another() {
    let mut farm = Farm::start();
    farm.post(&numbered(1));
    farm.post(&numbered(2));
    let first = farm.next("").expect("a message");
    let second = farm.next("lease=60").expect("a message");
    assert_eq!((number_of(&first.value), number_of(&second.value)), (1, 2));
    assert_ne!(first.id, second.id);
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn a_lease_of_zero_seconds_shows_the_oldest_message_and_takes_nothing() {
    let mut farm = Farm::start();
    assert!(farm.next("lease=0").is_none());
    farm.post(&numbered(1));
    farm.post(&numbered(2));
    let shown = farm.next("lease=0").expect("a message");
    assert_eq!((number_of(&shown.value), shown.delivery_count.as_str()), (1, "0"), "not leased yet");
    let path = "/UserManager/NextMessage?lease=60";
    let head = request(farm.api, "HEAD", path, &[], b"");
    assert_eq!((head.status, head.content_length()), (200, shown.body.len() as u64), "{head:?}");
    assert_eq!(head.header("message-id"), Some(shown.id.as_str()), "{head:?}");
    let leased = farm.next("lease=60").expect("nobody has it");
    assert_eq!((leased.id, leased.body, leased.delivery_count.as_str()), (shown.id, shown.body, "1"));
    let next = farm.next("lease=0").expect("the other message");
    assert_eq!(number_of(&next.value), 2, "one under lease is not shown");
    let taken = farm.take();
    assert_eq!(taken.id, next.id, "looking leased none");
    farm.expect_nothing_for_the_user_manager();
    assert_eq!(request(farm.api, "HEAD", path, &[], b"").status, 204);
}

#[test]
fn a_wait_or_a_lease_out_of_bounds_is_an_error() {
    let mut farm = Farm::start();
    farm.post(&numbered(1));
    for query in
        ["lease=-1", "lease=86401", "lease=x", "lease=", "lease=NaN", "lease=0&lease=0", "wait=61", "wait=-0.1"]
    {
        for method in ["GET", "HEAD"] {
            let answer = request(farm.api, method, &format!("/UserManager/NextMessage?{query}"), &[], b"");
            assert_eq!(answer.status, 400, "{method} {query}: {answer:?}");
        }
        let name = query.split('=').next().expect("a name");
        assert!(farm.next_answer(query).failure(400).contains(name), "{query}");
    }
    assert_eq!(number_of(&farm.take().value), 1, "none of these has taken it");
}

#[test]
fn a_message_whose_lease_has_ended_is_offered_again_with_its_id_and_a_greater_count() {
    let mut farm = Farm::start();
    farm.post(&numbered(1));
    farm.post(&numbered(2));
    let first = farm.next("lease=1").expect("a message");
    let leased = Instant::now();
    assert_eq!(number_of(&farm.next("lease=60").expect("a message").value), 2);
    for count in ["2", "3"] {
        let again = farm.next("wait=30&lease=1").expect("the message again");
        assert_eq!((again.id.as_str(), again.delivery_count.as_str()), (first.id.as_str(), count));
        assert_eq!(again.body, first.body);
    }
    assert!(leased.elapsed() >= Duration::from_millis(1900), "two leases of a second: {:?}", leased.elapsed());
}

#[test]
fn no_message_is_answered_204_at_once_or_after_the_wait() {
    let farm = Farm::start();
    let answer = request(farm.api, "GET", "/UserManager/NextMessage", &[], b"");
    assert_eq!((answer.status, answer.body.len()), (204, 0), "{answer:?}");
    for (query, least) in [("wait=0", 0), ("wait=1", 1), ("wait=2&lease=5", 2)] {
        let start = Instant::now();
        let answer = request(farm.api, "GET", &format!("/UserManager/NextMessage?{query}"), &[], b"");
        assert_eq!(answer.status, 204, "{query}: {answer:?}");
        assert!(start.elapsed() >= Duration::from_secs(least), "{query}: after {:?}", start.elapsed());
    }
}

#[test]
fn a_waiting_call_is_answered_as_soon_as_a_message_comes() {
    let mut farm = Farm::start();
    let mut waiting = Connection::open(farm.api);
    waiting.send_head("GET", "/UserManager/NextMessage?wait=60", &[]);
    farm.post(&numbered(1));
    let posted = Instant::now();
    let answer = waiting.read_response();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(posted.elapsed() < Duration::from_secs(10), "after {:?}", posted.elapsed());
}

#[test]
fn a_message_for_a_call_that_has_hung_up_goes_to_the_next_in_time() {
    let mut farm = Farm::start();
    for number in 0..10 {
        let mut waiting = Connection::open(farm.api);
        waiting.send_head("GET", "/UserManager/NextMessage?wait=60&lease=1", &[]);
        drop(waiting);
        farm.post(&numbered(number));
        assert_eq!(number_of(&farm.take().value), number);
    }
}

#[test]
fn a_done_message_is_removed_and_its_id_unknown() {
    let mut farm = Farm::start();
    farm.post(&numbered(1));
    let message = farm.next("lease=1").expect("a message");
    let answer = request(farm.api, "DELETE", &format!("/UserManager/Messages/{}", message.id), &[], b"");
    assert_eq!((answer.status, answer.body.len()), (204, 0), "{answer:?}");
    assert_eq!(farm.delete(&message.id), 404, "a second time");
    assert!(farm.next("wait=2").is_none(), "not offered again after its lease");
}

#[test]
fn an_unknown_message_is_answered_404() {
    let mut farm = Farm::start();
    farm.post(&numbered(1));
    for id in ["00000000-0000-4000-8000-000000000000", "no-uuid", "1"] {
        let answer = request(farm.api, "DELETE", &format!("/UserManager/Messages/{id}"), &[], b"");
        answer.failure(404);
    }
    assert_eq!(number_of(&farm.take().value), 1, "the other message stays");
}

#[test]
fn a_message_whose_lease_has_ended_can_still_be_done_with() {
    let mut farm = Farm::start();
    farm.post(&numbered(1));
    let first = farm.next("lease=1").expect("a message");
    eventually("the message is offered again", SOON, || farm.next("wait=1&lease=60").ok_or("not yet"));
    assert_eq!(farm.delete(&first.id), 204);
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn a_large_frame_arrives_byte_for_byte() {
    let mut farm = Farm::start();
    let data = "bytes(range(256)) * 200_000";
    farm.post(&frame("FRAME_RENDERED", data));
    let message = farm.next("wait=30").expect("a message");
    let pattern: Vec<u8> = (0..=255).cycle().take(51_200_000).collect();
    let at = message.body.windows(8).position(|part| part == &pattern[..8]).expect("the image");
    assert!(message.body[at..at + pattern.len()] == pattern, "the image's bytes");
}
