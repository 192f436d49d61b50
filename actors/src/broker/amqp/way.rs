//! The way of a message behind the exchange. The farm's services drop what they cannot pass on, so nothing is published
//! before their queues are back.

use std::convert::Infallible;
use std::time::Duration;

use amiquip::{Channel, Connection, Error};
use crossbeam_channel::Receiver;

use super::AmqpConfig;
use super::topology::{NOT_FOUND, RESOURCE_LOCKED};

/// How often awaited queues are looked for. RabbitMQ logs each look at one that is not there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often they are looked at while messages flow. What is published between the end of a service and the next look
/// is passed on to nobody; a look takes less than a millisecond.
const LOOK_AFTER: Duration = Duration::from_millis(250);

/// Watches the way.
pub(super) struct Way<'a> {
    config: &'a AmqpConfig,
    /// What is waited for, in words.
    waiting_for: Option<String>,
    /// Survives a look at a queue that is there.
    channel: Option<Channel>,
}

impl<'a> Way<'a> {
    /// Takes a first look, on a connection that has replaced one that was `lost`.
    pub(super) fn look(connection: &mut Connection, config: &'a AmqpConfig, lost: bool) -> Result<Self, Error> {
        let mut way = Self { config, waiting_for: None, channel: None };
        if !config.await_queues.is_empty() {
            way.waiting_for = way.missing(connection)?;
        } else if lost && !config.settle.is_zero() {
            let settle = config.settle;
            way.waiting_for = Some(format!("the farm's services to come back, {settle:?} long (--amqp-settle)"));
        }
        Ok(way)
    }

    /// What is waited for, in words; nothing where messages may flow.
    pub(super) fn waiting_for(&self) -> Option<&str> {
        self.waiting_for.as_deref()
    }

    /// Tells of every change until `ended` is disconnected, or the connection has ended, which others tell.
    pub(super) fn watch(
        mut self,
        connection: &mut Connection,
        ended: &Receiver<Infallible>,
        report: impl Fn(Option<&str>),
    ) {
        if self.config.await_queues.is_empty() {
            if self.waiting_for.is_some() && passes(ended, self.config.settle) {
                report(None);
            }
            return;
        }
        while passes(ended, if self.waiting_for.is_some() { LOOK_AGAIN } else { LOOK_AFTER }) {
            let Ok(missing) = self.missing(connection) else { return };
            if missing != self.waiting_for {
                report(missing.as_deref());
                self.waiting_for = missing;
            }
        }
    }

    /// The first awaited queue that is not ready.
    fn missing(&mut self, connection: &mut Connection) -> Result<Option<String>, Error> {
        for name in &self.config.await_queues {
            let channel = match self.channel.take() {
                Some(channel) => channel,
                None => connection.open_channel(None)?,
            };
            let consumers = match channel.queue_declare_passive(name.as_str()) {
                Ok(queue) => queue.declared_consumer_count().unwrap_or(0),
                // The broker has closed the channel.
                Err(Error::ServerClosedChannel { code: NOT_FOUND, .. }) => {
                    return Ok(Some(format!("queue {name:?}, which does not exist (--amqp-await-queue)")));
                }
                Err(Error::ServerClosedChannel { code: RESOURCE_LOCKED, .. }) => continue,
                Err(Error::ServerClosedChannel { code, message, .. }) => {
                    return Ok(Some(format!("queue {name:?} to be shown (--amqp-await-queue): {code} {message:?}")));
                }
                Err(error) => return Err(error),
            };
            self.channel = Some(channel);
            if consumers == 0 {
                return Ok(Some(format!("queue {name:?} to have a consumer (--amqp-await-queue)")));
            }
        }
        Ok(None)
    }
}

/// Waits, and says whether that has not been cut short.
fn passes(ended: &Receiver<Infallible>, time: Duration) -> bool {
    ended.recv_timeout(time) == Err(crossbeam_channel::RecvTimeoutError::Timeout)
}
