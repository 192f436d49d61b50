//! The broker over AMQP 0-9-1, through amiquip; nothing outside this module names amiquip.
//!
//! amiquip is synchronous and does not reconnect. So the publisher and the consumer each have a thread of their own
//! that connects, declares the topology, runs until the connection ends, reports why, and begins again:
//!
//! ```text
//! AmqpPublisher ──commands──▶ thread "amqp-publisher" ◀──confirms, returns── amiquip's I/O thread ◀──▶ socket
//! Settler ─────settlements──▶ thread "amqp-consumer"  ◀──deliveries───────── amiquip's I/O thread ◀──▶ socket
//! ```
//!
//! Two connections, since RabbitMQ stops *reading* from one that publishes while it is short of memory or disk, and
//! acknowledgements must get through then.

use std::path::PathBuf;
use std::time::Duration;

mod connection;
mod consumer;
mod downstream;
mod publisher;
mod reconnect;
mod sanitize;
#[cfg(test)]
mod sanitize_tests;
mod stream;
mod tls;
mod topology;
mod url;

pub use consumer::{AmqpConsumer, start_consumer};
pub use publisher::{AmqpPublisher, start_publisher};
pub use url::{AmqpUrl, AmqpUrlError};

/// AMQP 0-9-1 sends names as short strings: one byte of length. amiquip would cut the length and send a broken frame.
const MAX_NAME_BYTES: usize = 255;

/// The farm's services look for a lost broker every 5 s, each by itself: by then all of them have found it.
const DEFAULT_SETTLE: Duration = Duration::from_secs(10);

/// Where the broker is, and the names of what is used there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpConfig {
    /// The broker.
    pub url: AmqpUrl,
    /// The CAs of which the broker's certificate must be, in a PEM file that is read for each connection; without,
    /// those that the system trusts. For a URL with TLS.
    pub ca_file: Option<PathBuf>,
    /// The own exchange, through which others reach the own queue.
    pub own_exchange: String,
    /// The own queue, consumed from; bound to the own exchange under its own name.
    pub own_queue: String,
    /// The exchange published to.
    pub exchange: String,
    /// The routing key published with.
    pub routing_key: String,
    /// Queues of the farm behind that exchange: nothing is published while one of them does not exist or has no consumer.
    /// RabbitMQ does not tell the consumers of an exclusive queue, so there its existence counts.
    pub await_queues: Vec<String>,
    /// Without `await_queues`: how long nothing is published after a lost connection, once there is another. The farm's
    /// services have lost theirs too, and one that is back drops what it has for one that is not.
    pub settle: Duration,
}

impl AmqpConfig {
    /// The names that the farm's services use.
    pub fn new(url: AmqpUrl) -> Self {
        Self {
            url,
            ca_file: None,
            own_exchange: "USER_HTTP_SERVER_EXCHANGE".to_owned(),
            own_queue: "UHTTPSE_CI".to_owned(),
            exchange: "COMMUNICATION_INTERFACE_EXCHANGE".to_owned(),
            routing_key: "CIE_USER_HTTP_SERVER".to_owned(),
            await_queues: Vec::new(),
            settle: DEFAULT_SETTLE,
        }
    }

    /// Checks that AMQP can carry the names: 1 to 255 bytes each.
    ///
    /// # Errors
    /// Names the first one that it cannot.
    pub fn validate(&self) -> Result<(), String> {
        let names = [
            ("own exchange", &self.own_exchange),
            ("own queue", &self.own_queue),
            ("exchange published to", &self.exchange),
            ("routing key", &self.routing_key),
        ];
        let awaited = self.await_queues.iter().map(|name| ("awaited queue", name));
        match names.into_iter().chain(awaited).find(|(_, name)| name.is_empty() || name.len() > MAX_NAME_BYTES) {
            None => Ok(()),
            Some((what, name)) => {
                Err(format!("the name of the {what} has {} bytes; AMQP takes 1 to {MAX_NAME_BYTES}", name.len()))
            }
        }
    }
}
