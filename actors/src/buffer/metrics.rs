//! What the buffer reports about its messages.

use std::sync::Arc;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use crate::age::Since;
use crate::messages::BrokerDelivery;
use crate::metrics::{OldestAge, Total};

const MESSAGES: &str = "user_http_server_buffer_messages";
const BYTES: &str = "user_http_server_buffer_bytes";
const LIMIT: &str = "user_http_server_buffer_limit_bytes";
const IN_DELIVERY: &str = "user_http_server_buffer_in_delivery";
const OLDEST: &str = "user_http_server_buffer_oldest_seconds";
const RECOVERED: &str = "user_http_server_buffer_recovered_messages";
const ACCEPTED: &str = "user_http_server_buffer_accepted_total";
const DELIVERED: &str = "user_http_server_buffer_delivered_total";
const REPLACED: &str = "user_http_server_buffer_replaced_total";
const EXPIRED: &str = "user_http_server_buffer_expired_total";
const DISCARDED: &str = "user_http_server_buffer_discarded_total";

/// How a message leaves the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// A worker has it.
    Delivered,
    /// A later message has its UUID.
    Replaced,
    /// Nobody has fetched it in time.
    Expired,
    /// An operator does not want it.
    Discarded,
}

/// What the buffer holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub messages: usize,
    pub bytes: u64,
    pub in_delivery: usize,
    /// Since when the oldest message is held.
    pub oldest: Option<Since>,
}

#[derive(Debug)]
pub(crate) struct BufferMetrics {
    messages: Gauge,
    bytes: Gauge,
    in_delivery: Gauge,
    oldest: Arc<OldestAge>,
    recovered: Gauge,
    accepted_http: Total,
    accepted_amqp: Total,
    pub delivered: Total,
    replaced: Counter,
    pub expired: Total,
    pub discarded: Total,
}

impl BufferMetrics {
    /// Of a buffer that holds at most `max_bytes`.
    pub fn register(max_bytes: u64) -> Self {
        describe_gauge!(MESSAGES, "Messages for workers in the buffer.");
        describe_gauge!(BYTES, "What these messages take of --max-buffered.");
        describe_gauge!(LIMIT, "The limit of these bytes: --max-buffered.");
        gauge!(LIMIT).set(max_bytes as f64);
        describe_gauge!(IN_DELIVERY, "Messages that are being sent to a worker.");
        describe_gauge!(OLDEST, "The age of the oldest message in the buffer; 0 if there is none.");
        describe_gauge!(RECOVERED, "Messages that the buffer found on the disk when the gateway started.");
        describe_counter!(ACCEPTED, "Messages that the buffer has taken, by where they came from.");
        describe_counter!(DELIVERED, "Messages that left the buffer because a worker has them.");
        describe_counter!(REPLACED, "Messages that left the buffer because a later one has the same UUID.");
        describe_counter!(EXPIRED, "Messages that left the buffer because nobody fetched them within --buffer-ttl.");
        describe_counter!(DISCARDED, "Messages that left the buffer because an operator discarded them.");
        Self {
            messages: gauge!(MESSAGES),
            bytes: gauge!(BYTES),
            in_delivery: gauge!(IN_DELIVERY),
            oldest: Arc::new(OldestAge::new(gauge!(OLDEST))),
            recovered: gauge!(RECOVERED),
            accepted_http: Total::new(counter!(ACCEPTED, "source" => "http")),
            accepted_amqp: Total::new(counter!(ACCEPTED, "source" => "amqp")),
            delivered: Total::new(counter!(DELIVERED)),
            replaced: counter!(REPLACED),
            expired: Total::new(counter!(EXPIRED)),
            discarded: Total::new(counter!(DISCARDED)),
        }
    }

    /// The age of the oldest message.
    pub fn oldest(&self) -> &Arc<OldestAge> {
        &self.oldest
    }

    /// The store had these messages at the start.
    pub fn recovered(&self, held: Held) {
        self.recovered.set(held.messages as f64);
        self.holds(held);
    }

    /// A message has entered the buffer.
    pub fn accepted(&mut self, delivery: Option<BrokerDelivery>) {
        if delivery.is_some() { &mut self.accepted_amqp } else { &mut self.accepted_http }.count();
    }

    /// How many messages have entered the buffer since the start.
    pub fn accepted_total(&self) -> u64 {
        self.accepted_http.value() + self.accepted_amqp.value()
    }

    /// A message has left the buffer.
    pub fn left(&mut self, departure: Departure) {
        match departure {
            Departure::Delivered => self.delivered.count(),
            Departure::Replaced => self.replaced.increment(1),
            Departure::Expired => self.expired.count(),
            Departure::Discarded => self.discarded.count(),
        }
    }

    /// What is held has changed to this.
    pub fn holds(&self, Held { messages, bytes, in_delivery, oldest }: Held) {
        self.messages.set(messages as f64);
        self.bytes.set(bytes as f64);
        self.in_delivery.set(in_delivery as f64);
        self.oldest.set(oldest);
    }
}
