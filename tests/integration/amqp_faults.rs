//! A broker that is away, goes, and comes back; and a server that is killed meanwhile.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::json;

use crate::amqp::AmqpFarm;
use crate::harness::{Farm, FaultyBroker, Version, eventually, for_each_broker, frame, holds, order, request};

for_each_broker!(
    the_server_starts_and_takes_work_while_the_broker_is_away_and_it_flows_later,
    a_restart_of_the_broker_is_survived_in_both_directions,
    frames_in_the_outbox_of_a_killed_server_arrive_after_its_restart,
    a_broker_that_blocks_is_told_and_what_was_taken_meanwhile_arrives_later,
);

/// Receives until every one of these frames has come at least once; checks that first arrivals are in order, and that
/// repeats carry the same `message-id`.
#[track_caller]
fn receive_all(amqp: &mut AmqpFarm, numbers: Range<usize>) {
    let mut ids = BTreeMap::new();
    while ids.len() < numbers.len() {
        let message = amqp.receive();
        let value = message["value"].as_str().and_then(|value| value.split_once("{'FRAME': ")?.1.split('}').next());
        let number: usize =
            value.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no frame: {message}"));
        let next = numbers.start + ids.len();
        let id = ids.entry(number).or_insert_with(|| {
            assert_eq!(number, next, "out of order");
            message["message_id"].clone()
        });
        assert_eq!(*id, message["message_id"], "frame {number} has come again");
    }
}

#[track_caller]
fn post(farm: &mut Farm, numbers: Range<usize>) {
    for number in numbers {
        farm.post(&frame("FRAME_RENDERED", &format!("{{'FRAME': {number}}}")));
    }
}

fn the_server_starts_and_takes_work_while_the_broker_is_away_and_it_flows_later(version: Version) {
    let mut broker = FaultyBroker::of(version);
    broker.kill9();
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::away(&url);
    let ready = request(amqp.farm.api, "GET", "/readyz", &[], b"");
    let json = ready.json();
    assert_eq!(
        (ready.status, &json["ready"], &json["broker"]),
        (200, &json!(true), &json!("disconnected")),
        "{ready:?}"
    );
    amqp.farm.leave("id-1", "'served'");
    assert_eq!(amqp.farm.fetch_value("id-1"), "'served'");
    post(&mut amqp.farm, 0..10);

    broker.launch();
    amqp.wait_until("connected");
    amqp.user_manager();
    receive_all(&mut amqp, 0..10);
    amqp.publish_value(&order("id-2", "'consumed'"));
    assert_eq!(amqp.fetch_when_there("id-2"), "'consumed'");
}

fn a_restart_of_the_broker_is_survived_in_both_directions(version: Version) {
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::at(&url);
    amqp.user_manager();
    post(&mut amqp.farm, 0..10);
    receive_all(&mut amqp, 0..10);

    broker.kill9();
    amqp.wait_until("disconnected");
    post(&mut amqp.farm, 10..20);
    broker.launch();
    amqp.wait_until("connected");
    amqp.user_manager();
    post(&mut amqp.farm, 20..30);
    receive_all(&mut amqp, 10..30);
    eventually("the server consumes again", crate::harness::SOON, || {
        let state = amqp.call("queue_state", json!({ "name": "UHTTPSE_CI" }));
        holds(state["consumers"] == 1, state)
    });
    amqp.publish_value(&order("id-1", "'consumed'"));
    assert_eq!(amqp.fetch_when_there("id-1"), "'consumed'");
}

fn frames_in_the_outbox_of_a_killed_server_arrive_after_its_restart(version: Version) {
    let mut broker = FaultyBroker::of(version);
    broker.kill9();
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::away(&url);
    post(&mut amqp.farm, 0..10);
    amqp.farm.kill9();
    amqp.farm.server.restart();
    post(&mut amqp.farm, 10..12);
    amqp.farm.kill9();
    broker.launch();
    amqp.farm.server.restart();
    amqp.wait_until("connected");
    amqp.user_manager();
    receive_all(&mut amqp, 0..12);
}

fn a_broker_that_blocks_is_told_and_what_was_taken_meanwhile_arrives_later(version: Version) {
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::at(&url);
    amqp.user_manager();
    post(&mut amqp.farm, 0..1);
    receive_all(&mut amqp, 0..1);
    broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    // The broker blocks a connection when it next publishes.
    post(&mut amqp.farm, 1..2);
    amqp.wait_until("blocked");
    post(&mut amqp.farm, 2..10);
    assert_eq!(request(amqp.farm.api, "GET", "/readyz", &[], b"").status, 200);
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    amqp.wait_until("connected");
    receive_all(&mut amqp, 1..10);
}
