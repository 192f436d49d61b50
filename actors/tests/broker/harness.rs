//! What the tests of the broker share: brokers, events that are waited for, and a peer on the other side.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, Channel, Connection, Consumer, ConsumerMessage, ExchangeDeclareOptions, ExchangeType, FieldTable,
    Get, Publish, QueueDeclareOptions, QueueDeleteOptions,
};
use bytes::Bytes;
use crossbeam_channel::{Receiver, unbounded};
use user_http_actors::broker::amqp::{AmqpConfig, AmqpConsumer, AmqpPublisher, start_consumer, start_publisher};
use user_http_actors::broker::{ConsumerEvent, Delivery, Outcome, Publication, PublisherEvent, PublisherLink};
use user_http_actors::codec::Format;
use user_http_actors::payload::Payload;
use uuid::Uuid;

use crate::broker::rabbitmq::RabbitMq;

/// For what takes milliseconds, on a machine that does much else.
pub const SOON: Duration = Duration::from_secs(15);

/// The broker of all tests that leave the node alone.
pub static SHARED: LazyLock<RabbitMq> = LazyLock::new(RabbitMq::start);

/// The contract's names with `test` behind each, so that tests share a broker without meeting.
pub fn config(broker: &RabbitMq, test: &str) -> AmqpConfig {
    let mut config = AmqpConfig::new(broker.url().parse().expect("the harness writes a valid URL"));
    for name in
        [&mut config.consume_exchange, &mut config.consume_queue, &mut config.publish_exchange, &mut config.routing_key]
    {
        name.push('_');
        name.push_str(test);
    }
    config
}

/// Events in their order.
pub struct Events<T> {
    events: Receiver<T>,
    seen: Vec<String>,
}

impl<T: Debug + Send + 'static> Events<T> {
    fn new() -> (impl Fn(T) + Send + 'static, Self) {
        let (sender, events) = unbounded();
        let on_event = move |event| drop(sender.send(event));
        (on_event, Self { events, seen: Vec::new() })
    }

    /// The first event from now on of which `wanted` makes something.
    pub fn wait<R>(&mut self, what: &str, within: Duration, mut wanted: impl FnMut(T) -> Option<R>) -> R {
        let deadline = Instant::now() + within;
        loop {
            let Ok(event) = self.events.recv_deadline(deadline) else {
                panic!("no {what} within {within:?}; seen were {:#?}", self.seen);
            };
            self.seen.push(format!("{event:?}"));
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    }

    /// Everything that has been seen, and what is left.
    pub fn all(mut self) -> Vec<String> {
        self.seen.extend(self.events.try_iter().map(|event| format!("{event:?}")));
        self.seen
    }
}

/// A publisher with its events.
pub struct Publishing {
    pub link: AmqpPublisher,
    pub events: Events<PublisherEvent>,
}

impl Publishing {
    pub fn start(config: &AmqpConfig) -> Self {
        let (on_event, events) = Events::new();
        Self { link: start_publisher(config.clone(), on_event), events }
    }

    /// Waits for the next connection and returns its epoch.
    pub fn connected(&mut self, within: Duration) -> u64 {
        self.events.wait("Connected", within, |event| match event {
            PublisherEvent::Connected { epoch } => Some(epoch),
            _ => None,
        })
    }

    /// Waits for the next end of a connection and returns its reason.
    pub fn disconnected(&mut self, within: Duration) -> String {
        self.events.wait("Disconnected", within, |event| match event {
            PublisherEvent::Disconnected { reason, .. } => Some(reason),
            _ => None,
        })
    }

    /// Waits until the broker has blocked the connection.
    pub fn blocked(&mut self) {
        self.events.wait("Blocked", SOON, |event| matches!(event, PublisherEvent::Blocked(true)).then_some(()));
    }

    /// Waits until the broker has opened the connection again and `count` outcomes have come, and returns these by
    /// number. Either may come first: two threads report them.
    pub fn opened_with_outcomes(&mut self, count: usize) -> BTreeMap<u64, Outcome> {
        let (mut opened, mut outcomes) = (false, BTreeMap::new());
        self.events.wait("Blocked(false) and all outcomes", SOON, |event| {
            match event {
                PublisherEvent::Blocked(blocked) => opened = !blocked,
                PublisherEvent::Outcome { seq, outcome } => {
                    assert!(outcomes.insert(seq, outcome).is_none(), "one outcome for {seq}");
                }
                _ => {}
            }
            (opened && outcomes.len() == count).then(|| std::mem::take(&mut outcomes))
        })
    }

    pub fn publish(&self, epoch: u64, seq: u64, format: Format, body: impl Into<Bytes>) -> Uuid {
        let message_id = Uuid::new_v4();
        let body = Payload::from_parts(vec![body.into()]);
        self.link.publish(Publication { epoch, seq, message_id, format, body });
        message_id
    }

