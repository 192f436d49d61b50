//! Several nodes: one that is away is passed over, and what a quorum queue has confirmed survives any node.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use amiquip::{AmqpValue, FieldTable, QueueDeclareOptions};
use user_http_actors::broker::amqp::{AmqpConfig, AmqpUrl, QueueType};
use user_http_actors::broker::{Outcome, PublisherEvent, Settlement};
use user_http_actors::codec::Format;

use crate::broker::harness::{Consuming, Peer, Publishing, SHARED, SOON, config, until};
use crate::broker::rabbitmq::RabbitMq;
use crate::ports::free_port;

const NODES: usize = 3;
/// A quorum queue elects another leader, and the cluster notices the death of a node.
const ANOTHER_NODE: Duration = Duration::from_secs(60);
/// RabbitMQ 4.0 drops a message of a quorum queue after 20 deliveries, unless the queue is declared without that limit.
const MORE_THAN_THE_LIMIT: usize = 25;
const MESSAGES_OF_A_ROUND: u64 = 40;

fn url_of(broker: &RabbitMq) -> AmqpUrl {
    broker.url().parse().expect("the harness writes a valid URL")
}

fn quorum() -> QueueDeclareOptions {
    let mut arguments = FieldTable::new();
    arguments.insert("x-queue-type".to_owned(), AmqpValue::LongString("quorum".to_owned()));
    QueueDeclareOptions { durable: true, arguments, ..QueueDeclareOptions::default() }
}

#[test]
fn a_node_that_is_away_is_passed_over_and_named() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut config = config(&SHARED, "passed_over");
    config.further_urls = vec![config.url.clone()];
    config.url = format!("amqp://{nobody}").parse().expect("a valid URL");
    let (mut publishing, mut consuming) = (Publishing::start(&config), Consuming::start(&config, 1));
    for reason in [publishing.disconnected(SOON), consuming.disconnected(SOON)] {
        assert!(reason.contains(&nobody.to_string()), "{reason}");
    }
    publishing.connected(SOON);
    consuming.connected(SOON);
}

#[test]
fn a_queue_of_another_type_is_refused_with_what_to_do_and_taken_if_no_type_is_asked_for() {
    let classic = config(&SHARED, "type");
    Consuming::start(&classic, 1).connected(SOON);
    let quorum = AmqpConfig { queue_type: Some(QueueType::Quorum), ..classic.clone() };
    let reason = Consuming::start(&quorum, 1).disconnected(SOON);
    assert!(reason.contains("--amqp-queue-type") && reason.contains("delete it"), "{reason}");

    let peer = Peer::connect(&SHARED);
    peer.delete_queue(&classic.consume_queue);
    Consuming::start(&quorum, 1).connected(SOON);
    Consuming::start(&classic, 1).connected(SOON);
    let other = AmqpConfig { queue_type: Some(QueueType::Classic), ..classic.clone() };
    let reason = Consuming::start(&other, 1).disconnected(SOON);
    assert!(reason.contains("--amqp-queue-type"), "{reason}");
    peer.delete_queue(&classic.consume_queue);
}

#[test]
fn what_quorum_queues_have_taken_survives_each_node_and_work_goes_on_at_the_next() {
    let mut nodes = RabbitMq::start_cluster_4_0(NODES);
    let mut config = config(&nodes[0], "quorum");
    config.further_urls = nodes[1..].iter().map(url_of).collect();
    config.queue_type = Some(QueueType::Quorum);
    config.settle = Duration::ZERO;
    Peer::connect(&nodes[2]).bind_queue_as(&config, "user_manager", quorum());
    let (mut publishing, mut consuming) = (Publishing::start(&config), Consuming::start(&config, 1));
    let mut epoch = publishing.connected(SOON);
    consuming.connected(SOON);

    let mut confirmed = BTreeSet::new();
    for round in 0..NODES {
        let numbers = round as u64 * MESSAGES_OF_A_ROUND..(round as u64 + 1) * MESSAGES_OF_A_ROUND;
        Peer::connect(&nodes[(round + 1) % NODES]).send(&config, round.to_string().as_bytes(), Default::default());
        consuming.delivered().settler.settle(Settlement::Requeue);
        for number in numbers.clone() {
            publishing.publish(epoch, number, Format::Json, number.to_string());
        }
        // both connections are at this node: each went on to the next one when its last one was killed
        nodes[round].kill9();
        epoch = publishing.events.wait("Connected", ANOTHER_NODE, |event| match event {
            PublisherEvent::Outcome { seq, outcome: Outcome::Confirmed } => {
                confirmed.insert(seq);
                None
            }
            PublisherEvent::Connected { epoch } => Some(epoch),
            _ => None,
        });
        for number in numbers.clone().filter(|number| !confirmed.contains(number)) {
            publishing.publish(epoch, number, Format::Json, number.to_string());
        }
        let all = (round as u64 + 1) * MESSAGES_OF_A_ROUND;
        while confirmed.len() < all as usize {
            publishing.events.wait("Outcome", ANOTHER_NODE, |event| match event {
                PublisherEvent::Outcome { seq, outcome } => {
                    assert_eq!(outcome, Outcome::Confirmed, "of {seq}");
                    confirmed.insert(seq);
                    Some(())
                }
                _ => None,
            });
        }
        consuming.connected(ANOTHER_NODE);
        let delivery = consuming.delivered();
        assert_eq!(delivery.body, round.to_string().as_bytes(), "what was put back is still there");
        delivery.settler.settle(Settlement::Ack);
        nodes[round].launch();
        // the next one is killed only when a majority is left without it
        nodes[round].ctl(&["await_online_nodes", "3"]);
        until(|| nodes[(round + 1) % NODES].can_be_spared().then_some(()), "majority without the next node");
    }

    let peer = Peer::connect(&nodes[0]);
    let mut arrived = BTreeSet::new();
    while !confirmed.is_subset(&arrived) {
        let body = peer.get("user_manager").delivery.body;
        arrived.insert(String::from_utf8_lossy(&body).parse().expect("a number"));
    }

    peer.send(&config, b"often", Default::default());
    for _ in 0..MORE_THAN_THE_LIMIT {
        consuming.delivered().settler.settle(Settlement::Requeue);
    }
    let delivery = consuming.delivered();
    assert_eq!(delivery.body, &b"often"[..]);
    delivery.settler.settle(Settlement::Ack);
}
