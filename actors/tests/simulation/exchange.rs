//! The broker that messages for the user manager are published to.

use std::collections::BTreeMap;

use actix::Addr;
use user_http_actors::UserManagerPublisher;
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::publisher::{BrokerRoute, FrameAck};
use uuid::Uuid;

use crate::scripted_broker::{Broker, start_route};

/// A message that the broker owes an answer for.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    pub number: u64,
    pub size: u64,
    seq: u64,
}

/// What was published.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    pub number: u64,
    pub message_id: Uuid,
}

/// The connection of one process to the broker.
pub struct Exchange {
    broker: Broker,
    epoch: u64,
    is_connected: bool,
    in_flight: Vec<InFlight>,
}

/// The number in a body.
pub fn number_of(body: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(body);
    text.split('#').nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number: {text:?}"))
}

impl Exchange {
    pub fn start(
        frame_ack: FrameAck,
        start: impl FnOnce(BrokerRoute) -> Addr<UserManagerPublisher>,
    ) -> (Addr<UserManagerPublisher>, Self) {
        let (publisher, broker) = start_route(frame_ack, start);
        (publisher, Self { broker, epoch: 0, is_connected: false, in_flight: Vec::new() })
    }

    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    pub fn in_flight(&self) -> &[InFlight] {
        &self.in_flight
    }

    pub fn connect(&mut self) {
        if !self.is_connected {
            self.is_connected = true;
            self.epoch += 1;
            self.event(PublisherEvent::WaitingFor(None));
            self.event(PublisherEvent::Connected { epoch: self.epoch });
        }
    }

    /// Ends the connection. Returns what the broker owes an answer for: it may have it.
    pub fn disconnect(&mut self, lost: bool) -> Vec<InFlight> {
        self.is_connected = false;
        self.event(PublisherEvent::Disconnected { reason: "gone".into(), lost });
        std::mem::take(&mut self.in_flight)
    }

    pub fn event(&self, event: PublisherEvent) {
        (self.broker.events)(event);
    }

    /// The broker answers for the message at this position, counted round.
    pub fn answer(&mut self, at: usize, outcome: Outcome) -> Option<InFlight> {
        if self.in_flight.is_empty() {
            return None;
        }
        let answered = self.in_flight.remove(at % self.in_flight.len());
        self.broker.outcome(answered.seq, outcome);
        Some(answered)
    }

    /// What has been published since the last call.
    pub fn take_in(&mut self) -> Vec<Published> {
        let mut published = Vec::new();
        for publication in self.broker.published() {
            let body = publication.body.read_verified().expect("readable");
            let (number, size) = (number_of(&body), publication.body.len());
            if publication.epoch == self.epoch && self.is_connected {
                self.in_flight.push(InFlight { number, size, seq: publication.seq });
            }
            published.push(Published { number, message_id: publication.message_id });
        }
        published
    }
}

/// The ids of messages, by which operators and the user manager name them.
#[derive(Default)]
pub struct Ids(BTreeMap<Uuid, u64>);

impl Ids {
    /// Notes the id of a message; it has no other.
    pub fn note(&mut self, message_id: Uuid, number: u64) {
        let noted = *self.0.entry(message_id).or_insert(number);
        assert_eq!(noted, number, "two messages have the id {message_id}");
    }

    /// The id of a message, if it was seen.
    pub fn id(&self, number: u64) -> Option<Uuid> {
        self.0.iter().find(|(_, noted)| **noted == number).map(|(id, _)| *id)
    }

    pub fn number(&self, message_id: Uuid) -> Option<u64> {
        self.0.get(&message_id).copied()
    }
}
