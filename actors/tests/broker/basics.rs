//! What must hold with every version of RabbitMQ; each leaves the node as it was.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use amiquip::{AmqpProperties, AmqpValue, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions};
use bytes::Bytes;
use user_http_actors::broker::{Outcome, Publication, PublisherEvent, PublisherLink, Settlement};
use user_http_actors::codec::Format;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Put, Store};
use uuid::Uuid;

use super::order::{
    what_is_requeued_after_the_end_of_consuming_comes_again_in_order_and_not_before_consuming_goes_on,
    what_is_unsettled_at_a_stop_comes_again_in_order,
};
use crate::broker::harness::{Consuming, Peer, Publishing, SOON, config};
use crate::broker::rabbitmq::RabbitMq;

/// Each of them against the machine's own RabbitMQ, and all of them against another one.
mod tests {
    macro_rules! basic_tests {
        ($($name:ident),* $(,)?) => {
            use crate::broker::harness::SHARED;
            use crate::broker::rabbitmq::RabbitMq;

            $(#[test]
            fn $name() {
                super::$name(&SHARED);
            })*

            /// The same against RabbitMQ 4.0, which differs: its limit is 16 MiB for a message, for example.
            #[test]
            fn all_of_it_holds_for_rabbitmq_4_0() {
                let broker = RabbitMq::start_4_0();
                println!("RabbitMQ {}", broker.ctl(&["version"]).trim());
                $(super::$name(&broker);)*
            }
        };
    }

    basic_tests!(
        a_routed_message_is_confirmed,
        a_message_without_a_queue_is_returned_until_there_is_one,
        returned_messages_among_many_are_never_confirmed,
        messages_arrive_in_the_order_in_which_they_were_published,
        a_message_carries_what_the_contract_says,
        a_message_that_the_broker_refuses_is_nacked,
        a_publication_of_another_epoch_is_dropped,
        a_body_that_cannot_be_read_has_an_outcome_of_its_own,
        a_message_too_large_for_the_broker_is_refused_and_the_next_one_passes,
        an_acknowledged_delivery_does_not_return,
        a_rejected_delivery_is_dropped,
        a_requeued_or_forgotten_delivery_comes_again,
        what_is_requeued_after_the_end_of_consuming_comes_again_in_order_and_not_before_consuming_goes_on,
        what_is_unsettled_at_a_stop_comes_again_in_order,
        acknowledgements_made_before_the_stop_arrive,
        the_prefetch_bounds_what_is_delivered,
        exchanges_with_other_properties_are_used_as_they_are,
        a_queue_with_other_properties_is_used_as_it_is,
        a_deleted_queue_is_declared_again_and_consumed,
        a_wrong_password_is_named_but_not_shown,
        a_vhost_that_does_not_exist_is_named,
        a_name_that_may_not_be_declared_is_named,
    );
}

const NO_ROUTE: &str = "312 NO_ROUTE";

pub fn a_routed_message_is_confirmed(broker: &RabbitMq) {
    let config = config(broker, "confirmed");
    Peer::connect(broker).bind_queue(&config, "confirmed");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 7, Format::Json, "{}");
    assert_eq!(publishing.outcome(7), Outcome::Confirmed);
    assert!(publishing.link.stop(SOON));
}

pub fn a_message_without_a_queue_is_returned_until_there_is_one(broker: &RabbitMq) {
    let config = config(broker, "returned");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 1, Format::Json, "{}");
    assert_eq!(publishing.outcome(1), Outcome::Returned(NO_ROUTE.to_owned()));
    Peer::connect(broker).bind_queue(&config, "returned");
    publishing.publish(epoch, 2, Format::Json, "{}");
    assert_eq!(publishing.outcome(2), Outcome::Confirmed);
}

/// A return and its confirm come over different channels: each message that comes back is a chance to mix them up.
pub fn returned_messages_among_many_are_never_confirmed(broker: &RabbitMq) {
    const COUNT: u64 = 3_000;
    let config = config(broker, "many");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    for seq in 0..COUNT {
        publishing.publish(epoch, seq, Format::Json, "{}");
    }
    let mut left: HashSet<u64> = (0..COUNT).collect();
    publishing.events.wait("all outcomes", SOON, |event| {
        let PublisherEvent::Outcome { seq, outcome } = event else { return None };
        assert_eq!(outcome, Outcome::Returned(NO_ROUTE.to_owned()), "message {seq}");
        assert!(left.remove(&seq), "a second outcome of message {seq}");
        left.is_empty().then_some(())
    });
}

pub fn messages_arrive_in_the_order_in_which_they_were_published(broker: &RabbitMq) {
    const COUNT: u64 = 500;
    let config = config(broker, "order");
    let peer = Peer::connect(broker);
    peer.bind_queue(&config, "order");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    for seq in 0..COUNT {
        publishing.publish(epoch, seq, Format::Json, seq.to_string());
    }
    for seq in 0..COUNT {
        assert_eq!(peer.get("order").delivery.body, seq.to_string().into_bytes());
    }
}

