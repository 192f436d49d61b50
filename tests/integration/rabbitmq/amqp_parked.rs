//! Messages that the broker never accepts, and messages that the buffer has no capacity for.

use serde_json::{Value, json};

use crate::harness::{
    AmqpFarm, Arrivals, Broker, Connection, Farm, FaultyBroker, Proxy, SOON, Setup, Version, eventually,
    for_each_broker, holds, order, post_frame, request,
};

for_each_broker!(
    parked_messages_are_listed_through_a_kill_and_published_or_deleted,
    a_broker_keeps_what_the_buffer_has_no_capacity_for,
    messages_that_wait_for_capacity_use_up_no_delivery_limit,
    a_delivered_message_is_not_restored_when_its_acknowledgement_was_lost,
);

fn parked(farm: &Farm) -> Vec<Value> {
    let answer = request(farm.api, "GET", "/UserManager/Parked", &[], b"");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{answer:?}");
    answer.json().as_array().expect("a list").clone()
}

fn wait_for_parked(farm: &Farm, count: usize) -> Vec<Value> {
    eventually("messages are parked", SOON, || {
        let parked = parked(farm);
        if parked.len() == count { Ok(parked) } else { Err((parked, farm.log())) }
    })
}

fn id(message: &Value) -> &str {
    message["id"].as_str().expect("an id")
}

fn parked_messages_are_listed_through_a_kill_and_published_or_deleted(version: Version) {
    const LIMIT: usize = 1 << 20;
    let mut broker = FaultyBroker::of(version);
    broker.set_max_message_size(LIMIT);
    let mut amqp = AmqpFarm::at(&broker.url);
    amqp.user_manager();
    // all of them are taken before the broker refuses one
    broker.freeze();
    for (number, image) in [(0, 100), (1, LIMIT), (2, 100), (3, LIMIT + 5)] {
        post_frame(&mut Connection::open(amqp.farm.http), number, image);
    }
    broker.thaw();
    let listed = wait_for_parked(&amqp.farm, 2);
    for (message, image) in listed.iter().zip([LIMIT, LIMIT + 5]) {
        assert_eq!((&message["user"], &message["type"]), (&json!("worker-1"), &json!("FRAME_RENDERED")), "{message}");
        let size = message["size"].as_u64().expect("a number") as usize;
        assert!((image..image + 1_000).contains(&size), "{message}");
        assert!(message["reason"].as_str().is_some_and(|reason| reason.contains("406")), "{message}");
        assert!(message["since"].as_f64().is_some_and(|since| since > 1.6e9), "{message}");
    }
    let body = json!({ "USER_ID": "worker-1", "MAIN_DATA": { "TYPE": "FRAME_RENDERED", "DATA": "x".repeat(LIMIT) } });
    let headers = [("Content-Type", "application/json")];
    let refused = request(amqp.farm.http, "POST", "/", &headers, body.to_string().as_bytes()).failure(413);
    assert!(refused.contains(&LIMIT.to_string()) && refused.contains("broker"), "{refused}");
    let mut arrivals = Arrivals::in_any_order();
    for number in [0, 2] {
        arrivals.receive_all(&mut amqp, number..number + 1);
    }

    amqp.farm.server.kill9();
    amqp.farm.server.restart();
    amqp.wait_until("connected");
    assert_eq!(parked(&amqp.farm), listed, "the same through a restart");

    let publish = |farm: &Farm, id: &str| {
        request(farm.api, "POST", &format!("/UserManager/Parked/{id}/Publish"), &[], b"").status
    };
    let delete =
        |farm: &Farm, id: &str| request(farm.api, "DELETE", &format!("/UserManager/Parked/{id}"), &[], b"").status;
    // published too early, it is parked again
    assert_eq!(publish(&amqp.farm, id(&listed[0])), 200);
    eventually("it is parked again", SOON, || {
        let again = parked(&amqp.farm);
        holds(again.len() == 2 && again[0]["id"] == listed[0]["id"] && again[0]["since"] != listed[0]["since"], again)
    });
    broker.set_max_message_size(16 << 20);
    // the limit is read when a channel is opened
    broker.ctl(&["close_all_connections", "a larger limit"]);
    eventually("it has arrived", SOON, || {
        publish(&amqp.farm, id(&listed[0]));
        let ready = amqp.farm.readyz();
        holds(ready["outbox"]["messages"] == 1, (ready, amqp.farm.log()))
    });
    assert_eq!(delete(&amqp.farm, id(&listed[1])), 204);
    assert_eq!(parked(&amqp.farm), Vec::<Value>::new());
    for unknown in [id(&listed[0]), id(&listed[1]), "no-id"] {
        assert_eq!((publish(&amqp.farm, unknown), delete(&amqp.farm, unknown)), (404, 404), "{unknown}");
    }
    assert_eq!(amqp.farm.readyz()["outbox"]["bytes"], 0);
}

