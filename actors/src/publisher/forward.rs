//! The outbox with a broker: how much is sent at once, and what follows from each outcome.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;

use crate::broker::{Outcome, Publication, PublisherEvent, PublisherLink};
use crate::messages::BrokerState;
use crate::publisher::outbox::Outbox;
use crate::store::Seq;

/// How many publications are unconfirmed at once. RabbitMQ confirms 13,000 to 15,400 messages of 1 KiB a second with
/// 1,000 unconfirmed ones and gains nothing from more; each costs some 100 bytes here, and is sent again after
/// a broken connection.
const WINDOW_MESSAGES: usize = 1_000;

/// How many bytes are unconfirmed at once. The publishing thread holds one body at a time; the client library and
/// the sockets buffer up to this much. A single larger message goes alone.
const WINDOW_BYTES: u64 = 32 << 20;

/// How long it takes from a refusal to the next try; doubles up to [`MAX_RETRY_DELAY`].
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A message whose queue has come back flows again within 2 s: one delay, its jitter and the way there and back.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The side of the outbox that faces the broker.
pub struct Forwarder {
    link: Box<dyn PublisherLink>,
    epoch: Option<u64>,
    blocked: bool,
    /// What is on its way, with its length.
    in_flight: BTreeMap<Seq, u64>,
    in_flight_bytes: u64,
    retry: Option<Retry>,
    /// The last of the messages among which is one that the broker never takes: up to here each is sent alone.
    suspected_to: Option<Seq>,
}

/// The broker has refused or returned something. Until it has taken the oldest message again, that one is sent
/// alone, after a delay: the order stays, and a queue that is not there is not flooded.
#[derive(Debug)]
struct Retry {
    delay: Duration,
    /// The delay has not passed yet.
    resting: bool,
}

/// What the actor has to do after an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send what may be sent.
    Send,
    /// The message has arrived: remove it, then send what may be sent.
    Remove(Seq),
    /// The broker will never take the message: set it aside, then send what may be sent.
    Park(Seq, String),
    /// Wait, call [`Forwarder::rested`], then send.
    Rest(Duration),
    /// Nothing.
    Nothing,
}

impl Forwarder {
    pub fn new(link: Box<dyn PublisherLink>) -> Self {
        Self {
            link,
            epoch: None,
            blocked: false,
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            retry: None,
            suspected_to: None,
        }
    }

    pub fn state(&self) -> BrokerState {
        match (self.epoch, self.blocked) {
            (None, _) => BrokerState::Disconnected,
            (Some(_), true) => BrokerState::Blocked,
            (Some(_), false) => BrokerState::Connected,
        }
    }

    /// Whether nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Hands to the broker what the window has room for.
    pub fn send(&mut self, outbox: &mut Outbox) {
        let Some(epoch) = self.epoch.filter(|_| !self.blocked) else { return };
        while let Some((seq, next)) = outbox.first_waiting() {
            let len = next.payload.len();
            self.suspected_to = self.suspected_to.filter(|&last| seq <= last);
            let alone = self.retry.is_some() || self.suspected_to.is_some();
            let window = !alone && self.in_flight.len() < WINDOW_MESSAGES && self.in_flight_bytes + len <= WINDOW_BYTES;
            let resting = self.retry.as_ref().is_some_and(|retry| retry.resting);
            if resting || !(window || self.in_flight.is_empty()) {
                return;
            }
            let Some((seq, message)) = outbox.take_first_waiting() else { return };
            self.link.publish(Publication {
                epoch,
                seq,
                message_id: message.meta.message_id,
                format: message.meta.format,
                body: message.payload.clone(),
            });
            self.in_flight.insert(seq, len);
            self.in_flight_bytes += len;
        }
    }

    /// Takes in what has happened on the connection.
    pub fn handle(&mut self, event: PublisherEvent, outbox: &mut Outbox) -> Next {
        match event {
            PublisherEvent::Connected { epoch } => {
                log::info!("connected to the broker");
                self.epoch = Some(epoch);
                self.blocked = false;
                self.retry = None;
                Next::Send
            }
            PublisherEvent::Disconnected { reason } => {
                log::warn!("no connection to the broker: {reason}");
                self.epoch = None;
                self.blocked = false;
                for seq in std::mem::take(&mut self.in_flight).into_keys() {
                    outbox.put_back(seq);
                }
                self.in_flight_bytes = 0;
                Next::Nothing
            }
            PublisherEvent::Blocked(blocked) => {
                log::warn!("the broker {} publishing", if blocked { "has blocked" } else { "allows" });
                self.blocked = blocked;
                Next::Send
            }
            PublisherEvent::Suspected { reason } => {
                self.epoch = None;
                let mut suspects = self.in_flight.keys();
                let culprit = suspects.next().copied().filter(|_| suspects.next().is_none());
                let Some(culprit) = culprit else {
                    log::warn!("the broker never takes one of {} messages: {reason}", self.in_flight.len());
                    self.suspected_to = self.in_flight.keys().last().copied();
                    return Next::Nothing;
                };
                self.in_flight.clear();
                self.in_flight_bytes = 0;
                Next::Park(culprit, reason)
            }
            PublisherEvent::Outcome { seq, outcome } => {
                let Some(len) = self.in_flight.remove(&seq) else { return Next::Nothing };
                self.in_flight_bytes -= len;
                match outcome {
                    Outcome::Confirmed => {
                        if self.retry.take().is_some() {
                            log::info!("the broker takes messages again");
                        }
                        Next::Remove(seq)
                    }
                    Outcome::Nacked => self.refused(seq, "refused (basic.nack)", outbox),
                    Outcome::Returned(reason) => self.refused(seq, &reason, outbox),
                    Outcome::Refused(reason) => Next::Park(seq, reason),
                }
            }
        }
    }

    fn refused(&mut self, seq: Seq, reason: &str, outbox: &mut Outbox) -> Next {
        outbox.put_back(seq);
        let delay = match &self.retry {
            // the rest of a window that was on its way together
            Some(Retry { resting: true, .. }) => return Next::Nothing,
            Some(Retry { delay, .. }) => (*delay * 2).min(MAX_RETRY_DELAY),
            None => {
                log::warn!("the broker cannot deliver to the user manager: {reason}; trying again until it can");
                FIRST_RETRY_DELAY
            }
        };
        self.retry = Some(Retry { delay, resting: true });
        Next::Rest(delay.mul_f64(rand::rng().random_range(0.8..1.0)))
    }

    /// The delay of [`Next::Rest`] has passed.
    pub fn rested(&mut self) {
        if let Some(retry) = &mut self.retry {
            retry.resting = false;
        }
    }
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("epoch", &self.epoch).field("in_flight", &self.in_flight.len()).finish()
    }
}