pub fn a_message_carries_what_the_contract_says(broker: &RabbitMq) {
    let config = config(broker, "properties");
    let peer = Peer::connect(broker);
    peer.bind_queue(&config, "properties");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    // Larger than one frame of 128 KiB.
    let pickle = vec![0x80; 300_000];
    let pickle_id = publishing.publish(epoch, 1, Format::Pickle, pickle.clone());
    let json_id = publishing.publish(epoch, 2, Format::Json, "{}");

    let got = peer.get("properties").delivery;
    assert!(got.body == pickle, "the body arrives as it was");
    assert_eq!(got.properties.message_id().as_deref(), Some(pickle_id.to_string().as_str()));
    assert_eq!(*got.properties.delivery_mode(), Some(2));
    let headers = got.properties.headers().clone().expect("headers");
    assert_eq!(headers.into_iter().collect::<Vec<_>>(), [("DATA_FORMAT".to_owned(), long_string("BYTES"))]);

    let got = peer.get("properties").delivery;
    assert_eq!(got.body, b"{}");
    assert_eq!(got.properties.message_id().as_deref(), Some(json_id.to_string().as_str()));
    assert_eq!(*got.properties.delivery_mode(), Some(2));
    assert!(got.properties.headers().as_ref().is_none_or(FieldTable::is_empty));
}

pub fn a_message_that_the_broker_refuses_is_nacked(broker: &RabbitMq) {
    let config = config(broker, "nacked");
    let peer = Peer::connect(broker);
    let mut arguments = FieldTable::new();
    arguments.insert("x-max-length".to_owned(), AmqpValue::LongInt(1));
    arguments.insert("x-overflow".to_owned(), long_string("reject-publish"));
    let full = QueueDeclareOptions { arguments, ..QueueDeclareOptions::default() };
    peer.bind_queue_as(&config, "nacked", full);
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 1, Format::Json, "{}");
    assert_eq!(publishing.outcome(1), Outcome::Confirmed);
    peer.wait_for_depth("nacked", 1);
    publishing.publish(epoch, 2, Format::Json, "{}");
    assert_eq!(publishing.outcome(2), Outcome::Nacked);
}

pub fn a_publication_of_another_epoch_is_dropped(broker: &RabbitMq) {
    let config = config(broker, "epoch");
    Peer::connect(broker).bind_queue(&config, "epoch");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch - 1, 1, Format::Json, "{}");
    publishing.publish(epoch, 2, Format::Json, "{}");
    assert_eq!(publishing.outcome(2), Outcome::Confirmed);
}

/// A body in a log that somebody has changed.
fn damaged_body(damage: impl FnOnce(&File) -> io::Result<()>) -> Payload {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = LogStore::open(directory.path()).expect("the store opens");
    let put =
        Change::Put(Put { seq: 1, meta: Bytes::new(), body: Payload::from_parts(vec![Bytes::from_static(b"body")]) });
    let body = store.commit(&[put], Durable::Now).expect("committed").remove(0);
    let segment = directory.path().join(format!("{:016}.log", 1));
    File::options().write(true).open(segment).and_then(|file| damage(&file)).expect("writable");
    body
}

pub fn a_body_that_cannot_be_read_has_an_outcome_of_its_own(broker: &RabbitMq) {
    let config = config(broker, "unreadable");
    Peer::connect(broker).bind_queue(&config, "unreadable");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    let cut_off = damaged_body(|file| file.set_len(0));
    // the last byte of the only record
    let flipped = damaged_body(|file| file.write_all_at(b"Y", 28 + 32 + 3));
    for (seq, body) in [(1, cut_off), (2, flipped)] {
        publishing.link.publish(Publication { epoch, seq, message_id: Uuid::new_v4(), format: Format::Json, body });
    }
    publishing.publish(epoch, 3, Format::Json, "{}");
    for (seq, why) in [(1, "cannot be read"), (2, "is damaged: the body does not match its checksum")] {
        let unreadable = publishing.outcome(seq);
        assert!(matches!(&unreadable, Outcome::Unreadable(reason) if reason.contains(why)), "{unreadable:?}");
    }
    assert_eq!(publishing.outcome(3), Outcome::Confirmed);
}

