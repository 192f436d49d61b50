//! What must exist on the broker before anything is published or consumed. Each role looks after its own names alone, so
//! that what is wrong with the others does not stop it.
//!
//! The peer's queue is not declared: it is `auto_delete` and gone while the peer is down, which is how the publisher
//! learns of it.

use amiquip::{Channel, Connection, Error, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions};

use super::AmqpConfig;

/// Reply codes of AMQP 0-9-1.
pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
/// The queue is another connection's own.
pub(super) const RESOURCE_LOCKED: u16 = 405;
/// Among others, what is declared exists with other properties.
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// Sees that the exchange published to is there, and opens a channel.
pub(super) fn for_publishing(connection: &mut Connection, config: &AmqpConfig) -> Result<Channel, Error> {
    exchange(connection, &config.exchange)
}

/// Sees that the own queue is there, bound to the own exchange, and opens a channel.
pub(super) fn for_consuming(connection: &mut Connection, config: &AmqpConfig) -> Result<Channel, Error> {
    let (queue, own_exchange) = (config.own_queue.as_str(), config.own_exchange.as_str());
    exchange(connection, own_exchange)?.close()?;
    let declare = |channel: &Channel| {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue, durable).map(drop)
    };
    let look = |channel: &Channel| channel.queue_declare_passive(queue).map(drop);
    let channel = ensure(connection, "queue", queue, declare, look)?;
    match channel.queue_bind(queue, own_exchange, queue, FieldTable::new()) {
        Ok(()) => Ok(channel),
        Err(Error::ServerClosedChannel { code: ACCESS_REFUSED, message, .. }) => {
            log::warn!(
                "queue {queue:?} cannot be bound to exchange {own_exchange:?}, so it has to be bound already: {message}"
            );
            connection.open_channel(None)
        }
        Err(error) => Err(error),
    }
}

fn exchange(connection: &mut Connection, name: &str) -> Result<Channel, Error> {
    let declare = |channel: &Channel| {
        // The options' default is what the contract says: not durable, not auto-delete.
        channel.exchange_declare(ExchangeType::Direct, name, ExchangeDeclareOptions::default()).map(drop)
    };
    let look = |channel: &Channel| channel.exchange_declare_passive(name).map(drop);
    ensure(connection, "exchange", name, declare, look)
}

/// Takes what exists as it is: with other properties, or where it may only be looked at (a passive declaration needs no
/// right). Having said no, the broker has closed the channel, so there is a new one to go on with.
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
                // That it may not be made is what to do something about.
                Err(Error::ServerClosedChannel { code: NOT_FOUND, .. }) => Err(refused),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}