fn a_broker_keeps_what_the_buffer_has_no_capacity_for(version: Version) {
    const MESSAGES: usize = 100;
    let broker = Broker::of(version);
    let setup = Setup::default().args(["--amqp-url", &broker.url, "--max-buffered", "100KiB"]);
    let mut amqp = AmqpFarm { farm: Farm::of(setup), url: broker.url.clone() };
    amqp.wait_until_consuming();
    for number in 0..MESSAGES {
        amqp.publish_value(&order(&format!("id-{number}"), &format!("'{}'", "x".repeat(10_000))));
    }
    amqp.farm.server.wait_for_log("wait in the broker");
    let refused = request(
        amqp.farm.api,
        "POST",
        "/CommunicationInterface/AddBufferMsg",
        &[("Content-Type", "application/json")],
        format!(
            r#"{{"TYPE": "ADD_BUFFER_MSG", "DATA": {{"BUFFER_UUID": "http", "BUFFER_MSG": "{}"}}}}"#,
            "x".repeat(20_000)
        )
        .as_bytes(),
    );
    assert!(refused.status == 503 && refused.header("retry-after").is_some(), "{refused:?}");
    let held = amqp.farm.readyz()["buffer"]["bytes"].as_u64().expect("a number");
    assert!(held <= 100 << 10, "{held} bytes");
    for number in 0..MESSAGES {
        assert_eq!(amqp.fetch_when_there(&format!("id-{number}")).len(), 10_002);
    }
    broker.wait_until_all_is_acknowledged();
}

fn messages_that_wait_for_capacity_use_up_no_delivery_limit(version: Version) {
    const MESSAGES: usize = 6;
    let broker = Broker::of(version);
    let mut peer = crate::harness::Peer::get();
    let arguments = json!({ "x-queue-type": "quorum", "x-delivery-limit": 3 });
    let url = broker.url.as_str();
    peer.call("declare_queue", json!({ "url": url, "name": "UHTTPSE_CI", "durable": true, "arguments": arguments }));
    let mut amqp = AmqpFarm::with(url, &["--amqp-url", url, "--max-buffered", "64KiB"]);
    amqp.wait_until_consuming();
    for number in 0..MESSAGES {
        amqp.publish_value(&order(&format!("id-{number}"), &format!("'{}'", "x".repeat(20_000))));
    }
    let paused = |amqp: &AmqpFarm, paused: bool| {
        eventually("the consumer pauses", SOON, || {
            let ready = amqp.farm.readyz();
            holds(ready["consumer"]["paused"] == paused, (ready, amqp.farm.log()))
        });
    };
    paused(&amqp, true);
    for number in 0..MESSAGES {
        // the broker has them, and nobody takes them
        if number == 0 {
            amqp.wait_for_own_queue(0, 3);
        }
        assert_eq!(amqp.fetch_when_there(&format!("id-{number}")).len(), 20_002);
    }
    paused(&amqp, false);
    broker.wait_until_all_is_acknowledged();
}

fn a_delivered_message_is_not_restored_when_its_acknowledgement_was_lost(version: Version) {
    let broker = Broker::of(version);
    let proxy = Proxy::to(&broker.url);
    let mut amqp = AmqpFarm::behind(&proxy, &broker.url);
    amqp.lose_the_acknowledgement_of(&proxy, &order("id-1", "'once'"));
    assert_eq!(amqp.fetch_when_there("id-1"), "'once'");
    proxy.forward();
    amqp.wait_until_consuming();
    broker.wait_until_all_is_acknowledged();
    amqp.farm.expect_no_message("id-1");
    // left anew, it is another matter
    amqp.publish_value(&order("id-1", "'once'"));
    assert_eq!(amqp.fetch_when_there("id-1"), "'once'");
}
