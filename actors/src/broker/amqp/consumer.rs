//! Consuming, and settling what was delivered.

use std::collections::HashMap;
use std::convert::Infallible;
use std::mem;
use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, Channel, Consumer, ConsumerMessage, ConsumerOptions, Error};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, select, unbounded};

use super::AmqpConfig;
use super::connection::{SessionError, cause};
use super::topology;
use super::worker::{Worker, reconnect};
use crate::broker::{ConsumerEvent, ConsumerLink, Delivery, Fingerprint, Settlement, Settler};
use crate::codec::Format;

/// How much is kept of what a log may have to say of a message.
const SHOWN_CHARS: usize = 100;

/// A running consumer. Dropping it ends the connection, without blocking, and the broker delivers what was not
/// settled to another one.
#[derive(Debug)]
pub struct AmqpConsumer {
    worker: Worker,
}

impl AmqpConsumer {
    /// Ends it and waits for that, at most for `deadline`; 3 s are enough where it is connected. Says whether it
    /// has ended, and with it every settlement made before this call been sent.
    pub fn stop(self, deadline: Duration) -> bool {
        self.worker.stop(deadline)
    }
}

impl ConsumerLink for AmqpConsumer {
    fn stop(self: Box<Self>, deadline: Duration) -> bool {
        AmqpConsumer::stop(*self, deadline)
    }
}

/// Starts to consume from `config.own_queue`, and goes on through every loss of the connection.
///
/// At most `prefetch` deliveries are unsettled at any time, which bounds the memory of all that waits: `prefetch`
/// times the largest message. AMQP's 0, "without a bound", is taken as 1.
///
/// `on_event` is called on the consumer's own thread, so it must not block for long: heartbeats go on, but
/// settlements wait. The end that the handle's drop brings about is not reported.
///
/// # Panics
/// Where the operating system has no thread to give, as [`std::thread::spawn`].
pub fn start_consumer(
    config: AmqpConfig,
    prefetch: u16,
    on_event: impl Fn(ConsumerEvent) + Send + 'static,
) -> AmqpConsumer {
    let worker = Worker::spawn("amqp-consumer", move |stop| {
        // Without a bound of its own: `prefetch` is the bound, once for each connection since the last session's start.
        let (settle, settlements) = unbounded();
        reconnect(
            "AMQP consumer",
            &config,
            stop,
            |reason| on_event(ConsumerEvent::Disconnected { reason }),
            |epoch, connection, _| {
                let channel = topology::for_consuming(connection, &config)?;
                let ended = Session {
                    epoch,
                    channel: &channel,
                    settle: &settle,
                    settlements: &settlements,
                    unsettled: HashMap::new(),
                    on_event: &on_event,
                }
                .run(&config.own_queue, prefetch.max(1), stop);
                // Behind the acknowledgements, in order: once this is answered, they have arrived. The close of the
                // connection takes another way through amiquip and might overtake them.
                cause(ended, channel.close().map_err(SessionError::from))
            },
        );
    });
    AmqpConsumer { worker }
}

/// What a [`Settler`] sends.
#[derive(Debug)]
struct Settle {
    epoch: u64,
    delivery_tag: u64,
    settlement: Settlement,
}

struct Session<'a, F> {
    epoch: u64,
    channel: &'a Channel,
    settle: &'a Sender<Settle>,
    settlements: &'a Receiver<Settle>,
    /// By delivery tag, emptied of their bodies: what amiquip wants to see again in order to settle.
    unsettled: HashMap<u64, amiquip::Delivery>,
    on_event: &'a F,
}

impl<F: Fn(ConsumerEvent)> Session<'_, F> {
    fn run(mut self, queue: &str, prefetch: u16, stop: &Receiver<Infallible>) -> Result<(), SessionError> {
        self.channel.qos(0, prefetch, false)?;
        let consumer: Consumer<'_> = self.channel.basic_consume(queue, ConsumerOptions::default())?;
        (self.on_event)(ConsumerEvent::Connected);
        loop {
            select! {
                recv(stop) -> _ => break,
                recv(self.settlements) -> settle => if let Ok(settle) = settle { self.settle(settle)? },
                recv(consumer.receiver()) -> message => match message {
                    Ok(ConsumerMessage::Delivery(delivery)) => self.deliver(delivery),
                    Ok(ConsumerMessage::ServerCancelled) => return Err(SessionError::ConsumerCancelled),
                    Ok(
                        ConsumerMessage::ServerClosedChannel(error)
                        | ConsumerMessage::ServerClosedConnection(error),
                    ) => return Err(error.into()),
                    Ok(
                        ConsumerMessage::ClientCancelled
                        | ConsumerMessage::ClientClosedChannel
                        | ConsumerMessage::ClientClosedConnection,
                    )
                    | Err(_) => return Err(Error::EventLoopDropped.into()),
                },
            }
        }
        for settle in self.settlements.try_iter() {
            self.settle(settle)?;
        }
        Ok(())
    }

    fn deliver(&mut self, mut delivery: amiquip::Delivery) {
        let (epoch, delivery_tag, settle) = (self.epoch, delivery.delivery_tag(), self.settle.clone());
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
                // An error says that the consumer has ended; the broker then requeues by itself.
                let _ = settle.send(Settle { epoch, delivery_tag, settlement });
            }),
        });
        self.unsettled.insert(delivery_tag, delivery);
        (self.on_event)(event);
    }

    fn settle(&mut self, settle: Settle) -> Result<(), Error> {
        // A delivery tag means something on its own connection only; what an earlier one delivered has been requeued.
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

/// The format, and what the header says of it, for people.
fn format_of(properties: &AmqpProperties) -> (Format, String) {
    let header = properties.headers().as_ref().and_then(|headers| headers.get("DATA_FORMAT"));
    let (value, shown) = match header {
        // amiquip reads a short string as this one too.
        Some(AmqpValue::LongString(value)) => (value.as_bytes(), format!("{value:?}")),
        // What Python's aio_pika makes of bytes.
        Some(AmqpValue::ByteArray(value)) => (&value[..], format!("b\"{}\"", value.escape_ascii())),
        Some(other) => (&[][..], format!("{other:?}")),
        None => (&[][..], "not given".to_owned()),
    };
    let format = if value.eq_ignore_ascii_case(b"BYTES") { Format::Pickle } else { Format::Json };
    (format, shown.chars().take(SHOWN_CHARS).collect())
}
