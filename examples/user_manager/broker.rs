//! Receives messages from the broker.

use std::thread;
use std::time::Duration;

use amiquip::{AmqpValue, Connection};
use amiquip::{Channel, Consumer, ConsumerMessage, ConsumerOptions, Delivery, FieldTable, QueueDeclareOptions};
use url::Url;

use crate::amqp::{self, Result};
use crate::inbox::{Inbox, Message, Next};
use crate::{Args, Deadline};

/// How many unacknowledged messages the broker sends: with images of 50 MiB, 200 MiB in memory.
const PREFETCH: u16 = 4;

const RETRY: Duration = Duration::from_secs(1);

pub fn receive(args: &Args, url: &Url, deadline: Deadline, inbox: &mut Inbox) -> Result<()> {
    let mut connection = amqp::connect(url)?;
    loop {
        match session(args, &mut connection, deadline, inbox) {
            Ok(()) => {
                // Closing waits for the last acknowledgement to be sent.
                return connection.close().map_err(|error| amqp::chain(&error).into());
            }
            Err(Failure::Fatal(error)) => return Err(error),
            Err(Failure::Connection(error)) => eprintln!("broker: {error}; reconnecting"),
        }
        // The queue is deleted with its connection. The gateway keeps what it cannot route, and publishes it again.
        connection = loop {
            thread::sleep(RETRY.min(deadline.left()?));
            match amqp::connect(url) {
                Ok(connection) => break connection,
                Err(error) => eprintln!("broker: {error}; trying again"),
            }
        };
    }
}

enum Failure {
    Connection(String),
    Fatal(Box<dyn std::error::Error>),
}

impl From<amiquip::Error> for Failure {
    fn from(error: amiquip::Error) -> Self {
        Self::Connection(amqp::chain(&error))
    }
}

impl From<Box<dyn std::error::Error>> for Failure {
    fn from(error: Box<dyn std::error::Error>) -> Self {
        Self::Fatal(error)
    }
}

fn session(
    args: &Args,
    connection: &mut Connection,
    deadline: Deadline,
    inbox: &mut Inbox,
) -> std::result::Result<(), Failure> {
    amqp::ensure_exchange(connection, &args.exchange)?;
    let channel = connection.open_channel(None)?;
    let consumer = consume(args, &channel)?;
    loop {
        let delivery = match consumer.receiver().recv_timeout(deadline.left()?) {
            Ok(ConsumerMessage::Delivery(delivery)) => delivery,
            Ok(ConsumerMessage::ServerClosedConnection(error) | ConsumerMessage::ServerClosedChannel(error)) => {
                return Err(error.into());
            }
            Ok(ended) => return Err(Failure::Connection(format!("the consumer ended: {ended:?}"))),
            Err(error) if error.is_timeout() => continue,
            Err(_) => return Err(Failure::Connection("the connection was lost".into())),
        };
        let next = inbox.take(&message(&delivery))?;
        consumer.ack(delivery)?;
        if let Next::Done = next {
            return Ok(());
        }
    }
}

fn consume<'a>(args: &Args, channel: &'a Channel) -> std::result::Result<Consumer<'a>, Failure> {
    channel.qos(0, PREFETCH, false)?;
    let options = QueueDeclareOptions { auto_delete: true, ..Default::default() };
    let queue = channel.queue_declare(&args.queue, options)?;
    channel.queue_bind(queue.name(), &args.exchange, &args.routing_key, FieldTable::new())?;
    let consumer = queue.consume(ConsumerOptions::default())?;
    eprintln!("listening on queue {}, bound to {} under {}", queue.name(), args.exchange, args.routing_key);
    Ok(consumer)
}

fn message(delivery: &Delivery) -> Message<'_> {
    let properties = &delivery.properties;
    let format = properties.headers().as_ref().and_then(|headers| headers.get("DATA_FORMAT"));
    let pickled = matches!(format, Some(AmqpValue::LongString(text)) if text == "BYTES");
    Message {
        id: properties.message_id().as_deref(),
        // AMQP only marks redeliveries; it does not count them.
        deliveries: Some(if delivery.redelivered { 2 } else { 1 }),
        pickled,
        body: &delivery.body,
    }
}
