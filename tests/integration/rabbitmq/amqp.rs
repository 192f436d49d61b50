//! AMQP 0-9-1, the contract's rows, with each version of RabbitMQ.

use serde_json::json;

use crate::harness::{
    AmqpFarm, Broker, Farm, SOON, Setup, Version, eventually, for_each_broker, forwarded, frame, hex, holds, order,
    request,
};

const PEER_EXCHANGE: &str = "COMMUNICATION_INTERFACE_EXCHANGE";
const OWN_EXCHANGE: &str = "USER_HTTP_SERVER_EXCHANGE";
const OWN_QUEUE: &str = "UHTTPSE_CI";
/// As the Python peer names it: the server must not know.
const PEER_QUEUE: &str = "CI_FROM_USER_HTTP_SERVER";

for_each_broker!(
    readyz_says_that_the_broker_is_connected,
    own_exchange_and_queue_are_declared_as_peers_declare_them,
    only_the_own_queue_is_declared,
    every_name_can_be_configured,
    a_consumed_json_message_is_buffered,
    a_consumed_pickle_is_buffered,
    consumed_messages_are_acknowledged_or_rejected_permanently,
    frame_rendered_is_published_as_a_pickle_with_the_header,
    render_completed_is_published_as_json_without_a_header,
    render_completed_without_a_json_form_is_published_as_a_pickle_with_the_header,
    messages_are_published_in_the_order_received,
    a_large_frame_is_published_whole,
    an_exchange_and_a_queue_that_exist_with_other_properties_are_used_as_they_are,
    messages_wait_for_a_peer_that_is_down_and_arrive_when_it_is_back,
    the_user_managers_http_calls_are_answered_409,
    what_amqp_carries_is_what_next_message_gives,
);

fn readyz_says_that_the_broker_is_connected(version: Version) {
    let amqp = AmqpFarm::start(version);
    let answer = request(amqp.farm.api, "GET", "/readyz", &[], b"");
    let json = answer.json();
    assert_eq!(
        (answer.status, &json["ready"], &json["broker"], &json["store"]),
        (200, &true.into(), &"connected".into(), &"ok".into())
    );
}

fn own_exchange_and_queue_are_declared_as_peers_declare_them(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    for name in [OWN_EXCHANGE, PEER_EXCHANGE] {
        let properties = json!({ "name": name, "type": "direct", "durable": false, "auto_delete": false });
        assert_eq!(amqp.call("exchange_is", properties), true, "{name}");
    }
    assert_eq!(amqp.call("queue_is", json!({ "name": OWN_QUEUE, "durable": true })), true);
    assert_eq!(amqp.call("queue_state", json!({ "name": OWN_QUEUE }))["consumers"], 1);
}

fn only_the_own_queue_is_declared(version: Version) {
    let broker = Broker::of(version);
    let _amqp = AmqpFarm::at(&broker.url);
    assert_eq!(
        broker.rabbitmq.ctl(&["list_queues", "-p", broker.vhost(), "--no-table-headers", "name"]).trim(),
        OWN_QUEUE
    );
}

fn every_name_can_be_configured(version: Version) {
    let url = Broker::of(version).url;
    let names =
        ["--amqp-exchange", "E", "--amqp-queue", "Q", "--amqp-publish-exchange", "P", "--amqp-routing-key", "K"];
    let farm = Farm::of(Setup::default().args(["--amqp-url", &url]).args(names));
    let mut amqp = AmqpFarm { farm, url };
    amqp.wait_until("connected");
    for name in ["E", "P"] {
        let properties = json!({ "name": name, "type": "direct", "durable": false, "auto_delete": false });
        assert_eq!(amqp.call("exchange_is", properties), true, "{name}");
    }
    assert_eq!(amqp.call("queue_state", json!({ "name": "Q" }))["consumers"], 1);
    assert!(amqp.call("queue_state", json!({ "name": OWN_QUEUE })).is_null());
}

fn a_consumed_json_message_is_buffered(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.publish(
        br#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "id-1", "BUFFER_MSG": {"z": NaN, "a": [1, null]}}}"#,
        false,
    );
    assert_eq!(amqp.fetch_when_there("id-1"), "{'z': nan, 'a': [1, None]}");
}

