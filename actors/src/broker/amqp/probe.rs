//! Finds out, without changing anything at the broker, whether a gateway could work with it.
//!
//! An object is looked at passively first. Only if it exists is it declared as the gateway would declare it: that
//! changes nothing, and the broker answers what differs. A permission is found by removing a binding that does not
//! exist, because the broker checks the permissions first.

use amiquip::{Channel, Connection, Error, ExchangeDeclareOptions, ExchangeType, FieldTable};
use uuid::Uuid;

use super::AmqpConfig;
use super::connection::{SessionError, connect, open};
use super::topology::{ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, RESOURCE_LOCKED, is_other_type, queue_options};

/// The reply code of AMQP 0-9-1 for, among others, a vhost that does not exist or that the account may not use.
const NOT_ALLOWED: u16 = 530;

/// Why a broker cannot be examined. No text contains the password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// There is no connection to its address.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The TLS handshake has failed.
    #[error("{0}")]
    Tls(String),
    /// It has refused the account.
    #[error("the login is refused: the user or the password is wrong")]
    Login,
    /// It has refused the vhost.
    #[error("the vhost is refused: {0}")]
    Vhost(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What was found of an exchange or a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It does not exist.
    Missing,
    /// It is as the gateway declares it.
    AsDeclared,
    /// It exists with other properties, and the gateway uses it as it is. The text is the broker's.
    Different(String),
    /// It is a queue of another type than the gateway asks for. The text is the broker's.
    OtherType(String),
    /// It exists, but the account may not declare it, so its properties are not known.
    Undeclarable,
    /// It cannot be used. The text is the broker's.
    Unusable(String),
}

/// How many messages wait in a queue, and how many consumers it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// The messages.
    pub messages: u32,
    /// The consumers.
    pub consumers: u32,
}

/// What was found of a queue that is not the gateway's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerQueue {
    /// It does not exist.
    Missing,
    /// It is exclusive to another connection, so nothing more is known.
    Exclusive,
    /// It exists.
    There(QueueState),
    /// The broker does not say. The text is the broker's.
    Unknown(String),
}

/// Whether an account may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// It may.
    Granted,
    /// It may not. The text is the broker's.
    Refused(String),
    /// That cannot be known, because an object is missing.
    Unknown,
}

/// What was found at a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examination {
    /// The exchange that the gateway publishes to.
    pub publish_exchange: Found,
    /// The exchange of the gateway's own queue.
    pub consume_exchange: Found,
    /// The gateway's own queue.
    pub consume_queue: Found,
    /// The state of that queue, if it can be read.
    pub consume_state: Option<QueueState>,
    /// Whether the account may publish to the exchange.
    pub may_publish: Permission,
    /// Whether the account may bind the own queue to its exchange.
    pub may_bind: Permission,
    /// The queues that publishing waits for, by their names.
    pub awaited: Vec<(String, PeerQueue)>,
}

/// Examines one node of the broker: that of `config.url`. Blocks: connecting is bounded, but a broker that
/// stops to answer later is waited for.
///
/// # Errors
/// See [`ProbeError`].
pub fn examine(config: &AmqpConfig) -> Result<Examination, ProbeError> {
    config.validate().map_err(ProbeError::Other)?;
    let stream = connect(&config.url).map_err(|error| ProbeError::Unreachable(error.to_string()))?;
    let mut connection = open(config, stream).map_err(|error| match error {
        SessionError::Tls(why) => ProbeError::Tls(why),
        SessionError::Amqp(error) => error.into(),
        other => ProbeError::Other(other.to_string()),
    })?;
    let found = look(&mut connection, config)?;
    connection.close()?;
    Ok(found)
}

impl From<Error> for ProbeError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCredentials | Error::ServerClosedConnection { code: ACCESS_REFUSED, .. } => Self::Login,
            Error::ServerClosedConnection { code: NOT_ALLOWED, message } => Self::Vhost(message),
            Error::ConnectionTimeout => Self::Other("the broker does not answer the AMQP handshake".to_owned()),
            error => Self::Other(error.to_string()),
        }
    }
}

fn look(connection: &mut Connection, config: &AmqpConfig) -> Result<Examination, ProbeError> {
    let AmqpConfig { publish_exchange, consume_exchange, consume_queue, .. } = config;
    let state = passive_queue(connection, consume_queue)?;
    Ok(Examination {
        publish_exchange: exchange(connection, publish_exchange)?,
        consume_exchange: exchange(connection, consume_exchange)?,
        consume_queue: queue(connection, config, state.as_ref().err())?,
        consume_state: state.ok(),
        may_publish: may(connection, publish_exchange, |channel, key| {
            // needs the right to write to the first, which publishing needs too, and then to read from the second
            channel.exchange_unbind(publish_exchange.as_str(), consume_exchange.as_str(), key, FieldTable::new())
        })?,
        may_bind: may_bind(connection, config)?,
        awaited: config
            .await_queues
            .iter()
            .map(|name| Ok((name.clone(), peer_queue(passive_queue(connection, name)?))))
            .collect::<Result<_, ProbeError>>()?,
    })
}

