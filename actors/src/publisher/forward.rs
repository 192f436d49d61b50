//! The outbox with a broker: how much is in flight at once, and what follows from each of the broker's answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::broker::{Outcome, Publication, PublisherEvent, PublisherLink};
use crate::messages::BrokerState;
use crate::publisher::outbox::Outbox;
use crate::store::Seq;

mod metrics;

pub use metrics::BrokerMetrics;

/// How many publications are unconfirmed at once. RabbitMQ confirms 13,000 to 15,400 messages of 1 KiB a second with
/// 1,000 unconfirmed ones and gains nothing from more. Each costs some 100 bytes here, and is sent again after a broken
/// connection.
const WINDOW_MESSAGES: usize = 1_000;

/// How many bytes are unconfirmed at once. The publishing thread holds one body at a time; the client library and the
/// sockets buffer up to this much. A single larger message goes alone.
const WINDOW_BYTES: u64 = 32 << 20;

/// How many bytes a second the slowest connection to a broker transfers: 100 Mbit/s, less what others use of it. The
/// broker cannot answer before it has the message.
const SLOWEST_TRANSFER: u64 = 8 << 20;

/// The first pause after a refusal; doubles up to [`MAX_BACK_OFF`].
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// A message whose queue has come back flows again within 2 s: one back-off, its jitter and the round trip.
const MAX_BACK_OFF: Duration = Duration::from_secs(1);

/// A broker that takes some messages and refuses others is logged once in this time.
const REFUSALS_LOGGED: Duration = Duration::from_secs(60);

/// The side of the outbox that faces the broker.
pub struct Forwarder {
    link: Box<dyn PublisherLink>,
    epoch: Option<u64>,
    blocked: bool,
    /// What publishing waits for, as text for people.
    waiting_for: Option<String>,
    /// How many messages may be in flight. 1 after a refusal; from then on each confirm adds one, so that it doubles
    /// with every window that the broker takes, as TCP's does. A queue that takes five messages a second is not offered
    /// a thousand.
    window: usize,
    back_off: Option<BackOff>,
    refusals: Option<Refusals>,
    /// When refusals were last logged.
    logged: Option<Instant>,
    /// The last message of a batch that contains a poison message. Up to this one, each is sent alone.
    poison_batch_end: Option<Seq>,
    /// The largest message that the broker takes, in bytes, once it has refused one.
    size_limit: Option<u64>,
    /// Larger messages that are sent all the same, because an operator has published them.
    insisted: BTreeSet<Seq>,
    /// The connection was lost, and the next broker may take larger messages.
    lost: bool,
    /// Since when the broker owes an answer and has given none.
    silent_since: Instant,
    /// The broker was silent for too long, and has not answered since.
    silent: bool,
    /// Messages that were forgotten while they were in flight. The publishing thread or the broker still has them, so
    /// they count towards the window.
    forgotten: BTreeMap<Seq, Forgotten>,
    metrics: BrokerMetrics,
}

/// See [`Forwarder::forgotten`].
#[derive(Debug)]
struct Forgotten {
    /// In bytes.
    len: u64,
    published_at: Instant,
}

/// The broker has refused or returned something. Until it takes the oldest message, that one is sent alone, after a
/// pause: the order is kept, and a queue that is not there is not flooded.
#[derive(Debug)]
struct BackOff {
    delay: Duration,
    /// The pause has not elapsed.
    pausing: bool,
}

/// Counted from the first refusal until the outbox is empty, or the window has its full size again.
struct Refusals {
    count: u64,
    is_logged: bool,
}

/// What the actor has to do after an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send what may be sent.
    Send,
    /// The broker has this message: remove it, then send what may be sent.
    Remove(Seq),
    /// This message cannot be published: park it, then send what may be sent.
    Park(Seq, String),
    /// This message cannot be published, and its sender can be told: refuse it, then send what may be sent.
    Refuse(Seq, String),
    /// After this delay, call [`Forwarder::back_off_elapsed`], then send.
    BackOff(Duration),
    /// Nothing.
    Nothing,
}

impl Forwarder {
    /// Publishes over `link`.
    pub fn new(link: Box<dyn PublisherLink>, metrics: BrokerMetrics) -> Self {
        Self {
            link,
            epoch: None,
            blocked: false,
            waiting_for: None,
            window: WINDOW_MESSAGES,
            back_off: None,
            refusals: None,
            logged: None,
            poison_batch_end: None,
            size_limit: None,
            insisted: BTreeSet::new(),
            lost: false,
            silent_since: Instant::now(),
            silent: false,
            forgotten: BTreeMap::new(),
            metrics,
        }
    }

    /// The state of the connection to the broker.
    pub fn state(&self) -> BrokerState {
        match (self.epoch, self.blocked) {
            (None, _) => BrokerState::Disconnected,
            (Some(_), true) => BrokerState::Blocked,
            (Some(_), false) => BrokerState::Connected,
        }
    }

