//! The outbox with a broker: how much is sent at once, and what follows from each outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

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

/// A broker that takes some messages and refuses others is logged once in this time.
const TROUBLE_LOGGED: Duration = Duration::from_secs(60);

/// The side of the outbox that faces the broker.
pub struct Forwarder {
    link: Box<dyn PublisherLink>,
    epoch: Option<u64>,
    blocked: bool,
    /// What is waited for, in words, before anything is published.
    held: Option<String>,
    /// What is on its way, with its length.
    in_flight: BTreeMap<Seq, u64>,
    in_flight_bytes: u64,
    /// How many messages may be on their way at once. 1 after a refusal; from then on each confirm adds one, so that it
    /// doubles with every window that the broker takes, as TCP's does. So a queue that takes five messages a second is
    /// not offered a thousand.
    window: usize,
    retry: Option<Retry>,
    trouble: Option<Trouble>,
    /// When the last trouble was logged.
    logged: Option<Instant>,
    /// The last of the messages among which is one that the broker never takes: up to here each is sent alone.
    suspected_to: Option<Seq>,
    /// The largest message that the broker takes, in bytes, once it has refused one.
    size_limit: Option<u64>,
    /// Larger ones that are sent all the same, since somebody has said so.
    insisted: BTreeSet<Seq>,
    /// The connection was lost, and the next broker may take larger messages.
    lost: bool,
}

/// The broker has refused or returned something. Until it has taken the oldest message again, that one is sent
/// alone, after a delay: the order stays, and a queue that is not there is not flooded.
#[derive(Debug)]
struct Retry {
    delay: Duration,
    /// The delay has not passed yet.
    resting: bool,
}

/// Since the broker has refused something. It is over when it has taken all that there was, or a whole window.
struct Trouble {
    refusals: u64,
    is_logged: bool,
}

/// What the actor has to do after an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send what may be sent.
    Send,
    /// The message has arrived: remove it, then send what may be sent.
    Remove(Seq),
    /// The message cannot be published: set it aside, then send what may be sent.
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
            held: None,
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            window: WINDOW_MESSAGES,
            retry: None,
            trouble: None,
            logged: None,
            suspected_to: None,
            size_limit: None,
            insisted: BTreeSet::new(),
            lost: false,
        }
    }

    pub fn state(&self) -> BrokerState {
        match (self.epoch, self.blocked) {
            (None, _) => BrokerState::Disconnected,
            (Some(_), true) => BrokerState::Blocked,
            (Some(_), false) => BrokerState::Connected,
        }
    }

    /// What messages wait for although there is a connection, in words.
    pub fn waiting_for(&self) -> Option<&str> {
        self.held.as_deref().filter(|_| self.epoch.is_some())
    }

    /// The largest message that the broker takes, in bytes, if that is known.
    pub fn size_limit(&self) -> Option<u64> {
        self.size_limit
    }

    /// Whether nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// This message is offered to the broker even if it is known to be too large: somebody says that it is not any more.
    pub fn insist(&mut self, seq: Seq) {
        self.insisted.insert(seq);
    }

    /// Hands to the broker what the window has room for. Returns the first message that the broker will never take, with
    /// the reason; it is to be parked, and then the others sent.
    pub fn send(&mut self, outbox: &mut Outbox) -> Option<(Seq, String)> {
        let epoch = self.epoch.filter(|_| !self.blocked && self.held.is_none())?;
        while let Some((seq, next)) = outbox.first_waiting() {
            let len = next.payload.len();
            if let Some(limit) = self.size_limit.filter(|limit| len > *limit)
                && !self.insisted.contains(&seq)
            {
                outbox.take_first_waiting();
                return Some((
                    seq,
                    format!("406: it is larger than the {limit} bytes that the broker takes (its max_message_size)"),
                ));
            }
            self.suspected_to = self.suspected_to.filter(|&last| seq <= last);
            let alone = self.retry.is_some() || self.suspected_to.is_some();
            let window = !alone && self.in_flight.len() < self.window && self.in_flight_bytes + len <= WINDOW_BYTES;
            let resting = self.retry.as_ref().is_some_and(|retry| retry.resting);
            if resting || !(window || self.in_flight.is_empty()) {
                return None;
            }
            let (seq, message) = outbox.take_first_waiting()?;
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
        None
    }

    /// Takes in what has happened on the connection.
    pub fn handle(&mut self, event: PublisherEvent, outbox: &mut Outbox) -> Next {
        match event {
            PublisherEvent::Connected { epoch } => {
                log::info!("connected to the broker");
                self.epoch = Some(epoch);
                self.blocked = false;
                self.retry = None;
                self.window = WINDOW_MESSAGES;
                if std::mem::take(&mut self.lost) {
                    self.size_limit = None;
                }
                Next::Send
            }
            PublisherEvent::Disconnected { reason, lost } => {
                log::warn!("no connection to the broker: {reason}");
                self.epoch = None;
                self.blocked = false;
                self.held = None;
                self.lost |= lost;
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
            PublisherEvent::Held(held) => {
                match &held {
                    Some(what) => log::warn!("messages for the user manager wait for {what}"),
                    None if self.held.is_some() => log::info!("messages for the user manager need not wait any longer"),
                    None => {}
                }
                self.held = held;
                Next::Send
            }
            PublisherEvent::SizeLimit(limit) => {
                log::warn!("the broker takes no message of more than {limit} bytes (its max_message_size)");
                self.size_limit = Some(limit);
                Next::Nothing
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
                        self.confirmed(seq, len, outbox);
                        Next::Remove(seq)
                    }
                    Outcome::Nacked => self.refused(seq, "refused (basic.nack)", outbox),
                    Outcome::Returned(reason) => self.refused(seq, &reason, outbox),
                    Outcome::Refused(reason) | Outcome::Unreadable(reason) => {
                        self.insisted.remove(&seq);
                        Next::Park(seq, reason)
                    }
                }
            }
        }
    }

    fn confirmed(&mut self, seq: Seq, len: u64, outbox: &Outbox) {
        self.insisted.remove(&seq);
        self.size_limit = self.size_limit.filter(|limit| len <= *limit);
        // one of those that were on their way with a refused one says nothing about the next
        if self.retry.as_ref().is_some_and(|retry| retry.resting) {
            return;
        }
        self.retry = None;
        self.window = (self.window + 1).min(WINDOW_MESSAGES);
        let all_taken = self.in_flight.is_empty() && outbox.first_waiting().is_none();
        if self.window == WINDOW_MESSAGES || all_taken {
            self.window = WINDOW_MESSAGES;
            if let Some(Trouble { refusals, is_logged: true }) = self.trouble.take() {
                log::info!("the broker takes messages again, after {refusals} refusals");
            }
        }
    }

    fn refused(&mut self, seq: Seq, reason: &str, outbox: &mut Outbox) -> Next {
        outbox.put_back(seq);
        self.window = 1;
        let logged = &mut self.logged;
        let trouble = self.trouble.get_or_insert_with(|| {
            let is_logged = logged.is_none_or(|logged| logged.elapsed() >= TROUBLE_LOGGED);
            if is_logged {
                log::warn!("the broker cannot deliver to the user manager: {reason}; trying again until it can");
                *logged = Some(Instant::now());
            }
            Trouble { refusals: 0, is_logged }
        });
        trouble.refusals += 1;
        let delay = match &self.retry {
            // the rest of a window that was on its way together
            Some(Retry { resting: true, .. }) => return Next::Nothing,
            Some(Retry { delay, .. }) => (*delay * 2).min(MAX_RETRY_DELAY),
            None => FIRST_RETRY_DELAY,
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
