//! What an account has to be allowed, and that what is wrong with the names of one role does not stop the other.

use amiquip::{AmqpProperties, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions};
use user_http_actors::broker::amqp::AmqpConfig;
use user_http_actors::broker::{Outcome, Settlement};
use user_http_actors::codec::Format;

use crate::broker::harness::{Consuming, Peer, Publishing, SHARED, SOON, config};

/// The same names for an account with these rights, each a regular expression.
fn account(config: &AmqpConfig, user: &str, [configure, write, read]: [&str; 3]) -> AmqpConfig {
    SHARED.ctl(&["add_user", user, "password"]);
    SHARED.ctl(&["set_permissions", user, configure, write, read]);
    let url = SHARED.url().replace("guest:guest", &format!("{user}:password"));
    AmqpConfig { url: url.parse().expect("a valid URL"), ..config.clone() }
}

/// Makes what the account may not make.
fn prepare(config: &AmqpConfig, peer: &Peer) {
    peer.bind_queue(config, "rights");
    let (exchange, queue) = (config.consume_exchange.as_str(), config.consume_queue.as_str());
    peer.channel.exchange_declare(ExchangeType::Direct, exchange, ExchangeDeclareOptions::default()).expect("exchange");
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    peer.channel.queue_declare(queue, durable).expect("the own queue");
    peer.channel.queue_bind(queue, exchange, queue, FieldTable::new()).expect("the binding");
}

/// The least rights of `docs/rabbitmq.md`.
#[test]
fn an_account_that_may_only_publish_and_consume_works_where_everything_exists() {
    let config = config(&SHARED, "rights");
    let peer = Peer::connect(&SHARED);
    prepare(&config, &peer);
    let (write, read) = (format!("^{}$", config.publish_exchange), format!("^{}$", config.consume_queue));
    let mut least = account(&config, "least", ["^$", &write, &read]);
    let mut publishing = Publishing::start(&least);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 1, Format::Json, "{}");
    assert_eq!(publishing.outcome(1), Outcome::Confirmed);
    let mut consuming = Consuming::start(&least, 1);
    consuming.connected(SOON);
    peer.send(&config, b"to the own queue", AmqpProperties::default());
    let delivery = consuming.delivered();
    assert_eq!(&delivery.body[..], b"to the own queue");
    delivery.settler.settle(Settlement::Ack);

    // an awaited queue needs no right either
    least.await_queues = vec!["rights".to_owned()];
    Publishing::start(&least).connected(SOON);
    // what does not exist it may not make, and says so
    least.publish_exchange = "nowhere".to_owned();
    let reason = Publishing::start(&least).disconnected(SOON);
    assert!(reason.contains("ACCESS_REFUSED") && reason.contains("nowhere"), "{reason}");
}

#[test]
fn a_locked_own_queue_or_a_forbidden_exchange_stops_one_role_alone() {
    let config = config(&SHARED, "roles");
    let peer = Peer::connect(&SHARED);
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    peer.channel.queue_declare(config.consume_queue.as_str(), exclusive).expect("the queue");
    peer.bind_queue(&config, "roles");
    let mut consuming = Consuming::start(&config, 1);
    let reason = consuming.disconnected(SOON);
    assert!(reason.contains("RESOURCE_LOCKED") && reason.contains(&config.consume_queue), "{reason}");
    let mut publishing = Publishing::start(&config);
    let epoch = publishing.connected(SOON);
    publishing.publish(epoch, 1, Format::Json, "{}");
    assert_eq!(publishing.outcome(1), Outcome::Confirmed);

    peer.delete_queue(&config.consume_queue);
    consuming.connected(SOON);
    let other = AmqpConfig { publish_exchange: "amq.reserved".to_owned(), ..config.clone() };
    let mut publishing = Publishing::start(&other);
    publishing.disconnected(SOON);
    peer.send(&config, b"{}", AmqpProperties::default());
    consuming.delivered().settler.settle(Settlement::Ack);
}
