//! Consumes a queue, and settles its deliveries.

use std::collections::HashMap;
use std::convert::Infallible;
use std::mem;
use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, Channel, Consumer, ConsumerMessage, ConsumerOptions, Error};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, never, select, unbounded};

use super::AmqpConfig;
use super::connection::{SessionError, cause};
use super::reconnect::{Worker, reconnect};
use super::topology;
use crate::broker::{ConsumerEvent, ConsumerLink, Delivery, Fingerprint, Settlement, Settler};
use crate::codec::Format;

/// How many characters of a property are kept for the log.
const SHOWN_CHARS: usize = 100;

/// A running consumer. Dropping it ends the connection, without blocking; the broker then redelivers what was not
/// settled.
#[derive(Debug)]
pub struct AmqpConsumer {
    orders: Sender<Order>,
    worker: Worker,
}

impl AmqpConsumer {
    /// Ends it, and waits for that for at most `deadline`; 3 s are enough if it is connected. Returns whether it has
    /// ended and every settlement made before this call has been sent.
    pub fn stop(self, deadline: Duration) -> bool {
        self.worker.stop(deadline)
    }
}

impl ConsumerLink for AmqpConsumer {
    fn consume(&self, prefetch: u16) {
        // Fails only if `on_event` has panicked, which ends the thread.
        let _ = self.orders.send(Order::Consume(prefetch));
    }

    fn stop(self: Box<Self>, deadline: Duration) -> bool {
        AmqpConsumer::stop(*self, deadline)
    }
}

/// Starts to consume `config.consume_queue`, and reconnects after every loss of the connection.
///
/// At most `prefetch` deliveries are unsettled at any time, which bounds their memory to `prefetch` times the largest
/// message. With 0 nothing is delivered until [`ConsumerLink::consume`] is called.
///
/// `on_event` is called on the consumer's own thread, so it must not block for long: settlements wait for it
/// (heartbeats do not). After the handle is dropped, the end of the connection is not reported.
///
/// # Panics
/// If no thread can be started, as [`std::thread::spawn`] does.
pub fn start_consumer(
    config: AmqpConfig,
    prefetch: u16,
    on_event: impl Fn(ConsumerEvent) + Send + 'static,
) -> AmqpConsumer {
    // Unbounded, but short: at most `prefetch` settlements for each connection since the thread last read it.
    let (orders, ordered) = unbounded();
    let order = orders.clone();
    let worker = Worker::spawn("amqp-consumer", move |stop| {
        let mut prefetch = prefetch;
        reconnect(
            "AMQP consumer",
            &config,
            stop,
            |end| on_event(ConsumerEvent::Disconnected { reason: end.reason }),
            |attempt, connection, _| {
                let channel = topology::for_consuming(connection, &config)?;
                let ended = Session {
                    epoch: attempt.number,
                    channel: &channel,
                    order: &order,
                    ordered: &ordered,
                    prefetch: &mut prefetch,
                    unsettled: HashMap::new(),
                    on_event: &on_event,
                }
                .run(&config.consume_queue, stop);
                // Sent after the acknowledgements on the same channel: once the broker answers, they have arrived.
                // amiquip sends the close of the connection through another queue, so that might overtake them.
                cause(ended, channel.close().map_err(SessionError::from))
            },
        );
    });
    AmqpConsumer { orders, worker }
}

/// What the handle and the settlers send to the thread, in order.
#[derive(Debug)]
enum Order {
    /// From a [`Settler`].
    Settle(Settle),
    /// From the handle.
    Consume(u16),
}

#[derive(Debug)]
struct Settle {
    epoch: u64,
    delivery_tag: u64,
    settlement: Settlement,
}

struct Session<'a, F> {
    epoch: u64,
    channel: &'a Channel,
    order: &'a Sender<Order>,
    ordered: &'a Receiver<Order>,
    /// The last value of [`ConsumerLink::consume`].
    prefetch: &'a mut u16,
    /// Unsettled deliveries by delivery tag, without their bodies. amiquip needs these values to settle.
    unsettled: HashMap<u64, amiquip::Delivery>,
    on_event: &'a F,
}