pub fn a_message_too_large_for_the_broker_is_refused_and_the_next_one_passes(broker: &RabbitMq) {
    let config = config(broker, "large");
    Peer::connect(broker).bind_queue(&config, "large");
    let limit = broker.ctl(&["eval", "{ok, Bytes} = application:get_env(rabbit, max_message_size), Bytes."]);
    let limit: usize = limit.trim().parse().expect("a number of bytes");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 1, Format::Pickle, vec![0; limit]);
    assert_eq!(publishing.outcome(1), Outcome::Confirmed);
    publishing.publish(epoch, 2, Format::Pickle, vec![0; limit + 1]);
    let refused = publishing.outcome(2);
    assert!(matches!(&refused, Outcome::Refused(reason) if reason.contains(&limit.to_string())), "{refused:?}");
    publishing.disconnected(SOON);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 3, Format::Json, "{}");
    assert_eq!(publishing.outcome(3), Outcome::Confirmed);
}

pub fn an_acknowledged_delivery_does_not_return(broker: &RabbitMq) {
    let config = config(broker, "acknowledged");
    let mut consuming = Consuming::start(&config, 10);
    consuming.connected(SOON);
    let peer = Peer::connect(broker);
    peer.send(&config, b"pickle", header("DATA_FORMAT", "BYTES"));
    peer.send(&config, b"json", AmqpProperties::default());
    peer.send(&config, b"other", header("DATA_FORMAT", "BYTE"));
    peer.send(&config, b"lower", header("DATA_FORMAT", "bytes"));
    peer.send(&config, b"array", with_header("DATA_FORMAT", AmqpValue::ByteArray(b"Bytes".to_vec())));
    for (body, format, data_format) in [
        ("pickle", Format::Pickle, "\"BYTES\""),
        ("json", Format::Json, "not given"),
        ("other", Format::Json, "\"BYTE\""),
        ("lower", Format::Pickle, "\"bytes\""),
        ("array", Format::Pickle, "b\"Bytes\""),
    ] {
        let delivery = consuming.delivered();
        assert_eq!((&delivery.body[..], delivery.format, delivery.redelivered), (body.as_bytes(), format, false));
        assert_eq!(delivery.data_format, data_format);
        delivery.settler.settle(Settlement::Ack);
    }
    assert!(consuming.handle.stop(SOON));
    peer.wait_for_depth(&config.consume_queue, 0);
}

pub fn a_rejected_delivery_is_dropped(broker: &RabbitMq) {
    let config = config(broker, "rejected");
    let mut consuming = Consuming::start(&config, 1);
    consuming.connected(SOON);
    let peer = Peer::connect(broker);
    peer.send(&config, b"malformed", AmqpProperties::default());
    peer.send(&config, b"next", AmqpProperties::default());
    consuming.delivered().settler.settle(Settlement::Reject);
    let next = consuming.delivered();
    assert_eq!(&next.body[..], b"next");
    next.settler.settle(Settlement::Ack);
    assert!(consuming.handle.stop(SOON));
    peer.wait_for_depth(&config.consume_queue, 0);
}

pub fn a_requeued_or_forgotten_delivery_comes_again(broker: &RabbitMq) {
    let config = config(broker, "requeued");
    let mut consuming = Consuming::start(&config, 10);
    consuming.connected(SOON);
    let peer = Peer::connect(broker);
    peer.send(&config, b"later", AmqpProperties::default());
    consuming.delivered().settler.settle(Settlement::Requeue);
    let again = consuming.delivered();
    assert!(again.redelivered);
    drop(again);
    let again = consuming.delivered();
    assert_eq!(&again.body[..], b"later");
    assert!(consuming.handle.stop(SOON));
    // Too late: the delivery went back to the queue with its connection.
    again.settler.settle(Settlement::Ack);
    peer.wait_for_depth(&config.consume_queue, 1);
}

pub fn acknowledgements_made_before_the_stop_arrive(broker: &RabbitMq) {
    const COUNT: u32 = 500;
    let config = config(broker, "flushed");
    let mut consuming = Consuming::start(&config, COUNT as u16);
    consuming.connected(SOON);
    let peer = Peer::connect(broker);
    for _ in 0..=COUNT {
        peer.send(&config, b"{}", AmqpProperties::default());
    }
    let deliveries: Vec<_> = (0..COUNT).map(|_| consuming.delivered()).collect();
    for delivery in deliveries {
        delivery.settler.settle(Settlement::Ack);
    }
    assert!(consuming.handle.stop(SOON));
    peer.wait_for_depth(&config.consume_queue, 1);
}

pub fn the_prefetch_bounds_what_is_delivered(broker: &RabbitMq) {
    let config = config(broker, "prefetch");
    let mut consuming = Consuming::start(&config, 2);
    consuming.connected(SOON);
    let peer = Peer::connect(broker);
    for _ in 0..5 {
        peer.send(&config, b"{}", AmqpProperties::default());
    }
    let _unsettled = [consuming.delivered(), consuming.delivered()];
    peer.wait_for_depth(&config.consume_queue, 3);
}