    /// Waits for the next outcome and returns whose it is. They do not come in order: RabbitMQ confirms a small
    /// message, which it keeps in the queue's index, before a large one in front of it.
    pub fn next_outcome(&mut self) -> (u64, Outcome) {
        self.events.wait("Outcome", SOON, |event| match event {
            PublisherEvent::Outcome { seq, outcome } => Some((seq, outcome)),
            _ => None,
        })
    }

    /// Waits for the next outcome, which must be that of `seq`.
    pub fn outcome(&mut self, seq: u64) -> Outcome {
        let (found, outcome) = self.next_outcome();
        assert_eq!(found, seq, "whose outcome this is");
        outcome
    }
}

/// A consumer with its events.
pub struct Consuming {
    pub handle: AmqpConsumer,
    pub events: Events<ConsumerEvent>,
}

impl Consuming {
    pub fn start(config: &AmqpConfig, prefetch: u16) -> Self {
        let (on_event, events) = Events::new();
        Self { handle: start_consumer(config.clone(), prefetch, on_event), events }
    }

    pub fn connected(&mut self, within: Duration) {
        self.events.wait("Connected", within, |event| matches!(event, ConsumerEvent::Connected).then_some(()));
    }

    pub fn disconnected(&mut self, within: Duration) -> String {
        self.events.wait("Disconnected", within, |event| match event {
            ConsumerEvent::Disconnected { reason } => Some(reason),
            _ => None,
        })
    }

    pub fn delivered(&mut self) -> Delivery {
        self.events.wait("Delivered", SOON, |event| match event {
            ConsumerEvent::Delivered(delivery) => Some(delivery),
            _ => None,
        })
    }
}

/// A service of the farm on the other side of the broker.
pub struct Peer {
    // First, so that it is closed first.
    pub channel: Channel,
    _connection: Connection,
}

impl Peer {
    pub fn connect(broker: &RabbitMq) -> Self {
        let mut connection = Connection::insecure_open(&broker.url()).expect("the peer's connection");
        let channel = connection.open_channel(None).expect("the peer's channel");
        Self { channel, _connection: connection }
    }

    /// Declares the durable queue `name`, bound to the exchange published to.
    pub fn bind_queue(&self, config: &AmqpConfig, name: &str) {
        self.bind_queue_as(config, name, QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() });
    }

    /// As [`Peer::bind_queue`], with other properties.
    pub fn bind_queue_as(&self, config: &AmqpConfig, name: &str, queue: QueueDeclareOptions) {
        let options = ExchangeDeclareOptions::default();
        self.channel
            .exchange_declare(ExchangeType::Direct, config.publish_exchange.as_str(), options)
            .expect("the exchange");
        self.channel.queue_declare(name, queue).expect("the queue");
        self.channel
            .queue_bind(name, config.publish_exchange.as_str(), config.routing_key.as_str(), FieldTable::new())
            .expect("the binding");
    }

    /// Publishes to the own queue, through the own exchange.
    pub fn send(&self, config: &AmqpConfig, body: &[u8], properties: AmqpProperties) {
        let publish = Publish::with_properties(body, config.consume_queue.as_str(), properties);
        self.channel.basic_publish(config.consume_exchange.as_str(), publish).expect("publishing");
    }

    /// Takes the next message of `queue` once there is one.
    pub fn get(&self, queue: &str) -> Get {
        until(|| self.channel.basic_get(queue, true).expect("basic.get"), &format!("message in {queue}"))
    }

    /// Waits until `queue` holds `count` messages that nobody has been given.
    pub fn wait_for_depth(&self, queue: &str, count: u32) {
        let depth = || {
            let queue = self.channel.queue_declare_passive(queue).expect("the queue is there");
            (queue.declared_message_count() == Some(count)).then_some(())
        };
        until(depth, &format!("depth {count} of {queue}"));
    }

    pub fn delete_queue(&self, queue: &str) {
        self.channel.queue_delete(queue, QueueDeleteOptions::default()).expect("queue.delete");
    }
}

/// Cancels `consumer`, and drops it once the I/O thread has done with it: amiquip ends a connection whose consumer is
/// dropped while the cancel is still being reported.
pub fn leave(consumer: Consumer<'_>) {
    consumer.cancel().expect("the cancel");
    let left = consumer.receiver().recv_timeout(SOON).expect("the end of the consumer");
    assert!(matches!(left, ConsumerMessage::ClientCancelled), "{left:?}");
}

/// Asks until there is an answer.
pub fn until<R>(mut ask: impl FnMut() -> Option<R>, what: &str) -> R {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "no {what} within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