impl<'a, F: Fn(ConsumerEvent)> Session<'a, F> {
    fn run(mut self, queue: &str, stop: &Receiver<Infallible>) -> Result<(), SessionError> {
        let mut consumer = self.consume(queue)?;
        (self.on_event)(ConsumerEvent::Connected);
        if consumer.is_none() {
            // The previous connection may have ended before it reported this.
            (self.on_event)(ConsumerEvent::Cancelled);
        }
        let nothing = never();
        loop {
            let messages = consumer.as_ref().map_or(&nothing, Consumer::receiver);
            select! {
                recv(stop) -> _ => break,
                recv(self.ordered) -> order => match order {
                    Ok(Order::Settle(settle)) => self.settle(settle)?,
                    Ok(Order::Consume(prefetch)) => {
                        *self.prefetch = prefetch;
                        if let Some(consumer) = consumer.take() {
                            self.end(&consumer)?;
                        }
                        consumer = self.consume(queue)?;
                        if consumer.is_none() {
                            (self.on_event)(ConsumerEvent::Cancelled);
                        }
                    }
                    // The handle is dropped, and `stop` with it.
                    Err(_) => break,
                },
                recv(messages) -> message => {
                    if !self.take(message.ok())? {
                        return Err(Error::EventLoopDropped.into());
                    }
                }
            }
        }
        let ordered = self.ordered;
        for order in ordered.try_iter() {
            if let Order::Settle(settle) = order {
                self.settle(settle)?;
            }
        }
        Ok(())
    }

    /// Starts a consumer with the current prefetch, unless that is 0. RabbitMQ applies a prefetch only to consumers
    /// that start later.
    fn consume(&self, queue: &str) -> Result<Option<Consumer<'a>>, Error> {
        if *self.prefetch == 0 {
            return Ok(None);
        }
        self.channel.qos(0, *self.prefetch, false)?;
        self.channel.basic_consume(queue, ConsumerOptions::default()).map(Some)
    }

    /// Cancels a consumer, and handles what it still delivers.
    fn end(&mut self, consumer: &Consumer<'_>) -> Result<(), SessionError> {
        consumer.cancel()?;
        while self.take(consumer.receiver().recv().ok())? {}
        Ok(())
    }

    /// Handles what a consumer has received. Returns whether more may follow.
    fn take(&mut self, message: Option<ConsumerMessage>) -> Result<bool, SessionError> {
        match message {
            Some(ConsumerMessage::Delivery(delivery)) => {
                self.deliver(delivery);
                Ok(true)
            }
            Some(ConsumerMessage::ServerCancelled) => Err(SessionError::ConsumerCancelled),
            Some(ConsumerMessage::ServerClosedChannel(error) | ConsumerMessage::ServerClosedConnection(error)) => {
                Err(error.into())
            }
            Some(
                ConsumerMessage::ClientCancelled
                | ConsumerMessage::ClientClosedChannel
                | ConsumerMessage::ClientClosedConnection,
            )
            | None => Ok(false),
        }
    }

    fn deliver(&mut self, mut delivery: amiquip::Delivery) {
        let (epoch, delivery_tag, order) = (self.epoch, delivery.delivery_tag(), self.order.clone());
        let body = Bytes::from(mem::take(&mut delivery.body));
        let (format, data_format) = format_of(&delivery.properties);
        let message_id = delivery.properties.message_id().as_deref();
        let event = ConsumerEvent::Delivered(Delivery {
            fingerprint: Fingerprint::new(&body, message_id),
            body,
            message_id: message_id.map(|id| id.chars().take(SHOWN_CHARS).collect()),
            format,
            data_format,
            redelivered: delivery.redelivered,
            settler: Settler::new(move |settlement| {
                // Fails if the consumer has ended. The broker then requeues the delivery by itself.
                let _ = order.send(Order::Settle(Settle { epoch, delivery_tag, settlement }));
            }),
        });
        self.unsettled.insert(delivery_tag, delivery);
        (self.on_event)(event);
    }

    fn settle(&mut self, settle: Settle) -> Result<(), Error> {
        // A delivery tag is valid only on its own connection. The broker has requeued the deliveries of earlier ones.
        if settle.epoch != self.epoch {
            return Ok(());
        }
        let Some(delivery) = self.unsettled.remove(&settle.delivery_tag) else { return Ok(()) };
        match settle.settlement {
            Settlement::Ack => delivery.ack(self.channel),
            Settlement::Reject => delivery.reject(self.channel, false),
            Settlement::Requeue => delivery.nack(self.channel, true),
        }
    }
}

/// The format, and the header `DATA_FORMAT` as it is logged.
fn format_of(properties: &AmqpProperties) -> (Format, String) {
    let header = properties.headers().as_ref().and_then(|headers| headers.get("DATA_FORMAT"));
    let (value, shown) = match header {
        // amiquip turns short strings into long ones.
        Some(AmqpValue::LongString(value)) => (value.as_bytes(), format!("{value:?}")),
        // Python's aio_pika sends `bytes` as a byte array.
        Some(AmqpValue::ByteArray(value)) => (&value[..], format!("b\"{}\"", value.escape_ascii())),
        Some(other) => (&[][..], format!("{other:?}")),
        None => (&[][..], "not given".to_owned()),
    };
    let format = if value.eq_ignore_ascii_case(b"BYTES") { Format::Pickle } else { Format::Json };
    (format, shown.chars().take(SHOWN_CHARS).collect())
}
