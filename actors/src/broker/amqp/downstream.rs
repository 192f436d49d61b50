//! Watches the downstream queues: those behind the exchange that the gateway publishes to. The farm's services drop
//! what they cannot pass on, so nothing is published until the downstream queues exist and have consumers.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, Error};
use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::AmqpConfig;
use super::topology::{NOT_FOUND, RESOURCE_LOCKED};

/// The pause between checks while a downstream queue is not ready. RabbitMQ logs every check of a missing queue.
const INTERVAL_WHILE_WAITING: Duration = Duration::from_secs(1);
/// The pause between checks while messages flow. If a service stops, messages that are published before the next check
/// are lost. A check takes less than a millisecond.
const INTERVAL_WHILE_FLOWING: Duration = Duration::from_millis(250);

/// Watches the downstream queues, or the settle delay if no queue is named.
pub(super) struct Downstream<'a> {
    config: &'a AmqpConfig,
    /// The end of the settle delay.
    settled: Option<Instant>,
    /// What publishing waits for, as text for the log and `/readyz`.
    waiting_for: Option<String>,
    /// `None` after the broker has closed it, as it does when a queue does not exist.
    channel: Option<Channel>,
}

impl<'a> Downstream<'a> {
    /// Checks the queues for the first time. `settled` is the end of the settle delay after the last lost connection.
    pub(super) fn look(
        connection: &mut Connection,
        config: &'a AmqpConfig,
        settled: Option<Instant>,
    ) -> Result<Self, Error> {
        let mut downstream = Self { config, settled, waiting_for: None, channel: None };
        if !config.await_queues.is_empty() {
            downstream.waiting_for = downstream.missing(connection)?;
        } else if settled.is_some_and(|settled| settled > Instant::now()) {
            let settle = config.settle;
            downstream.waiting_for =
                Some(format!("the farm's services to reconnect to the broker, for {settle:?} (--amqp-settle)"));
        }
        Ok(downstream)
    }

    /// What publishing waits for; `None` if messages may flow.
    pub(super) fn waiting_for(&self) -> Option<&str> {
        self.waiting_for.as_deref()
    }

    /// Reports every change until `ended` is disconnected.
    ///
    /// # Errors
    /// Why the queues can no longer be checked.
    pub(super) fn watch(
        mut self,
        connection: &mut Connection,
        ended: &Receiver<Infallible>,
        report: impl Fn(Option<&str>),
    ) -> Result<(), Error> {
        if self.config.await_queues.is_empty() {
            let settled = self.settled.filter(|_| self.waiting_for.is_some());
            if settled.is_some_and(|settled| elapses(ended, settled.saturating_duration_since(Instant::now()))) {
                report(None);
            }
            return Ok(());
        }
        while elapses(ended, self.interval()) {
            let missing = self.missing(connection)?;
            if missing != self.waiting_for {
                report(missing.as_deref());
                self.waiting_for = missing;
            }
        }
        Ok(())
    }

    fn interval(&self) -> Duration {
        if self.waiting_for.is_some() { INTERVAL_WHILE_WAITING } else { INTERVAL_WHILE_FLOWING }
    }

    /// The first downstream queue that is not ready.
    fn missing(&mut self, connection: &mut Connection) -> Result<Option<String>, Error> {
        for name in &self.config.await_queues {
            let channel = match self.channel.take() {
                Some(channel) => channel,
                None => connection.open_channel(None)?,
            };
            let consumers = match channel.queue_declare_passive(name.as_str()) {
                Ok(queue) => queue.declared_consumer_count().unwrap_or(0),
                // The broker has closed the channel in all of these cases.
                Err(Error::ServerClosedChannel { code: NOT_FOUND, .. }) => {
                    return Ok(Some(format!("queue {name:?}, which does not exist (--amqp-await-queue)")));
                }
                Err(Error::ServerClosedChannel { code: RESOURCE_LOCKED, .. }) => continue,
                Err(Error::ServerClosedChannel { code, message, .. }) => {
                    return Ok(Some(format!(
                        "queue {name:?}, which the broker does not let us check (--amqp-await-queue): {code} {message}"
                    )));
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

/// Waits for `time`, or until `ended` is disconnected. Returns whether the whole time has passed.
fn elapses(ended: &Receiver<Infallible>, time: Duration) -> bool {
    ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
}