fn a_consumed_pickle_is_buffered(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    for protocol in 0..=5 {
        let body = amqp.farm.peer.dumps(&order("id-1", "{'z': b'\\xff', 'a': (1, {2})}"), protocol);
        amqp.publish(&body, true);
        assert_eq!(amqp.fetch_when_there("id-1"), "{'z': b'\\xff', 'a': (1, {2})}");
    }
    let body = amqp.farm.peer.dumps(&order("id-3", "b'\\xfe'"), 4);
    amqp.call("publish", json!({ "data": hex(&body), "pickled": "bytes" }));
    assert_eq!(amqp.fetch_when_there("id-3"), "b'\\xfe'");
    amqp.farm.blend_file("scene.blend", b"the file");
    amqp.publish_value(&order(
        "id-2",
        "{'DATA': {'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'BINARY_BLEND_FILE': 'scene.blend'}}",
    ));
    assert!(amqp.fetch_when_there("id-2").contains("b'the file'"));
}

fn consumed_messages_are_acknowledged_or_rejected_permanently(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    let unknown = "{'TYPE': 'DANCE', 'DATA': {'BUFFER_UUID': 'bad', 'BUFFER_MSG': 1}}";
    let pickle = amqp.farm.peer.dumps(&order("bad", "1"), 4);
    for (body, pickled) in [
        (b"no json".as_slice(), false),
        (b"", false),
        (b"\x80\x04cos\nsystem\n.", true),
        (b"{\"TYPE\": \"ADD_BUFFER_MSG\", \"DATA\": {\"BUFFER_UUID\": 7, \"BUFFER_MSG\": 1}}", false),
        (pickle.as_slice(), false),
        (b"{\"TYPE\": \"ADD_BUFFER_MSG\", \"DATA\": {\"BUFFER_UUID\": \"bad\", \"BUFFER_MSG\": 1}}", true),
    ] {
        amqp.publish(body, pickled);
    }
    amqp.publish_value(unknown);
    amqp.publish(unknown.replace('\'', "\"").as_bytes(), false);
    amqp.publish_value(&order("good", "'after them'"));
    assert_eq!(amqp.fetch_when_there("good"), "'after them'");
    amqp.farm.expect_no_message("bad");
    amqp.farm.wait_for_log("Unknown message type");
    let log = amqp.farm.log();
    let rejection = log.lines().find(|line| line.contains("Unknown message type")).expect("a line");
    for part in ["message-id", "bytes", "DATA_FORMAT \"BYTES\""] {
        assert!(rejection.contains(part), "{part}: {rejection}");
    }
    // A message that is neither acknowledged nor rejected returns to the queue when its consumer ends.
    amqp.farm.kill9();
    let left = eventually("the queue is without a consumer", SOON, || {
        let state = amqp.call("queue_state", json!({ "name": OWN_QUEUE }));
        if state["consumers"] == 0 { Ok(state) } else { Err(state) }
    });
    assert_eq!(left["messages"], 0);
}

fn frame_rendered_is_published_as_a_pickle_with_the_header(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    amqp.farm.post(&frame("FRAME_RENDERED", "{'FRAME': 1, 'IMAGE': b'\\x89PNG', 'z': (1,)}"));
    amqp.farm.post_json(&frame("FRAME_RENDERED", "[1]"));
    for data in ["{'FRAME': 1, 'IMAGE': b'\\x89PNG', 'z': (1,)}", "[1]"] {
        let message = amqp.receive();
        assert_eq!(message["value"], forwarded("FRAME_RENDERED", data));
        assert_eq!((&message["pickled"], &message["persistent"]), (&json!(true), &json!(true)), "{message}");
        assert!(message["message_id"].as_str().is_some_and(|id| !id.is_empty()), "{message}");
    }
}

fn render_completed_is_published_as_json_without_a_header(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    amqp.farm.post(&frame("RENDER_COMPLETED", "{'z': (1, 2), 'a': 'ä'}"));
    let message = amqp.receive();
    let data = "{'z': [1, 2], 'a': 'ä'}";
    assert_eq!(message["value"], forwarded("RENDER_COMPLETED", data));
    assert_eq!((&message["headers"], &message["persistent"]), (&json!([]), &json!(true)), "{message}");
    assert!(message["message_id"].as_str().is_some_and(|id| !id.is_empty()), "{message}");
}

fn render_completed_without_a_json_form_is_published_as_a_pickle_with_the_header(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    for data in ["b'bytes'", "nan", "{1: 2}", "[({1},)]"] {
        amqp.farm.post(&frame("RENDER_COMPLETED", data));
        let message = amqp.receive();
        assert_eq!(message["value"], forwarded("RENDER_COMPLETED", data));
        assert_eq!((&message["pickled"], &message["persistent"]), (&json!(true), &json!(true)), "{message}");
    }
}

