//! Queues and exchanges that are deleted, and made anew, while the server uses them.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    AmqpFarm, Arrivals, Broker, Peer, Posting, SOON, Version, eventually, for_each_broker, holds, order,
};

const PEER_EXCHANGE: &str = "COMMUNICATION_INTERFACE_EXCHANGE";
const PEER_QUEUE: &str = "CI_FROM_USER_HTTP_SERVER";
const OWN_QUEUE: &str = "UHTTPSE_CI";

for_each_broker!(
    frames_flow_in_order_soon_after_the_user_managers_queue_is_made_again,
    the_own_queue_is_declared_and_consumed_again_whenever_it_is_deleted,
    an_exchange_of_another_type_is_used_as_it_is,
    an_exchange_that_is_replaced_by_one_of_another_type_under_load_is_used_as_it_is,
);

fn frames_flow_in_order_soon_after_the_user_managers_queue_is_made_again(version: Version) {
    /// By then the pauses between two attempts are the longest, and one has just begun.
    const AWAY: Duration = Duration::from_millis(3_300);
    const FLOWS: Duration = Duration::from_secs(10);
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    let posting = Posting::start(amqp.farm.http);
    let mut arrivals = Arrivals::default();
    arrivals.receive_all(&mut amqp, 0..30);
    amqp.call("delete_queue", json!({ "name": PEER_QUEUE }));
    let deleted = Instant::now();
    // A queue takes with it what it has not delivered yet, and the broker confirms that. Of what is posted from now on
    // nothing may be missing.
    let last_lost = posting.begun();
    arrivals.lost = (30..last_lost).collect();
    eventually("frames wait", SOON, || {
        let ready = amqp.farm.readyz();
        let held = ready["outbox"]["messages"].as_u64().is_some_and(|held| held > 100);
        holds(held && deleted.elapsed() > AWAY, (ready, amqp.farm.log()))
    });
    amqp.user_manager();
    let back = Instant::now();
    while arrivals.receive(&mut amqp) < last_lost {}
    let flows = back.elapsed();
    posting.wait_for_more(50);
    let posted = posting.finish();
    arrivals.receive_all(&mut amqp, 0..posted);
    println!("flows {flows:?} after the queue's return; {} went with the queue", arrivals.lost());
    assert!(flows < FLOWS, "flows only {flows:?} after the queue's return");
}

fn the_own_queue_is_declared_and_consumed_again_whenever_it_is_deleted(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    let posting = Posting::start(amqp.farm.http);
    for round in 1..=3 {
        amqp.wait_for_own_queue(1, 0);
        amqp.call("delete_queue", json!({ "name": OWN_QUEUE }));
        eventually("the consumer learns of it", SOON, || {
            let log = amqp.farm.log();
            holds(log.matches("its queue has been deleted").count() == round, log)
        });
        amqp.wait_for_own_queue(1, 0);
        let uuid = format!("id-{round}");
        amqp.publish_value(&order(&uuid, "'consumed'"));
        assert_eq!(amqp.fetch_when_there(&uuid), "'consumed'");
    }
    assert_eq!(amqp.call("queue_is", json!({ "name": OWN_QUEUE, "durable": true })), true);
    let posted = posting.finish();
    Arrivals::default().receive_all(&mut amqp, 0..posted);
    assert!(!amqp.farm.log().contains("no connection to the broker"), "the publisher has not been disturbed");
}

fn an_exchange_of_another_type_is_used_as_it_is(version: Version) {
    for kind in ["fanout", "topic"] {
        let url = Broker::of(version).url;
        let properties = json!({ "url": url, "name": PEER_EXCHANGE, "type": kind });
        Peer::get().call("declare_exchange", properties.clone());
        let mut amqp = AmqpFarm::at(&url);
        amqp.call("user_manager_start", json!({ "exchange_as_it_is": true }));
        amqp.post_frames(0..10);
        Arrivals::default().receive_all(&mut amqp, 0..10);
        assert_eq!(amqp.call("exchange_is", properties), true, "{kind}");
    }
}

fn an_exchange_that_is_replaced_by_one_of_another_type_under_load_is_used_as_it_is(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    let posting = Posting::start(amqp.farm.http);
    // What is published while the queue is not bound yet comes back.
    let mut arrivals = Arrivals::in_any_order();
    for kind in ["fanout", "topic", "direct"] {
        posting.wait_for_more(30);
        amqp.call("replace_exchange", json!({ "name": PEER_EXCHANGE, "type": kind }));
        let replaced = posting.begun();
        posting.wait_for_more(30);
        arrivals.receive_all(&mut amqp, 0..replaced + 20);
        assert_eq!(amqp.call("exchange_is", json!({ "name": PEER_EXCHANGE, "type": kind })), true, "{kind}");
    }
    let posted = posting.finish();
    arrivals.receive_all(&mut amqp, 0..posted);
}
