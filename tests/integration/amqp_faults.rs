//! A broker that is away, goes, and comes back; and a server that is killed meanwhile.

use std::collections::BTreeSet;

use serde_json::json;

use crate::amqp::AmqpFarm;
use crate::harness::{Farm, FaultyBroker, Version, eventually, for_each_broker, frame, holds, order, request};

for_each_broker!(
    the_server_starts_and_takes_work_while_the_broker_is_away_and_it_flows_later,
    a_restart_of_the_broker_is_survived_in_both_directions,
    frames_in_the_outbox_of_a_killed_server_arrive_after_its_restart,
);

fn frames(numbers: std::ops::Range<usize>) -> BTreeSet<usize> {
    numbers.collect()
}

/// Receives until every one of these frames has come at least once; checks that first arrivals are in order.
#[track_caller]
fn receive_all(amqp: &mut AmqpFarm, mut missing: BTreeSet<usize>) {
    while let Some(&lowest) = missing.first() {
        let message = amqp.receive();
        let number = message["value"]
            .as_str()
            .and_then(|value| value.split_once("{'FRAME': ")?.1.split('}').next()?.parse().ok());
        let number = number.unwrap_or_else(|| panic!("no frame: {message}"));
        if missing.remove(&number) {
            assert_eq!(number, lowest, "out of order");
        }
    }
}

#[track_caller]
fn post(farm: &mut Farm, numbers: std::ops::Range<usize>) {
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
    receive_all(&mut amqp, frames(0..10));
    amqp.publish_value(&order("id-2", "'consumed'"));
    assert_eq!(amqp.fetch_when_there("id-2"), "'consumed'");
}

fn a_restart_of_the_broker_is_survived_in_both_directions(version: Version) {
    let mut broker = FaultyBroker::of(version);
    let url = broker.url.clone();
    let mut amqp = AmqpFarm::at(&url);
    amqp.user_manager();
    post(&mut amqp.farm, 0..10);
    receive_all(&mut amqp, frames(0..10));

    broker.kill9();
    amqp.wait_until("disconnected");
    post(&mut amqp.farm, 10..20);
    broker.launch();
    amqp.wait_until("connected");
    amqp.user_manager();
    post(&mut amqp.farm, 20..30);
    receive_all(&mut amqp, frames(10..30));
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
    receive_all(&mut amqp, frames(0..12));
}