fn messages_are_published_in_the_order_received(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    for number in 0..200 {
        let kind = if number % 3 == 0 { "RENDER_COMPLETED" } else { "FRAME_RENDERED" };
        amqp.farm.post(&frame(kind, &number.to_string()));
    }
    let mut ids = std::collections::BTreeSet::new();
    for number in 0..200 {
        let message = amqp.receive();
        assert!(
            message["value"].as_str().is_some_and(|value| value.contains(&format!("'DATA': {number}, "))),
            "{number}: {message}"
        );
        assert!(ids.insert(message["message_id"].to_string()), "twice: {message}");
    }
}

fn a_large_frame_is_published_whole(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    let data = "bytes(range(256)) * 32_768";
    amqp.farm.post(&frame("FRAME_RENDERED", data));
    let message = amqp.receive();
    let expected = amqp.farm.peer.show(&forwarded("FRAME_RENDERED", data));
    assert!(message["value"] == expected, "8 MiB");
}

fn an_exchange_and_a_queue_that_exist_with_other_properties_are_used_as_they_are(version: Version) {
    let broker = Broker::of(version);
    let mut peer = crate::harness::Peer::get();
    let url = broker.url.as_str();
    peer.call("declare_exchange", json!({ "url": url, "name": PEER_EXCHANGE, "type": "topic", "durable": true }));
    let limited = json!({ "url": url, "name": OWN_QUEUE, "durable": true, "arguments": { "x-max-length": 1000 } });
    peer.call("declare_queue", limited.clone());

    let mut amqp = AmqpFarm::at(url);
    amqp.farm.wait_for_log(OWN_QUEUE);
    assert!(amqp.farm.log().contains("WARN"), "{}", amqp.farm.log());
    amqp.call("user_manager_start", json!({ "exchange_as_it_is": true }));
    amqp.farm.post(&frame("FRAME_RENDERED", "1"));
    assert_eq!(amqp.receive()["value"], forwarded("FRAME_RENDERED", "1"));
    amqp.publish_value(&order("id-1", "'through it'"));
    assert_eq!(amqp.fetch_when_there("id-1"), "'through it'");
    assert_eq!(peer.call("queue_is", limited), true);
}

fn messages_wait_for_a_peer_that_is_down_and_arrive_when_it_is_back(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    for number in 0..5 {
        amqp.farm.post(&frame("FRAME_RENDERED", &number.to_string()));
    }
    for round in 0..2 {
        amqp.user_manager();
        for number in 0..5 {
            let message = amqp.receive();
            assert!(
                message["value"].as_str().is_some_and(|value| value.contains(&format!("'DATA': {number}, "))),
                "{round}: {message}"
            );
        }
        amqp.call("user_manager_stop", json!({}));
        eventually("its queue is deleted with it", SOON, || {
            let state = amqp.call("queue_state", json!({ "name": PEER_QUEUE }));
            holds(state.is_null(), state)
        });
        for number in 0..5 {
            amqp.farm.post(&frame("FRAME_RENDERED", &number.to_string()));
        }
    }
    assert_eq!(amqp.farm.readyz()["ready"], true);
}

fn the_user_managers_http_calls_are_answered_409(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.farm.post(&frame("FRAME_RENDERED", "1"));
    let id = "/UserManager/Messages/00000000-0000-4000-8000-000000000000";
    for (method, path) in
        [("GET", "/UserManager/NextMessage"), ("GET", "/UserManager/NextMessage?wait=60"), ("DELETE", id)]
    {
        let error = request(amqp.farm.api, method, path, &[], b"").failure(409);
        assert!(error.to_uppercase().contains("AMQP") || error.contains("broker"), "says why: {error}");
    }
}

fn what_amqp_carries_is_what_next_message_gives(version: Version) {
    let mut amqp = AmqpFarm::start(version);
    amqp.user_manager();
    let mut embedded = Farm::of(Setup::default());
    for (kind, data) in [
        ("FRAME_RENDERED", "{'IMAGE': b'\\x00' * 1000, 'a': [1.5, None, 'ä']}"),
        ("RENDER_COMPLETED", "{'z': (1, 2.0, 'ä\\n'), 'a': 10 ** 30}"),
        ("RENDER_COMPLETED", "{1, 2}"),
    ] {
        for protocol in 0..=5 {
            let body = embedded.peer.dumps(&frame(kind, data), protocol);
            for to in [amqp.farm.http, embedded.http] {
                assert_eq!(
                    request(to, "POST", "/", &[("Content-Type", "application/octet-stream")], &body).status,
                    200
                );
            }
            assert_eq!(amqp.receive()["body"], hex(&embedded.take().body), "{kind}, protocol {protocol}");
        }
    }
}
