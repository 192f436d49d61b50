//! The farm's services behind the exchange: what the communication interface cannot pass on to the user manager it
//! drops, so nothing is sent before both are back.

use serde_json::{Value, json};

use crate::harness::{
    AmqpFarm, Connection, FaultyBroker, SOON, Version, eventually, for_each_broker, holds, post_frame,
};

for_each_broker!(
    frames_posted_while_the_broker_restarts_reach_the_user_manager_whose_queue_is_awaited,
    frames_posted_while_the_broker_restarts_reach_the_user_manager_after_the_settling_time,
    frames_wait_for_a_user_manager_that_is_away,
);

const MANAGER_QUEUE: &str = "UME_COMMUNICATION_INTERFACE";
const FRAMES: usize = 20;
/// In seconds. The communication interface is back long before the user manager, which is when frames are lost.
const INTERFACE_CYCLE: f64 = 0.5;
const MANAGER_CYCLE: f64 = 5.0;

fn with_real_farm(url: &str, args: &[&str]) -> AmqpFarm {
    let mut amqp = AmqpFarm::with(url, &[&["--amqp-url", url], args].concat());
    amqp.wait_until("connected");
    amqp.call("real_farm_start", json!({ "interface_cycle": INTERFACE_CYCLE, "manager_cycle": MANAGER_CYCLE }));
    amqp
}

fn post(amqp: &AmqpFarm, numbers: std::ops::Range<usize>) {
    let mut worker = Connection::open(amqp.farm.http);
    numbers.for_each(|number| post_frame(&mut worker, number, 100));
}

/// Each of them reaches the user manager; some may do so twice.
#[track_caller]
fn receive_all(amqp: &mut AmqpFarm, numbers: std::ops::Range<usize>) {
    let mut missing: std::collections::BTreeSet<u64> = numbers.map(|number| number as u64).collect();
    while !missing.is_empty() {
        let frame = amqp.call("real_manager_next", json!({ "seconds": 30 }));
        let number = frame.as_u64().unwrap_or_else(|| panic!("{missing:?} have not come; {}", amqp.farm.log()));
        missing.remove(&number);
    }
}

#[track_caller]
fn wait_for(amqp: &AmqpFarm, what: &str) {
    eventually(&format!("frames wait for {what}"), SOON, || {
        let ready = amqp.farm.readyz();
        let waits = ready["waiting_for"].as_str().is_some_and(|waits| waits.contains(what)) && ready["ready"] == true;
        holds(waits, (ready, amqp.farm.log()))
    });
}

fn restart_under_frames(version: Version, rounds: usize, args: &[&str], waiting_for: &str) {
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let mut amqp = with_real_farm(&url, args);
    post(&amqp, 0..1);
    receive_all(&mut amqp, 0..1);
    for round in 0..rounds {
        let first = 1 + round * FRAMES;
        broker.kill9();
        post(&amqp, first..first + FRAMES / 2);
        broker.launch();
        post(&amqp, first + FRAMES / 2..first + FRAMES);
        receive_all(&mut amqp, first..first + FRAMES);
    }
    amqp.farm.wait_for_log(waiting_for);
    eventually("nothing is waited for", SOON, || {
        let ready = amqp.farm.readyz();
        holds(ready["waiting_for"] == Value::Null && ready["outbox"]["messages"] == 0, (ready, amqp.farm.log()))
    });
    amqp.call("real_farm_stop", json!({}));
}

fn frames_posted_while_the_broker_restarts_reach_the_user_manager_whose_queue_is_awaited(version: Version) {
    restart_under_frames(version, 3, &["--amqp-await-queue", MANAGER_QUEUE], MANAGER_QUEUE);
}

fn frames_posted_while_the_broker_restarts_reach_the_user_manager_after_the_settling_time(version: Version) {
    restart_under_frames(version, 1, &[], "--amqp-settle");
}

fn frames_wait_for_a_user_manager_that_is_away(version: Version) {
    let broker = FaultyBroker::of(version);
    let mut amqp = with_real_farm(&broker.url, &["--amqp-await-queue", MANAGER_QUEUE]);
    post(&amqp, 0..1);
    receive_all(&mut amqp, 0..1);
    amqp.call("real_manager_stop", json!({}));
    wait_for(&amqp, MANAGER_QUEUE);
    post(&amqp, 1..11);
    let held = &amqp.farm.readyz()["outbox"]["messages"];
    assert_eq!(held, 10);
    amqp.call("real_manager_start", json!({ "manager_cycle": MANAGER_CYCLE }));
    receive_all(&mut amqp, 1..11);
    amqp.call("real_farm_stop", json!({}));
}