    /// Why messages wait although the broker is connected, as text for people.
    pub fn waiting_for(&self) -> Option<&str> {
        self.waiting_for.as_deref().filter(|_| self.epoch.is_some())
    }

    /// The largest message that the broker takes, in bytes, if that is known.
    pub fn size_limit(&self) -> Option<u64> {
        self.size_limit
    }

    /// Why nothing is published, or the broker does not answer; `None` while all is well. The text goes to strangers,
    /// so it names nothing of the private network.
    pub fn obstacle(&self) -> Option<&'static str> {
        Some(match self {
            Self { epoch: None, .. } => "there is no connection",
            Self { blocked: true, .. } => "it blocks the connection",
            Self { waiting_for: Some(_), .. } => "the services behind it are not ready",
            Self { back_off: Some(BackOff { pausing: true, .. }), .. } => "it has just refused or returned a message",
            Self { silent: true, .. } => "it does not answer",
            _ => return None,
        })
    }

    /// Notes whether the broker has answered nothing for `limit` although it owes an answer. If so, that is an
    /// [obstacle](Self::obstacle) until it answers.
    pub fn note_silence(&mut self, limit: Duration, outbox: &Outbox) {
        self.silent |= self.owed(outbox).0 > 0 && self.silent_since.elapsed() >= limit;
    }

    /// How long the broker may need to receive what it owes answers for.
    pub fn transfer_time(&self, outbox: &Outbox) -> Duration {
        Duration::from_secs(self.owed(outbox).1 / SLOWEST_TRANSFER)
    }

    /// A message is forgotten. If it is in flight, the broker still owes the answer.
    pub fn forget_in_flight(&mut self, seq: Seq, outbox: &Outbox) {
        if let (Some(message), Some(published_at)) = (outbox.get(seq), outbox.published_at(seq)) {
            self.forgotten.insert(seq, Forgotten { len: message.payload.len(), published_at });
        }
    }

    /// How many messages the broker owes answers for, and their bytes.
    fn owed(&self, outbox: &Outbox) -> (usize, u64) {
        let forgotten: u64 = self.forgotten.values().map(|message| message.len).sum();
        (outbox.in_flight().len() + self.forgotten.len(), outbox.in_flight_bytes() + forgotten)
    }

    /// Offers this message to the broker even if it is known to be too large.
    pub fn insist(&mut self, seq: Seq) {
        self.insisted.insert(seq);
    }

    /// Publishes what the window has space for. Returns the first message that the broker will never take, with the
    /// reason: park it, and call again.
    pub fn send(&mut self, outbox: &mut Outbox) -> Option<(Seq, String)> {
        let epoch = self.epoch.filter(|_| !self.blocked && self.waiting_for.is_none())?;
        while let Some((seq, next)) = outbox.first_waiting() {
            let len = next.payload.len();
            if let Some(limit) = self.size_limit.filter(|limit| len > *limit)
                && !self.insisted.contains(&seq)
            {
                return Some((
                    seq,
                    format!("406: it is larger than the {limit} bytes that the broker takes (its max_message_size)"),
                ));
            }
            self.poison_batch_end = self.poison_batch_end.filter(|&last| seq <= last);
            let (owed, owed_bytes) = self.owed(outbox);
            let alone = self.back_off.is_some() || self.poison_batch_end.is_some();
            let fits = !alone && owed < self.window && owed_bytes + len <= WINDOW_BYTES;
            let pausing = self.back_off.as_ref().is_some_and(|back_off| back_off.pausing);
            if pausing || !(fits || owed == 0) {
                return None;
            }
            if owed == 0 {
                self.silent_since = Instant::now();
            }
            let (seq, message) = outbox.publish_first()?;
            self.link.publish(Publication {
                epoch,
                seq,
                message_id: message.meta.message_id,
                format: message.meta.format,
                body: message.payload.clone(),
            });
        }
        None
    }

    /// Takes in what has happened on the connection.
    pub fn handle(&mut self, event: PublisherEvent, outbox: &mut Outbox) -> Next {
        let next = self.take_in(event, outbox);
        self.metrics.state(self.state());
        next
    }

    fn take_in(&mut self, event: PublisherEvent, outbox: &mut Outbox) -> Next {
        match event {
            PublisherEvent::Connected { epoch } => {
                log::info!("connected to the broker");
                self.metrics.connected();
                self.epoch = Some(epoch);
                self.back_off = None;
                if std::mem::take(&mut self.lost) {
                    self.window = WINDOW_MESSAGES;
                    self.size_limit = None;
                }
                Next::Send
            }
            PublisherEvent::Disconnected { reason, lost } => {
                self.epoch = None;
                self.blocked = false;
                self.waiting_for = None;
                self.silent = false;
                self.forgotten.clear();
                if lost {
                    log::warn!("no connection to the broker: {reason}");
                    self.lost = true;
                } else {
                    log::warn!("publishing is interrupted: {reason}");
                }
                outbox.return_all_to_queue();
                Next::Nothing
            }
            PublisherEvent::Blocked(blocked) => {
                log::warn!("publishing is {} by the broker", if blocked { "blocked" } else { "no longer blocked" });
                self.blocked = blocked;
                Next::Send
            }
            PublisherEvent::WaitingFor(waiting_for) => {
                match &waiting_for {
                    Some(what) => log::warn!("messages for the user manager wait for {what}"),
                    None if self.waiting_for.is_some() => {
                        log::info!("messages for the user manager need not wait any longer");
                    }
                    None => {}
                }
                self.waiting_for = waiting_for;
                Next::Send
            }
            PublisherEvent::SizeLimit(limit) => {
                log::warn!("the broker takes no message of more than {limit} bytes (its max_message_size)");
                self.size_limit = Some(limit);
                Next::Nothing
            }
            PublisherEvent::Suspected { reason } => {
                self.epoch = None;
                let mut suspects = outbox.in_flight();
                match (suspects.next(), suspects.next_back()) {
                    (Some(culprit), None) if self.forgotten.is_empty() => Next::Park(culprit, reason),
                    (first, last) => {
                        log::warn!(
                            "the broker will never take one of these {} messages: {reason}; sending them one at a time to find it",
                            outbox.in_flight().len()
                        );
                        self.poison_batch_end = last.or(first);
                        Next::Nothing
                    }
                }
            }
            PublisherEvent::Outcome { seq, outcome } => self.answered(seq, outcome, outbox),
        }
    }

    fn answered(&mut self, seq: Seq, outcome: Outcome, outbox: &mut Outbox) -> Next {
        let now = Instant::now();
        (self.silent_since, self.silent) = (now, false);
        let forgotten = self.forgotten.remove(&seq);
        let published_at = forgotten.as_ref().map(|message| message.published_at).or(outbox.published_at(seq));
        self.metrics.answered(&outcome, published_at.map(|then| now - then));
        if forgotten.is_some() {
            return Next::Send;
        }
        if !outbox.is_in_flight(seq) {
            return Next::Nothing;
        }
        match outcome {
            Outcome::Confirmed => {
                self.confirmed(seq, outbox);
                Next::Remove(seq)
            }
            Outcome::Nacked => self.refused(seq, "refused (basic.nack)", outbox),
            Outcome::Returned(reason) => self.refused(seq, &reason, outbox),
            Outcome::Refused(reason) => {
                self.insisted.remove(&seq);
                outbox.return_to_queue(seq);
                Next::Park(seq, reason)
            }
            Outcome::Unreadable(reason) => {
                self.insisted.remove(&seq);
                outbox.return_to_queue(seq);
                // stored, it would be unreadable too
                if outbox.is_awaited(seq) { Next::Refuse(seq, reason) } else { Next::Park(seq, reason) }
            }
        }
    }

    fn confirmed(&mut self, seq: Seq, outbox: &Outbox) {
        self.insisted.remove(&seq);
        let len = outbox.get(seq).map_or(0, |message| message.payload.len());
        self.size_limit = self.size_limit.filter(|limit| len <= *limit);
        // It was sent before the refusal, so its confirm does not show that the broker takes messages again.
        if self.back_off.as_ref().is_some_and(|back_off| back_off.pausing) {
            return;
        }
        self.back_off = None;
        self.window = (self.window + 1).min(WINDOW_MESSAGES);
        // this one is still in flight
        let all_taken = outbox.in_flight().len() == 1 && outbox.first_waiting().is_none();
        if self.window == WINDOW_MESSAGES || all_taken {
            self.window = WINDOW_MESSAGES;
            if let Some(Refusals { count, is_logged: true }) = self.refusals.take() {
                log::info!("the broker takes messages again, after {count} refusals");
            }
        }
    }

    fn refused(&mut self, seq: Seq, reason: &str, outbox: &mut Outbox) -> Next {
        outbox.return_to_queue(seq);
        self.window = 1;
        let logged = &mut self.logged;
        let refusals = self.refusals.get_or_insert_with(|| {
            let is_logged = logged.is_none_or(|logged| logged.elapsed() >= REFUSALS_LOGGED);
            if is_logged {
                log::warn!("the broker cannot deliver to the user manager: {reason}; trying again until it can");
                *logged = Some(Instant::now());
            }
            Refusals { count: 0, is_logged }
        });
        refusals.count += 1;
        let delay = match &self.back_off {
            // it was in flight together with one that was refused before
            Some(BackOff { pausing: true, .. }) => return Next::Nothing,
            Some(BackOff { delay, .. }) => (*delay * 2).min(MAX_BACK_OFF),
            None => FIRST_BACK_OFF,
        };
        self.back_off = Some(BackOff { delay, pausing: true });
        Next::BackOff(delay.mul_f64(rand::rng().random_range(0.8..1.0)))
    }

    /// The delay of [`Next::BackOff`] has passed.
    pub fn back_off_elapsed(&mut self) {
        if let Some(back_off) = &mut self.back_off {
            back_off.pausing = false;
        }
    }
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}
