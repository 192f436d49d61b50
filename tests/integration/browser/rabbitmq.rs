//! The status page with RabbitMQ: parked messages and their buttons, and a broker that goes away.

use crate::harness::{AmqpFarm, Connection, FaultyBroker, Page, SOON, Version, eventually, holds, post_frame, request};

#[test]
fn parked_messages_are_published_and_discarded_and_a_broker_that_goes_away_is_reported() {
    const LIMIT: usize = 1 << 20;
    let mut broker = FaultyBroker::of(Version::Debian);
    broker.set_max_message_size(LIMIT);
    let mut amqp = AmqpFarm::at(&broker.url);
    amqp.user_manager();
    let page = Page::open(&amqp.farm.api_url("/"));
    page.wait_for(&["All is well", "with a broker", "Connected for"]);
    // both are taken before the broker refuses one
    broker.freeze();
    for number in [0, 1] {
        post_frame(&mut Connection::open(amqp.farm.http), number, LIMIT);
    }
    broker.thaw();
    page.wait_for(&["2 messages are parked", "FRAME_RENDERED", "worker-1", "406"]);
    page.assert_accessible();
    // the list may be of a moment when only one was parked
    page.wait_for(&["Parked messages 2"]);

    page.click("Discard message");
    page.wait_for(&["Discard this message?", "cannot be brought back"]);
    page.assert_accessible();
    assert_eq!(page.evaluate("document.activeElement.textContent"), "Keep it");
    page.press("Enter");
    page.wait_until_without("Discard this message?");
    assert_eq!(parked(&amqp), 2, "kept");
    page.click("Discard message");
    page.click("Discard it");
    page.wait_for(&["discarded.", "1 message is parked"]);
    assert_eq!(parked(&amqp), 1);

    broker.set_max_message_size(16 << 20);
    // the limit is read when a channel is opened
    broker.ctl(&["close_all_connections", "a larger limit"]);
    eventually("the message is published", SOON, || {
        // on the old connection, it is parked again
        if parked(&amqp) > 0 {
            page.click("Publish message");
        }
        let outbox = amqp.farm.readyz()["outbox"].clone();
        holds(outbox["messages"] == 0, outbox)
    });
    page.wait_for(&["handed to the broker again", "All is well"]);
    page.wait_until_without("1 message is parked");
    page.assert_clean(&amqp.farm.api_url("/"));

    broker.kill9();
    page.wait_for(&["The broker has been away for", "user-http-server doctor", "Needs attention"]);
    post_frame(&mut Connection::open(amqp.farm.http), 2, 1_000);
    page.wait_for(&["1 message (", "waits here and will be sent when it is back"]);
}

/// How many messages are parked.
fn parked(amqp: &AmqpFarm) -> usize {
    request(amqp.farm.api, "GET", "/UserManager/Parked", &[], b"").json().as_array().expect("a list").len()
}
