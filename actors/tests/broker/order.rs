//! The order in which the consumed queue delivers again; `basics.rs` has these tests for every version of RabbitMQ.

use amiquip::AmqpProperties;
use user_http_actors::broker::amqp::{AmqpConfig, QueueType};
use user_http_actors::broker::{ConsumerEvent, ConsumerLink, Delivery, Settlement};

use crate::broker::harness::{Consuming, Peer, SOON, config};
use crate::broker::rabbitmq::RabbitMq;

/// Both types of the own queue.
fn configs(broker: &RabbitMq, test: &str) -> [AmqpConfig; 2] {
    [None, Some(QueueType::Quorum)].map(|queue_type| {
        let config = config(broker, &format!("{test}_{}", if queue_type.is_some() { "quorum" } else { "classic" }));
        AmqpConfig { queue_type, ..config }
    })
}

pub fn what_is_requeued_after_the_end_of_consuming_comes_again_in_order_and_not_before_consuming_goes_on(
    broker: &RabbitMq,
) {
    for config in configs(broker, "returned_in_order") {
        let mut consuming = Consuming::start(&config, 10);
        consuming.connected(SOON);
        let peer = Peer::connect(broker);
        (0..10).for_each(|number| peer.send(&config, &[b'0' + number], AmqpProperties::default()));
        let deliveries: Vec<Delivery> = (0..10).map(|_| consuming.delivered()).collect();
        consuming.handle.consume(0);
        for (number, delivery) in deliveries.into_iter().enumerate() {
            delivery.settler.settle(if number == 4 { Settlement::Ack } else { Settlement::Requeue });
        }
        consuming.events.wait("Cancelled", SOON, |event| match event {
            ConsumerEvent::Cancelled => Some(()),
            ConsumerEvent::Delivered(delivery) => panic!("{delivery:?} comes before consuming goes on"),
            _ => None,
        });
        peer.wait_for_depth(&config.consume_queue, 9);
        consuming.handle.consume(10);
        let again: Vec<u8> = (0..9).map(|_| consuming.delivered().body[0]).collect();
        assert_eq!(again, b"012356789", "{:?}", config.queue_type);
    }
}

pub fn what_is_unsettled_at_a_stop_comes_again_in_order(broker: &RabbitMq) {
    for config in configs(broker, "stopped_in_order") {
        let mut consuming = Consuming::start(&config, 10);
        consuming.connected(SOON);
        let peer = Peer::connect(broker);
        (0..10).for_each(|number| peer.send(&config, &[b'0' + number], AmqpProperties::default()));
        let deliveries: Vec<Delivery> = (0..10).map(|_| consuming.delivered()).collect();
        assert!(consuming.handle.stop(SOON));
        drop(deliveries);
        let mut consuming = Consuming::start(&config, 10);
        let again: Vec<u8> = (0..10).map(|_| consuming.delivered().body[0]).collect();
        assert_eq!(again, b"0123456789", "{:?}", config.queue_type);
    }
}
