//! The report: the fields of `GET /status`.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use user_http_actors::messages::{BrokerState, BufferState, ConsumerState, OutboxState};

use crate::status::deliveries::{Delivery, Sent};
use crate::status::events::Event;
use crate::status::health::{StoreHealth, not_ready, store_health};
use crate::status::problems::{self, Problem};
use crate::status::{Answers, Last};

/// How many deliveries the report lists, at about 200 bytes each: more than a page shows at a glance.
pub const MAX_DELIVERIES: usize = 100;

/// What is known besides the answers of the actors.
#[derive(Debug)]
pub struct Facts {
    pub has_broker: bool,
    pub uptime: Duration,
    pub now: SystemTime,
    pub deliveries_count: usize,
    pub deliveries: Vec<Delivery>,
    pub sent_total: u64,
    pub events: Vec<Event>,
}

/// The state of everything at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    version: &'static str,
    /// The time of the report.
    time: String,
    uptime_seconds: f64,
    mode: Mode,
    ready: bool,
    /// Why it is not ready.
    not_ready: Vec<String>,
    /// The parts that do not answer. Their numbers are the last known ones.
    not_answering: Vec<&'static str>,
    stopping: bool,
    /// `None` if the outbox has never answered.
    broker: Option<BrokerState>,
    /// How long `broker` has been what it is.
    broker_seconds: Option<f64>,
    /// Why messages for the user manager wait although the broker is connected.
    waiting_for: Option<String>,
    store: StoreHealth,
    /// `None` if the buffer has never answered.
    buffer: Option<BufferReport>,
    /// `None` if the outbox has never answered.
    outbox: Option<OutboxReport>,
    consumer: Option<ConsumerReport>,
    totals: Totals,
    problems: Vec<Problem>,
    /// How many deliveries are in progress.
    deliveries_count: usize,
    /// The oldest ones.
    deliveries: Vec<DeliveryReport>,
    /// Newest first.
    events: Vec<EventReport>,
}

/// Where messages for the user manager go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// To the broker.
    Broker,
    /// Nowhere: the user manager takes them from the gateway itself.
    Embedded,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct BufferReport {
    messages: usize,
    bytes: u64,
    max_bytes: u64,
    oldest_seconds: f64,
    in_delivery: usize,
    /// Requests that wait for a message.
    waiting: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct OutboxReport {
    messages: usize,
    bytes: u64,
    max_bytes: u64,
    oldest_seconds: f64,
    parked: usize,
    /// Messages that only the broker's confirm is awaited for.
    unstored: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ConsumerReport {
    connected: bool,
    paused: bool,
}

/// What has happened since the start, for rates.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Totals {
    /// Messages for workers that were stored.
    buffered: u64,
    /// Messages that workers have fetched.
    delivered: u64,
    /// Messages that expired unfetched.
    expired: u64,
    /// Bytes of messages and .blend files that were sent to workers.
    sent_bytes: u64,
    /// Messages for the user manager that have arrived.
    posted: u64,
    /// The bytes of their bodies.
    posted_bytes: u64,
    /// Messages that the broker or the user manager has.
    forwarded: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct DeliveryReport {
    id: String,
    kind: &'static str,
    bytes_sent: u64,
    bytes_total: u64,
    started: String,
    client: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct EventReport {
    time: String,
    level: &'static str,
    text: String,
}

impl Report {
    pub(super) fn new(answers: Answers, facts: Facts) -> Self {
        let problems = problems::find(&answers, facts.has_broker);
        let Answers { last: Last { buffer, outbox, consumer }, late, is_stopping } = answers;
        let mut not_ready = not_ready(buffer.as_ref(), outbox.as_ref());
        not_ready.extend(late.iter().map(|part| format!("{part}: does not answer")));
        if is_stopping {
            not_ready.push("the gateway is stopping".to_owned());
        }
        let (buffered, delivered, expired) = buffer
            .as_ref()
            .map_or((0, 0, 0), |buffer| (buffer.accepted_total, buffer.delivered_total, buffer.expired_total));
        let (posted, posted_bytes, forwarded) = outbox
            .as_ref()
            .map_or((0, 0, 0), |outbox| (outbox.arrived_total, outbox.arrived_bytes_total, outbox.forwarded_total));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            time: rfc3339(facts.now),
            uptime_seconds: seconds(facts.uptime),
            mode: if facts.has_broker { Mode::Broker } else { Mode::Embedded },
            ready: not_ready.is_empty(),
            not_ready,
            not_answering: late,
            stopping: is_stopping,
            broker: outbox.as_ref().map(|outbox| outbox.broker),
            broker_seconds: outbox.as_ref().filter(|_| facts.has_broker).map(|outbox| seconds(outbox.broker_for)),
            waiting_for: outbox.as_ref().and_then(|outbox| outbox.waiting_for.clone()),
            store: store_health(buffer.as_ref(), outbox.as_ref()),
            totals: Totals {
                buffered,
                delivered,
                expired,
                sent_bytes: facts.sent_total,
                posted,
                posted_bytes,
                forwarded,
            },
            buffer: buffer.map(BufferReport::from),
            outbox: outbox.map(OutboxReport::from),
            consumer: consumer.flatten().map(ConsumerReport::from),
            problems,
            deliveries_count: facts.deliveries_count,
            deliveries: facts.deliveries.into_iter().map(DeliveryReport::from).collect(),
            events: facts.events.into_iter().map(EventReport::from).collect(),
        }
    }

    /// The report without what changes as time passes, to find out whether anything else has changed. The words of the
    /// problems contain ages, too.
    pub(super) fn timeless(&self) -> Self {
        let mut report = self.clone();
        (report.time, report.uptime_seconds, report.broker_seconds) = (String::new(), 0.0, None);
        report.problems.clear();
        report.buffer.iter_mut().for_each(|buffer| buffer.oldest_seconds = 0.0);
        report.outbox.iter_mut().for_each(|outbox| outbox.oldest_seconds = 0.0);
        report
    }

    /// Whether the service stops.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }
}

impl From<BufferState> for BufferReport {
    fn from(state: BufferState) -> Self {
        Self {
            messages: state.messages,
            bytes: state.bytes,
            max_bytes: state.max_bytes,
            oldest_seconds: state.oldest.map_or(0.0, seconds),
            in_delivery: state.in_delivery,
            waiting: state.waiting,
        }
    }
}

impl From<OutboxState> for OutboxReport {
    fn from(state: OutboxState) -> Self {
        Self {
            messages: state.messages,
            bytes: state.bytes,
            max_bytes: state.max_bytes,
            oldest_seconds: state.oldest.map_or(0.0, seconds),
            parked: state.parked,
            unstored: state.unstored,
        }
    }
}

impl From<ConsumerState> for ConsumerReport {
    fn from(ConsumerState { connected, paused, .. }: ConsumerState) -> Self {
        Self { connected, paused }
    }
}

impl From<Delivery> for DeliveryReport {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: delivery.id,
            kind: match delivery.what {
                Sent::Message => "message",
                Sent::Blend => "blend",
            },
            bytes_sent: delivery.sent,
            bytes_total: delivery.total,
            started: rfc3339(delivery.started),
            client: delivery.client.map_or_else(|| "unknown".to_owned(), |client| client.to_string()),
        }
    }
}

impl From<Event> for EventReport {
    fn from(Event { time, level, text, .. }: Event) -> Self {
        let level = match level {
            log::Level::Error => "error",
            log::Level::Warn => "warn",
            _ => "info",
        };
        Self { time: rfc3339(time), level, text }
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// Seconds with milliseconds.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1_000.0
}