/// What the broker has refused: reply code and text.
type Refusal = (u16, String);

/// Does something on a channel of its own, because the broker closes the channel if it refuses that.
fn on_channel<T>(
    connection: &mut Connection,
    act: impl FnOnce(&Channel) -> Result<T, Error>,
) -> Result<Result<T, Refusal>, ProbeError> {
    let channel = connection.open_channel(None)?;
    match act(&channel) {
        Ok(done) => {
            channel.close()?;
            Ok(Ok(done))
        }
        Err(Error::ServerClosedChannel { code, message, .. }) => Ok(Err((code, message))),
        Err(error) => Err(error.into()),
    }
}

fn passive_queue(connection: &mut Connection, name: &str) -> Result<Result<QueueState, Refusal>, ProbeError> {
    on_channel(connection, |channel| {
        let queue = channel.queue_declare_passive(name)?;
        let messages = queue.declared_message_count().unwrap_or(0);
        Ok(QueueState { messages, consumers: queue.declared_consumer_count().unwrap_or(0) })
    })
}

fn peer_queue(state: Result<QueueState, Refusal>) -> PeerQueue {
    match state {
        Ok(state) => PeerQueue::There(state),
        Err((NOT_FOUND, _)) => PeerQueue::Missing,
        Err((RESOURCE_LOCKED, _)) => PeerQueue::Exclusive,
        Err((_, text)) => PeerQueue::Unknown(text),
    }
}

fn exchange(connection: &mut Connection, name: &str) -> Result<Found, ProbeError> {
    let passive = on_channel(connection, |channel| channel.exchange_declare_passive(name).map(drop))?;
    found(passive.err().as_ref(), || {
        on_channel(connection, |channel| {
            channel.exchange_declare(ExchangeType::Direct, name, ExchangeDeclareOptions::default()).map(drop)
        })
    })
}

/// The gateway's own queue. If it asks for a type, it takes no queue of another.
fn queue(connection: &mut Connection, config: &AmqpConfig, missing: Option<&Refusal>) -> Result<Found, ProbeError> {
    let options = queue_options(connection, config.queue_type);
    let found = found(missing, || {
        on_channel(connection, |channel| channel.queue_declare(config.consume_queue.as_str(), options).map(drop))
    })?;
    Ok(match found {
        Found::Different(text) if config.queue_type.is_some() && is_other_type(&text) => Found::OtherType(text),
        found => found,
    })
}

fn found(
    passive: Option<&Refusal>,
    declare: impl FnOnce() -> Result<Result<(), Refusal>, ProbeError>,
) -> Result<Found, ProbeError> {
    Ok(match passive {
        Some((NOT_FOUND, _)) => Found::Missing,
        Some((_, text)) => Found::Unusable(text.clone()),
        None => match declare()? {
            Ok(()) => Found::AsDeclared,
            Err((PRECONDITION_FAILED, text)) => Found::Different(text),
            Err((ACCESS_REFUSED, _)) => Found::Undeclarable,
            Err((_, text)) => Found::Unusable(text),
        },
    })
}

/// Whether the account may do `act`, which removes a binding of a random key. A refusal that is not about the object
/// `name` comes after the right for `name` was checked.
fn may(
    connection: &mut Connection,
    name: &str,
    act: impl FnOnce(&Channel, String) -> Result<(), Error>,
) -> Result<Permission, ProbeError> {
    let key = Uuid::new_v4().to_string();
    Ok(match on_channel(connection, |channel| act(channel, key.clone()))? {
        Err((ACCESS_REFUSED, text)) if text.contains(&format!("'{name}'")) => Permission::Refused(text),
        Err((NOT_FOUND, text)) if !text.contains(&key) && text.contains(&format!("'{name}'")) => Permission::Unknown,
        Ok(()) | Err(_) => Permission::Granted,
    })
}

fn may_bind(connection: &mut Connection, config: &AmqpConfig) -> Result<Permission, ProbeError> {
    let (queue, exchange) = (config.consume_queue.as_str(), config.consume_exchange.as_str());
    let key = Uuid::new_v4().to_string();
    let unbound =
        on_channel(connection, |channel| channel.queue_unbind(queue, exchange, key.as_str(), FieldTable::new()))?;
    Ok(match unbound {
        Err((ACCESS_REFUSED, text)) => Permission::Refused(text),
        Err((NOT_FOUND, text)) if !text.contains(&key) => Permission::Unknown,
        Ok(()) | Err(_) => Permission::Granted,
    })
}
