//! Declares the exchanges and the queue. The publisher and the consumer each declare only their own names, so that a
//! problem with the names of one does not stop the other.
//!
//! The peer's queue is not declared. It is `auto_delete` and does not exist while the peer is down; the broker then
//! returns what is published.

use std::fmt;
use std::str::FromStr;

use amiquip::{
    AmqpValue, Channel, Connection, Error, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions,
};

use super::AmqpConfig;
use super::connection::SessionError;

/// Reply codes of AMQP 0-9-1.
pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
/// The queue is exclusive to another connection.
pub(super) const RESOURCE_LOCKED: u16 = 405;
/// Among others: a declared exchange or queue exists with other properties.
pub(super) const PRECONDITION_FAILED: u16 = 406;
/// The frames of a message are not complete.
pub(super) const UNEXPECTED_FRAME: u16 = 505;

/// The argument of a queue's declaration that has its type. The broker names it when an existing queue has another one.
const QUEUE_TYPE: &str = "x-queue-type";
/// How often a quorum queue delivers a message before it drops it.
const DELIVERY_LIMIT: &str = "x-delivery-limit";
/// The first version of RabbitMQ whose quorum queues have a delivery limit by default (20), and that knows -1 for none.
const FIRST_WITH_DELIVERY_LIMIT: u32 = 4;

/// The type of a queue, as RabbitMQ names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// On one node.
    Classic,
    /// Replicated to a majority of the nodes of a cluster.
    Quorum,
}

impl fmt::Display for QueueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        })
    }
}

impl FromStr for QueueType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Classic, Self::Quorum]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| "expected classic or quorum".to_owned())
    }
}

/// How the queue to consume is declared at this broker.
pub(super) fn queue_options(connection: &Connection, queue_type: Option<QueueType>) -> QueueDeclareOptions {
    let mut arguments = FieldTable::new();
    if let Some(queue_type) = queue_type {
        arguments.insert(QUEUE_TYPE.to_owned(), AmqpValue::LongString(queue_type.to_string()));
    }
    // A message that was put back too often, because there was no space for it, would be dropped.
    if queue_type == Some(QueueType::Quorum) && major_version(connection) >= FIRST_WITH_DELIVERY_LIMIT {
        arguments.insert(DELIVERY_LIMIT.to_owned(), AmqpValue::LongInt(-1));
    }
    QueueDeclareOptions { durable: true, arguments, ..QueueDeclareOptions::default() }
}

/// The first number of the broker's version; 0 if it has none.
fn major_version(connection: &Connection) -> u32 {
    let Some(AmqpValue::LongString(version)) = connection.server_properties().get("version") else { return 0 };
    version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

/// Whether the broker has refused a declaration because the existing queue has another type.
pub(super) fn is_other_type(refusal: &str) -> bool {
    refusal.contains(QUEUE_TYPE)
}

/// Ensures that the exchange to publish to exists. Returns an open channel.
pub(super) fn for_publishing(connection: &mut Connection, config: &AmqpConfig) -> Result<Channel, SessionError> {
    exchange(connection, &config.publish_exchange)
}

/// Ensures that the queue to consume exists, has the type that is asked for, and is bound to its exchange. Returns an
/// open channel.
pub(super) fn for_consuming(connection: &mut Connection, config: &AmqpConfig) -> Result<Channel, SessionError> {
    let (queue, consume_exchange) = (config.consume_queue.as_str(), config.consume_exchange.as_str());
    exchange(connection, consume_exchange)?.close()?;
    let options = queue_options(connection, config.queue_type);
    let declare = |channel: &Channel| match channel.queue_declare(queue, options) {
        Err(Error::ServerClosedChannel { code: PRECONDITION_FAILED, message, .. })
            if config.queue_type.is_some() && is_other_type(&message) =>
        {
            Err(SessionError::QueueType { queue: queue.to_owned(), message })
        }
        declared => Ok(declared.map(drop)?),
    };
    let look = |channel: &Channel| channel.queue_declare_passive(queue).map(drop);
    let channel = ensure(connection, "queue", queue, declare, look)?;
    match channel.queue_bind(queue, consume_exchange, queue, FieldTable::new()) {
        Ok(()) => Ok(channel),
        Err(Error::ServerClosedChannel { code: ACCESS_REFUSED, message, .. }) => {
            log::warn!(
                "queue {queue:?} cannot be bound to exchange {consume_exchange:?}; make sure that it is bound: {message}"
            );
            Ok(connection.open_channel(None)?)
        }
        Err(error) => Err(error.into()),
    }
}

fn exchange(connection: &mut Connection, name: &str) -> Result<Channel, SessionError> {
    let declare = |channel: &Channel| {
        // The defaults are the options that the peers declare: not durable, not auto-delete.
        Ok(channel.exchange_declare(ExchangeType::Direct, name, ExchangeDeclareOptions::default()).map(drop)?)
    };
    let look = |channel: &Channel| channel.exchange_declare_passive(name).map(drop);
    ensure(connection, "exchange", name, declare, look)
}

/// Declares an exchange or a queue. An existing one is used as it is, even with other properties, or if this account
/// may not declare it (a passive declaration needs no permission). When the broker refuses a declaration, it closes the
/// channel, so another one is opened.
fn ensure(
    connection: &mut Connection,
    kind: &str,
    name: &str,
    declare: impl FnOnce(&Channel) -> Result<(), SessionError>,
    look: impl FnOnce(&Channel) -> Result<(), Error>,
) -> Result<Channel, SessionError> {
    let channel = connection.open_channel(None)?;
    match declare(&channel) {
        Ok(()) => Ok(channel),
        Err(SessionError::Amqp(Error::ServerClosedChannel { code: PRECONDITION_FAILED, message, .. })) => {
            log::warn!("{kind} {name:?} exists with other properties and is used as it is: {message}");
            Ok(connection.open_channel(None)?)
        }
        Err(refused @ SessionError::Amqp(Error::ServerClosedChannel { code: ACCESS_REFUSED, .. })) => {
            let channel = connection.open_channel(None)?;
            match look(&channel) {
                Ok(()) => Ok(channel),
                // The missing permission is what the operator has to fix.
                Err(Error::ServerClosedChannel { code: NOT_FOUND, .. }) => Err(refused),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) => Err(error),
    }
}
