//! What happens while the broker is away, frozen, short of memory, or none at all. Each has a node of its own to
//! do that to.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use user_http_actors::broker::amqp::AmqpConfig;
use user_http_actors::broker::{Outcome, PublisherEvent, Settlement};
use user_http_actors::codec::Format;

use crate::broker::harness::{Consuming, Peer, Publishing, SOON, config};
use crate::broker::rabbitmq::RabbitMq;
use crate::ports::free_port;

/// Two heartbeat intervals of 10 s without a byte, and the close.
const DEAD_PEER_NOTICED: Duration = Duration::from_secs(25);
/// The longest pause is 4 s; the remaining time is for connecting and declaring.
const RECONNECTED: Duration = Duration::from_secs(5);
/// More than amiquip and the sockets between hold, so that publishing it waits for the broker to read.
const LARGE: usize = 32 << 20;

#[test]
fn a_broker_that_starts_later_and_one_that_is_killed_are_found_again() {
    let mut broker = RabbitMq::prepare();
    let config = AmqpConfig { settle: Duration::from_millis(500), ..config(&broker, "found") };
    let (mut publishing, mut consuming) = (Publishing::start(&config), Consuming::start(&config, 1));
    publishing.disconnected(SOON);
    consuming.disconnected(SOON);

    broker.launch();
    let first = publishing.connected(RECONNECTED);
    consuming.connected(RECONNECTED);
    Peer::connect(&broker).bind_queue(&config, "found");
    publishing.publish(first, 1, Format::Json, "{}");
    assert_eq!(publishing.outcome(1), Outcome::Confirmed);

    // RabbitMQ itself may forget a queue that was declared right before it is killed.
    broker.ctl(&["eval", "mnesia:sync_log()."]);
    broker.restart();
    publishing.disconnected(SOON);
    consuming.disconnected(SOON);
    // what is behind the exchange has lost its connection too, and gets the time to find the broker again
    let waiting_for = publishing.events.wait("WaitingFor", RECONNECTED, |event| match event {
        PublisherEvent::WaitingFor(held) => Some(held),
        _ => None,
    });
    assert!(waiting_for.is_some_and(|what| what.contains("--amqp-settle")), "after a lost connection");
    let second = publishing.connected(RECONNECTED);
    consuming.connected(RECONNECTED);
    assert!(second > first, "{second} is greater than {first}");
    // The exchanges are not durable: they ended with the node, and so did the peer's binding. Ours is declared again.
    publishing.publish(second, 2, Format::Json, "{}");
    assert!(matches!(publishing.outcome(2), Outcome::Returned(_)));
    let peer = Peer::connect(&broker);
    peer.send(&config, b"{}", Default::default());
    consuming.delivered().settler.settle(Settlement::Ack);
    assert_eq!(peer.get("found").delivery.body, b"{}", "the confirmed message has survived the kill");
}

#[test]
fn a_blocked_connection_is_reported_even_in_the_middle_of_a_body_and_goes_on_when_opened() {
    let broker = RabbitMq::start();
    let config = config(&broker, "blocked");
    Peer::connect(&broker).bind_queue(&config, "blocked");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    let mut dropped = Publishing::start(&config);
    let dropped_epoch = dropped.connected(SOON);

    broker.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    publishing.publish(epoch, 1, Format::Pickle, vec![0; LARGE]);
    publishing.publish(epoch, 2, Format::Json, "{}");
    publishing.blocked();
    dropped.publish(dropped_epoch, 1, Format::Pickle, vec![0; LARGE]);
    dropped.blocked();
    let began = Instant::now();
    assert!(dropped.link.stop(SOON), "ends although the broker confirms no close");
    assert!(began.elapsed() < Duration::from_secs(4), "took {:?}", began.elapsed());

    // A broker that is short of memory takes new connections, and blocks them once they publish.
    let mut late = Publishing::start(&config);
    let late_epoch = late.connected(SOON);
    late.publish(late_epoch, 1, Format::Json, "{}");
    late.blocked();

    broker.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    assert_eq!(late.opened_with_outcomes(1), BTreeMap::from([(1, Outcome::Confirmed)]));
    let both = BTreeMap::from([(1, Outcome::Confirmed), (2, Outcome::Confirmed)]);
    assert_eq!(publishing.opened_with_outcomes(2), both);
}

