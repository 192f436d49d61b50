//! The broker over AMQP 0-9-1, through amiquip. Nothing outside this module uses amiquip.
//!
//! amiquip is synchronous and does not reconnect. So the publisher and the consumer each have a thread that connects,
//! declares the topology, runs until the connection ends, reports why, and starts again:
//!
//! ```text
//! AmqpPublisher ──commands──▶ thread "amqp-publisher" ◀──confirms, returns── amiquip's I/O thread ◀──▶ socket
//! Settler ─────settlements──▶ thread "amqp-consumer"  ◀──deliveries───────── amiquip's I/O thread ◀──▶ socket
//! ```
//!
//! There are two connections because RabbitMQ stops *reading* from a connection that publishes while it is short of
//! memory or disk, and acknowledgements must still reach it then.

use std::path::PathBuf;
use std::time::Duration;

mod connection;
mod consumer;
mod downstream;
pub mod probe;
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
pub use topology::QueueType;
pub use url::{AmqpUrl, AmqpUrlError};

/// The log target of the AMQP client library. An application should log only its errors: at `warn` it repeats what the
/// actors log, and adds a line for each check of a downstream queue.
pub const CLIENT_LOG_TARGET: &str = "amiquip";
/// The log target within [`CLIENT_LOG_TARGET`] that logs the broker's password at `debug` and below. An application
/// must not enable these levels.
pub const PASSWORD_LOG_TARGET: &str = "amiquip::io_loop::handshake_state";

/// AMQP 0-9-1 sends names as short strings, with a length of one byte. For a longer name, amiquip would truncate the
/// length and send a broken frame.
const MAX_NAME_BYTES: usize = 255;

/// The farm's services try to reconnect every 5 s, each on its own cycle. After this time all of them have reconnected.
const DEFAULT_SETTLE: Duration = Duration::from_secs(10);

/// The longest settle delay, a day.
pub const MAX_SETTLE: Duration = Duration::from_secs(86_400);

/// The address of the broker, and the names of exchanges and queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpConfig {
    /// The broker, or the first node of its cluster.
    pub url: AmqpUrl,
    /// The other nodes of the cluster. When a node cannot be reached or is lost, the next one is tried at once; after
    /// all of them have failed in turn, there is a pause.
    pub further_urls: Vec<AmqpUrl>,
    /// For a URL with TLS: a PEM file with the CAs that may have issued the broker's certificate, read for each
    /// connection. `None` for the CAs that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The exchange through which the farm's services reach `consume_queue`.
    pub consume_exchange: String,
    /// The queue that is consumed; bound to `consume_exchange` under its own name.
    pub consume_queue: String,
    /// The type of `consume_queue`. `None` leaves it to the broker, and takes an existing queue of any type.
    pub queue_type: Option<QueueType>,
    /// The exchange that is published to.
    pub publish_exchange: String,
    /// The routing key of everything that is published.
    pub routing_key: String,
    /// The downstream queues: nothing is published while one of them does not exist or has no consumer. RabbitMQ does
    /// not report the consumers of an exclusive queue to others, so such a queue counts as ready if it exists.
    pub await_queues: Vec<String>,
    /// The settle delay, used without `await_queues`: how long nothing is published on a new connection after one was
    /// lost. The farm's services have lost the broker too, and one that has reconnected drops the messages for one that
    /// has not. At most [`MAX_SETTLE`]; a longer one counts as that.
    pub settle: Duration,
}

impl AmqpConfig {
    /// The names that the farm's services use.
    pub fn new(url: AmqpUrl) -> Self {
        Self {
            url,
            further_urls: Vec::new(),
            ca_file: None,
            consume_exchange: "USER_HTTP_SERVER_EXCHANGE".to_owned(),
            consume_queue: "UHTTPSE_CI".to_owned(),
            queue_type: None,
            publish_exchange: "COMMUNICATION_INTERFACE_EXCHANGE".to_owned(),
            routing_key: "CIE_USER_HTTP_SERVER".to_owned(),
            await_queues: Vec::new(),
            settle: DEFAULT_SETTLE,
        }
    }

    /// For each node, in order, this configuration with that node alone.
    pub fn nodes(&self) -> Vec<Self> {
        let urls = [&self.url].into_iter().chain(&self.further_urls);
        urls.map(|url| Self { url: url.clone(), further_urls: Vec::new(), ..self.clone() }).collect()
    }

    /// Checks that AMQP can carry the names: 1 to 255 bytes each.
    ///
    /// # Errors
    /// The text names the first name that is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let names = [
            ("consumed exchange", &self.consume_exchange),
            ("consumed queue", &self.consume_queue),
            ("exchange published to", &self.publish_exchange),
            ("routing key", &self.routing_key),
        ];
        let awaited = self.await_queues.iter().map(|name| ("awaited queue", name));
        match names.into_iter().chain(awaited).find(|(_, name)| name.is_empty() || name.len() > MAX_NAME_BYTES) {
            None => Ok(()),
            Some((what, name)) => {
                Err(format!("the name of the {what} has {} bytes; AMQP allows 1 to {MAX_NAME_BYTES}", name.len()))
            }
        }
    }
}
