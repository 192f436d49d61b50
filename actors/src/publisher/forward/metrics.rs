//! What the publisher reports about its connection to the broker.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::broker::Outcome;
use crate::messages::BrokerState;

const CONFIGURED: &str = "user_http_server_broker_configured";
const CONNECTED: &str = "user_http_server_broker_connected";
const BLOCKED: &str = "user_http_server_broker_blocked";
const CONNECTIONS: &str = "user_http_server_broker_connections_total";
const RETURNED: &str = "user_http_server_broker_returned_total";
const NACKED: &str = "user_http_server_broker_nacked_total";
const CONFIRM: &str = "user_http_server_publish_confirm_seconds";

/// All of them are 0 without a broker.
#[derive(Debug)]
pub struct BrokerMetrics {
    connected: Gauge,
    blocked: Gauge,
    connections: Counter,
    returned: Counter,
    nacked: Counter,
    confirm: Histogram,
}

impl BrokerMetrics {
    /// Of a service with a broker, or without one.
    pub fn register(is_configured: bool) -> Self {
        describe_gauge!(
            CONFIGURED,
            "1 if the gateway has a broker; 0 if the user manager takes its messages over HTTP."
        );
        gauge!(CONFIGURED).set(if is_configured { 1 } else { 0 });
        describe_gauge!(CONNECTED, "1 while there is a connection to the broker to publish on.");
        describe_gauge!(BLOCKED, "1 while the broker blocks that connection.");
        describe_counter!(CONNECTIONS, "Connections to publish on that were made.");
        describe_counter!(RETURNED, "Publications that the broker has returned: it has no queue for them.");
        describe_counter!(NACKED, "Publications that the broker has refused (basic.nack).");
        describe_histogram!(CONFIRM, "From the hand-over of a publication to the broker's confirm.");
        Self {
            connected: gauge!(CONNECTED),
            blocked: gauge!(BLOCKED),
            connections: counter!(CONNECTIONS),
            returned: counter!(RETURNED),
            nacked: counter!(NACKED),
            confirm: histogram!(CONFIRM),
        }
    }

    /// A connection was made.
    pub fn connected(&self) {
        self.connections.increment(1);
    }

    /// The state of the connection has changed to this.
    pub fn state(&self, state: BrokerState) {
        self.connected.set(if matches!(state, BrokerState::Connected | BrokerState::Blocked) { 1 } else { 0 });
        self.blocked.set(if state == BrokerState::Blocked { 1 } else { 0 });
    }

    /// The broker has answered a publication, so long after it was handed over.
    pub fn answered(&self, outcome: &Outcome, after: Option<Duration>) {
        match outcome {
            Outcome::Confirmed => after.into_iter().for_each(|after| self.confirm.record(after)),
            Outcome::Nacked => self.nacked.increment(1),
            Outcome::Returned(_) => self.returned.increment(1),
            Outcome::Refused(_) | Outcome::Unreadable(_) => {}
        }
    }
}
