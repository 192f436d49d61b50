//! Declares the exchanges and the queue. The publisher and the consumer each declare only their own names, so that a
//! problem with the names of one does not stop the other.
//!
//! The peer's queue is not declared. It is `auto_delete` and does not exist while the peer is down; the broker then
//! returns what is published.

use amiquip::{Channel, Connection, Error, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions};

use super::AmqpConfig;

/// Reply codes of AMQP 0-9-1.
pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
/// The queue is exclusive to another connection.
pub(super) const RESOURCE_LOCKED: u16 = 405;
/// Among others: a declared exchange or queue exists with other properties.
pub(super) const PRECONDITION_FAILED: u16 = 406;
/// The frames of a message are not complete.
pub(super) const UNEXPECTED_FRAME: u16 = 505;

/// Ensures that the exchange to publish to exists. Returns an open channel.
pub(super) fn for_publishing(connection: &mut Connection, config: &AmqpConfig) -> Result<Channel, Error> {
    exchange(connection, &config.publish_exchange)
}

/// Ensures that the queue to consume exists and is bound to its exchange. Returns an open channel.
pub(super) fn for_consuming(connection: &mut Connection, config: &AmqpConfig) -> Result<Channel, Error> {
    let (queue, consume_exchange) = (config.consume_queue.as_str(), config.consume_exchange.as_str());
    exchange(connection, consume_exchange)?.close()?;
    let declare = |channel: &Channel| {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue, durable).map(drop)
    };
    let look = |channel: &Channel| channel.queue_declare_passive(queue).map(drop);
    let channel = ensure(connection, "queue", queue, declare, look)?;
    match channel.queue_bind(queue, consume_exchange, queue, FieldTable::new()) {
        Ok(()) => Ok(channel),
        Err(Error::ServerClosedChannel { code: ACCESS_REFUSED, message, .. }) => {
            log::warn!(
                "queue {queue:?} cannot be bound to exchange {consume_exchange:?}; make sure that it is bound: {message}"
            );
            connection.open_channel(None)
        }
        Err(error) => Err(error),
    }
}

fn exchange(connection: &mut Connection, name: &str) -> Result<Channel, Error> {
    let declare = |channel: &Channel| {
        // The defaults are the options that the peers declare: not durable, not auto-delete.
        channel.exchange_declare(ExchangeType::Direct, name, ExchangeDeclareOptions::default()).map(drop)
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
    declare: impl FnOnce(&Channel) -> Result<(), Error>,
    look: impl FnOnce(&Channel) -> Result<(), Error>,
) -> Result<Channel, Error> {
    let channel = connection.open_channel(None)?;
    match declare(&channel) {
        Ok(()) => Ok(channel),
        Err(Error::ServerClosedChannel { code: PRECONDITION_FAILED, message, .. }) => {
            log::warn!("{kind} {name:?} exists with other properties and is used as it is: {message}");
            connection.open_channel(None)
        }
        Err(refused @ Error::ServerClosedChannel { code: ACCESS_REFUSED, .. }) => {
            let channel = connection.open_channel(None)?;
            match look(&channel) {
                Ok(()) => Ok(channel),
                // The missing permission is what the operator has to fix.
                Err(Error::ServerClosedChannel { code: NOT_FOUND, .. }) => Err(refused),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}
