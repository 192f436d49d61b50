//! Nothing is published while the downstream queues are not ready.

use amiquip::{ConsumerOptions, QueueDeclareOptions};
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::codec::Format;

use crate::broker::harness::{Peer, Publishing, SHARED, SOON, config, leave};
use crate::broker::proxy::{PASS, behind_proxy};

/// Waits until the publisher says what it waits for, or that it waits no longer.
fn waiting_for(publishing: &mut Publishing) -> Option<String> {
    publishing.events.wait("WaitingFor", SOON, |event| match event {
        PublisherEvent::WaitingFor(what) => Some(what),
        PublisherEvent::Outcome { seq, outcome } => panic!("{outcome:?} of {seq}, which nothing has been waited for"),
        _ => None,
    })
}

#[test]
fn messages_wait_until_an_awaited_queue_exists_and_has_a_consumer() {
    const QUEUE: &str = "way-user-manager";
    let mut config = config(&SHARED, "way");
    config.await_queues = vec!["way".to_owned(), QUEUE.to_owned()];
    let peer = Peer::connect(&SHARED);
    peer.bind_queue(&config, "way");
    let consuming = Peer::connect(&SHARED);
    let _consumer = consuming.channel.basic_consume("way", ConsumerOptions::default()).expect("a consumer");

    let mut publishing = Publishing::start(&config);
    let missing = waiting_for(&mut publishing).expect("it waits");
    assert!(missing.contains(QUEUE) && missing.contains("does not exist"), "{missing}");
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 1, Format::Json, "{}");
    let options = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
    peer.channel.queue_declare(QUEUE, options).expect("the queue");
    let missing = waiting_for(&mut publishing).expect("it waits");
    assert!(missing.contains(QUEUE) && missing.contains("consumer"), "{missing}");
    let user_manager = Peer::connect(&SHARED);
    let consumer = user_manager.channel.basic_consume(QUEUE, ConsumerOptions::default()).expect("a consumer");
    assert_eq!(waiting_for(&mut publishing), None);
    assert_eq!(publishing.outcome(1), Outcome::Confirmed);

    // looked at again while messages flow
    leave(consumer);
    let missing = waiting_for(&mut publishing).expect("it waits");
    assert!(missing.contains(QUEUE), "{missing}");
    publishing.publish(epoch, 2, Format::Json, "{}");
    peer.channel.queue_declare(QUEUE, QueueDeclareOptions::default()).expect("the queue");
    let _consumer = user_manager.channel.basic_consume(QUEUE, ConsumerOptions::default()).expect("a consumer");
    while waiting_for(&mut publishing).is_some() {}
    assert_eq!(publishing.outcome(2), Outcome::Confirmed);
    assert!(publishing.link.stop(SOON));
}

#[test]
fn a_queue_that_its_consumer_has_for_itself_counts_as_ready() {
    const QUEUE: &str = "way-exclusive";
    let mut config = config(&SHARED, "exclusive");
    config.await_queues = vec![QUEUE.to_owned()];
    let peer = Peer::connect(&SHARED);
    peer.bind_queue(&config, "exclusive");
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    peer.channel.queue_declare(QUEUE, exclusive).expect("the queue");
    let mut publishing = Publishing::start(&config);
    assert_eq!(waiting_for(&mut publishing), None);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 1, Format::Json, "{}");
    assert_eq!(publishing.outcome(1), Outcome::Confirmed);
    // Deleted when its connection ends.
    peer.delete_queue(QUEUE);
    assert!(waiting_for(&mut publishing).is_some());
}

/// A consumer that leaves, and then the queue with it.
#[test]
fn messages_wait_while_the_consumer_of_a_downstream_queue_is_away_and_while_the_queue_is_deleted() {
    const QUEUE: &str = "downstream-durable";
    let mut config = config(&SHARED, "leaves");
    config.await_queues = vec![QUEUE.to_owned()];
    let peer = Peer::connect(&SHARED);
    peer.bind_queue(&config, "leaves");
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut publishing = Publishing::start(&config);
    assert!(waiting_for(&mut publishing).is_some_and(|missing| missing.contains("does not exist")));
    let epoch = publishing.connected(SOON);
    let user_manager = Peer::connect(&SHARED);
    for round in 1..3 {
        peer.channel.queue_declare(QUEUE, durable.clone()).expect("the queue");
        let consumer = user_manager.channel.basic_consume(QUEUE, ConsumerOptions::default()).expect("a consumer");
        while waiting_for(&mut publishing).is_some() {}
        publishing.publish(epoch, round, Format::Json, "{}");
        assert_eq!(publishing.outcome(round), Outcome::Confirmed);
        leave(consumer);
        assert!(waiting_for(&mut publishing).is_some_and(|missing| missing.contains("consumer")));
        let consumer = user_manager.channel.basic_consume(QUEUE, ConsumerOptions::default()).expect("a consumer");
        assert_eq!(waiting_for(&mut publishing), None);
        peer.delete_queue(QUEUE);
        assert!(waiting_for(&mut publishing).is_some_and(|missing| missing.contains("does not exist")));
        drop(consumer);
    }
    assert!(publishing.link.stop(SOON));
}

/// As `channel.close` over a passive declaration: 404 becomes 403.
fn forbid(bytes: &mut [u8]) -> bool {
    const CLOSE_404: [u8; 6] = [0, 20, 0, 40, 1, 148];
    for at in 0..bytes.len().saturating_sub(CLOSE_404.len()) {
        if bytes[at..].starts_with(&CLOSE_404) {
            bytes[at + 5] = 147;
        }
    }
    true
}

#[test]
fn a_downstream_queue_that_the_broker_does_not_show_is_reported_and_looked_at_again() {
    const QUEUE: &str = "downstream-forbidden";
    let mut config = config(&SHARED, "forbidden");
    config.await_queues = vec![QUEUE.to_owned()];
    let peer = Peer::connect(&SHARED);
    peer.bind_queue(&config, "forbidden");
    let mut publishing = Publishing::start(&behind_proxy(config, PASS, forbid));
    let missing = waiting_for(&mut publishing).expect("it waits");
    assert!(missing.contains(QUEUE) && missing.contains("403"), "{missing}");
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 1, Format::Json, "{}");
    // from now on it is shown
    peer.channel.queue_declare(QUEUE, QueueDeclareOptions::default()).expect("the queue");
    let _consumer = peer.channel.basic_consume(QUEUE, ConsumerOptions::default()).expect("a consumer");
    while waiting_for(&mut publishing).is_some() {}
    assert_eq!(publishing.outcome(1), Outcome::Confirmed);
    // and while messages flow no longer
    peer.delete_queue(QUEUE);
    let missing = waiting_for(&mut publishing).expect("it waits");
    assert!(missing.contains("403"), "{missing}");
    assert!(publishing.link.stop(SOON));
}
