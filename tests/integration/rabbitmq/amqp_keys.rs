//! Frames with idempotency keys, while the server is killed: each reaches the user manager under one `message-id`.
//!
//! `TEST_KEY_KILLS` sets how often it is killed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::Rng;

use crate::harness::{
    AmqpFarm, Arrivals, Connection, Response, SOON, Server, Version, eventually, for_each_broker, holds, try_send_frame,
};
use crate::kill::from_environment;

for_each_broker!(kills_in_the_middle_of_posts_lose_nothing_and_lead_to_no_second_message_id,);

const KILLS: u64 = 3;

const WORKERS: usize = 4;

/// More frames than a worker posts.
const NUMBERS: usize = 1_000_000;

fn post(worker: &mut Connection, number: usize) -> std::io::Result<Response> {
    let image = if number.is_multiple_of(8) { 1_500_000 } else { 20_000 };
    try_send_frame(worker, number, image, Some(("Idempotency-Key", &format!("frame {number}"))))
}

/// Posts frames until the server does not answer any more. The one that was not answered is the next one to be posted.
fn post_until_the_end(to: &Server, next: &AtomicUsize) {
    let Ok(mut worker) = Connection::try_open(to.http) else { return };
    while let Ok(answer) = post(&mut worker, next.load(Ordering::SeqCst)) {
        assert_eq!(answer.status, 200, "{answer:?}");
        next.fetch_add(1, Ordering::SeqCst);
    }
}

fn kills_in_the_middle_of_posts_lose_nothing_and_lead_to_no_second_message_id(version: Version) {
    let kills = from_environment("TEST_KEY_KILLS").unwrap_or(KILLS);
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    let mut arrivals = Arrivals::in_any_order();
    let next: Vec<AtomicUsize> = (0..WORKERS).map(|worker| AtomicUsize::new(worker * NUMBERS)).collect();
    let mut received: Vec<usize> = (0..WORKERS).map(|worker| worker * NUMBERS).collect();
    let (mut replays, mut retries) = (0, 0);
    for _ in 0..kills {
        let goal = next[0].load(Ordering::SeqCst) + 5;
        let server = &amqp.farm.server;
        std::thread::scope(|scope| {
            for next in &next {
                scope.spawn(|| post_until_the_end(server, next));
            }
            eventually("frames are acknowledged", SOON, || {
                let count = next[0].load(Ordering::SeqCst);
                holds(count >= goal, count)
            });
            std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..50)));
            server.signal("KILL");
        });
        amqp.farm.kill9();
        amqp.farm.server.restart();
        amqp.wait_until_consuming();
        let mut worker = Connection::open(amqp.farm.http);
        for next in &next {
            let number = next.fetch_add(1, Ordering::SeqCst);
            // the one that was not answered, and the last one that was
            let answer = post(&mut worker, number).expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
            retries += 1;
            replays += usize::from(answer.header("idempotency-replayed").is_some());
            if let Some(answered) = number.checked_sub(1).filter(|answered| answered % NUMBERS < NUMBERS / 2) {
                let answer = post(&mut worker, answered).expect("an answer");
                assert_eq!((answer.status, answer.header("idempotency-replayed")), (200, Some("true")), "{answer:?}");
            }
        }
        for (received, next) in received.iter_mut().zip(&next) {
            let end = next.load(Ordering::SeqCst);
            // each arrival has the id of the first one of its number
            arrivals.receive_all(&mut amqp, *received..end);
            *received = end;
        }
    }
    let frames: usize = received.iter().enumerate().map(|(worker, end)| end - worker * NUMBERS).sum();
    println!("{kills} kills, {frames} frames, {replays} of {retries} unanswered requests were accepted");
}
