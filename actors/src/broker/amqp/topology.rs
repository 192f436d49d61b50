//! What must exist on the broker before anything is published or consumed. Each role declares its own names only, so
//! that a fault of the other role's names does not stop it.
//!
//! The peer's queue is not declared. It is `auto_delete` and does not exist while the peer is down, so the broker
//! returns what is published then.

use amiquip::{Channel, Connection, Error, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions};

use super::AmqpConfig;

/// Reply codes of AMQP 0-9-1.
pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
/// The queue is exclusive to another connection.
pub(super) const RESOURCE_LOCKED: u16 = 405;
/// Among others, what is declared exists with other properties.
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
                "queue {queue:?} cannot be bound to exchange {consume_exchange:?}, so it has to be bound already: {message}"
            );
            connection.open_channel(None)
        }
        Err(error) => Err(error),
    }
}

fn exchange(connection: &mut Connection, name: &str) -> Result<Channel, Error> {
    let declare = |channel: &Channel| {
        // The default options are what the peers declare: not durable, not auto-delete.
        channel.exchange_declare(ExchangeType::Direct, name, ExchangeDeclareOptions::default()).map(drop)
    };
    let look = |channel: &Channel| channel.exchange_declare_passive(name).map(drop);
    ensure(connection, "exchange", name, declare, look)
}

/// Declares a name. What exists already is used as it is: with other properties, or where this account may not declare
/// it (a passive declaration needs no right). The broker closes the channel over a refused declaration, so another one
/// is opened.
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
                // The operator has to do something about the missing right, not about the missing name.
                Err(Error::ServerClosedChannel { code: NOT_FOUND, .. }) => Err(refused),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}