pub fn exchanges_with_other_properties_are_used_as_they_are(broker: &RabbitMq) {
    let config = config(broker, "exchanges");
    let peer = Peer::connect(broker);
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    for exchange in [&config.consume_exchange, &config.publish_exchange] {
        peer.channel.exchange_declare(ExchangeType::Topic, exchange.as_str(), durable.clone()).expect("the exchange");
    }
    peer.channel.queue_declare("exchanges", QueueDeclareOptions::default()).expect("the queue");
    peer.channel
        .queue_bind("exchanges", config.publish_exchange.as_str(), config.routing_key.as_str(), FieldTable::new())
        .expect("the binding");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 1, Format::Json, "{}");
    assert_eq!(publishing.outcome(1), Outcome::Confirmed);
    let mut consuming = Consuming::start(&config, 1);
    consuming.connected(SOON);
    peer.send(&config, b"{}", AmqpProperties::default());
    consuming.delivered().settler.settle(Settlement::Ack);
}

pub fn a_queue_with_other_properties_is_used_as_it_is(broker: &RabbitMq) {
    let config = config(broker, "queue");
    let peer = Peer::connect(broker);
    let mut arguments = FieldTable::new();
    arguments.insert("x-max-length".to_owned(), AmqpValue::LongInt(1_000));
    let options = QueueDeclareOptions { durable: true, arguments, ..QueueDeclareOptions::default() };
    peer.channel.queue_declare(config.consume_queue.as_str(), options).expect("the queue");
    let mut consuming = Consuming::start(&config, 1);
    consuming.connected(SOON);
    peer.send(&config, b"{}", AmqpProperties::default());
    consuming.delivered().settler.settle(Settlement::Ack);
    let mut publishing = Publishing::start(&config);
    publishing.connected(SOON);
}

pub fn a_deleted_queue_is_declared_again_and_consumed(broker: &RabbitMq) {
    let config = config(broker, "deleted");
    let mut consuming = Consuming::start(&config, 1);
    consuming.connected(SOON);
    let peer = Peer::connect(broker);
    peer.delete_queue(&config.consume_queue);
    let reason = consuming.disconnected(SOON);
    assert!(reason.contains("queue has been deleted"), "{reason}");
    consuming.connected(SOON);
    peer.send(&config, b"{}", AmqpProperties::default());
    consuming.delivered().settler.settle(Settlement::Ack);
}

pub fn a_wrong_password_is_named_but_not_shown(broker: &RabbitMq) {
    let mut config = config(broker, "password");
    let url = format!("amqp://guest:not-the-secret@127.0.0.1:{}", broker.port);
    config.url = url.parse().expect("a valid URL");
    let mut publishing = Publishing::start(&config);
    let mut consuming = Consuming::start(&config, 1);
    for reason in [publishing.disconnected(SOON), consuming.disconnected(SOON)] {
        assert!(reason.contains("user or password is probably wrong"), "{reason}");
    }
    // RabbitMQ answers after 3 s, so that these have had time for no more than a second attempt.
    let seen = [publishing.events.all(), consuming.events.all()].concat();
    assert!(seen.len() <= 4, "no busy loop: {seen:#?}");
    assert!(seen.iter().all(|event| !event.contains("secret")), "{seen:#?}");
}

pub fn a_vhost_that_does_not_exist_is_named(broker: &RabbitMq) {
    let mut config = config(broker, "vhost");
    let url = format!("amqp://guest:guest@127.0.0.1:{}/nowhere", broker.port);
    config.url = url.parse().expect("a valid URL");
    let reason = Publishing::start(&config).disconnected(SOON);
    assert!(reason.contains("vhost nowhere not found"), "{reason}");
}

pub fn a_name_that_may_not_be_declared_is_named(broker: &RabbitMq) {
    let mut reserved = config(broker, "reserved");
    reserved.publish_exchange = "amq.reserved".to_owned();
    let reason = Publishing::start(&reserved).disconnected(SOON);
    assert!(reason.contains("ACCESS_REFUSED") && reason.contains("amq.reserved"), "{reason}");

    let locked = config(broker, "locked");
    let peer = Peer::connect(broker);
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    peer.channel.queue_declare(locked.consume_queue.as_str(), exclusive).expect("the queue");
    let reason = Consuming::start(&locked, 1).disconnected(SOON);
    assert!(reason.contains("RESOURCE_LOCKED") && reason.contains(&locked.consume_queue), "{reason}");
}

fn header(name: &str, value: &str) -> AmqpProperties {
    with_header(name, long_string(value))
}

fn with_header(name: &str, value: AmqpValue) -> AmqpProperties {
    let mut headers = FieldTable::new();
    headers.insert(name.to_owned(), value);
    AmqpProperties::default().with_headers(headers)
}

fn long_string(value: &str) -> AmqpValue {
    AmqpValue::LongString(value.to_owned())
}