#[test]
fn a_frozen_broker_is_noticed_when_idle_and_in_the_middle_of_a_body() {
    let broker = RabbitMq::start();
    let config = config(&broker, "frozen");
    // it proposes no heartbeats, and has to send them all the same
    broker.ctl(&["eval", "application:set_env(rabbit, heartbeat, 0)."]);
    let (mut idle, mut busy) = (Publishing::start(&config), Publishing::start(&config));
    let mut consuming = Consuming::start(&config, 1);
    idle.connected(SOON);
    consuming.connected(SOON);
    let epoch = busy.connected(SOON);
    let stopped = Publishing::start(&config);

    broker.sigstop();
    busy.publish(epoch, 1, Format::Pickle, vec![0; LARGE]);
    let frozen = Instant::now();
    assert!(stopped.link.stop(SOON), "ends although the broker confirms no close");
    assert!(frozen.elapsed() < Duration::from_secs(4), "took {:?}", frozen.elapsed());
    for reason in [
        idle.disconnected(DEAD_PEER_NOTICED),
        busy.disconnected(DEAD_PEER_NOTICED),
        consuming.disconnected(DEAD_PEER_NOTICED),
    ] {
        assert!(reason.contains("missed heartbeats"), "{reason}");
    }
    assert!(frozen.elapsed() < DEAD_PEER_NOTICED, "took {:?}", frozen.elapsed());

    broker.sigcont();
    idle.connected(SOON);
    consuming.connected(SOON);
    let next = busy.events.wait("Connected", SOON, |event| match event {
        PublisherEvent::Connected { epoch } => Some(epoch),
        PublisherEvent::Outcome { .. } => panic!("an outcome of an unfinished message"),
        _ => None,
    });
    assert!(next > epoch);
}

#[test]
fn a_peer_that_says_nothing_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("amqp://{}", silent.local_addr().expect("its address"));
    let config = AmqpConfig::new(url.parse().expect("a valid URL"));
    let mut publishing = Publishing::start(&config);
    let mut consuming = Consuming::start(&config, 1);
    for reason in [publishing.disconnected(Duration::from_secs(10)), consuming.disconnected(Duration::from_secs(10))] {
        assert!(reason.contains("does not answer"), "{reason}");
    }
    // In the next attempt's handshake by now, or in the pause before it: neither holds up the end.
    assert!(publishing.link.stop(Duration::from_secs(4)));
    assert!(consuming.handle.stop(Duration::from_secs(4)));
}

#[test]
fn dropping_does_not_wait_and_ends_the_pause() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let config = AmqpConfig::new(format!("amqp://{nobody}").parse().expect("a valid URL"));
    let mut publishing = Publishing::start(&config);
    // After five failures the pause is at least 800 ms.
    for _ in 0..5 {
        let reason = publishing.disconnected(SOON);
        assert!(reason.contains("refused"), "{reason}");
    }
    let began = Instant::now();
    assert!(publishing.link.stop(SOON));
    assert!(began.elapsed() < Duration::from_millis(500), "took {:?}", began.elapsed());
}

#[test]
fn names_that_amqp_cannot_carry_are_refused() {
    let mut config = AmqpConfig::new("amqp://127.0.0.1:1".parse().expect("a valid URL"));
    config.consume_queue = "q".repeat(256);
    let reason = Publishing::start(&config).disconnected(SOON);
    assert!(reason.contains("consumed queue has 256 bytes"), "{reason}");
}
