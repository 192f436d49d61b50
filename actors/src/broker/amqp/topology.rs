//! What must exist on the broker before anything is published or consumed.

use amiquip::{Channel, Connection, Error, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions};

use super::AmqpConfig;

/// Reply code of AMQP 0-9-1: among others, what is declared exists with other properties.
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// Declares everything that is ours or published to, and opens a channel.
///
/// The peer's queue is not declared: it is `auto_delete` and gone while the peer is down, which is how the
/// publisher learns of it.
pub(super) fn declare(connection: &mut Connection, config: &AmqpConfig) -> Result<Channel, Error> {
    let channel = connection.open_channel(None)?;
    let channel = declare_exchange(connection, channel, &config.own_exchange)?;
    let channel = declare_exchange(connection, channel, &config.exchange)?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(config.own_queue.as_str(), durable).map(drop);
    let channel = settle_for_existing(connection, channel, declared, "queue", &config.own_queue)?;
    channel.queue_bind(
        config.own_queue.as_str(),
        config.own_exchange.as_str(),
        config.own_queue.as_str(),
        FieldTable::new(),
    )?;
    Ok(channel)
}

fn declare_exchange(connection: &mut Connection, channel: Channel, name: &str) -> Result<Channel, Error> {
    // The options' default is what the contract says: not durable, not auto-delete.
    let options = ExchangeDeclareOptions::default();
    let declared = channel.exchange_declare(ExchangeType::Direct, name, options).map(drop);
    settle_for_existing(connection, channel, declared, "exchange", name)
}

/// Takes what exists with other properties as it is. Having been told of it, the broker has closed the channel, so
/// there is a new one to go on with.
fn settle_for_existing(
    connection: &mut Connection,
    channel: Channel,
    declared: Result<(), Error>,
    kind: &str,
    name: &str,
) -> Result<Channel, Error> {
    match declared {
        Ok(()) => Ok(channel),
        Err(Error::ServerClosedChannel { code: PRECONDITION_FAILED, message, .. }) => {
            log::warn!("{kind} {name:?} exists with other properties and is used as it is: {message}");
            connection.open_channel(None)
        }
        Err(error) => Err(error),
    }
}
