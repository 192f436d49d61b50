//! What the actors report through the crate [`metrics`]. An application chooses who receives it: it installs
//! a recorder globally, or only around [`UserHttpActors::start`](crate::UserHttpActors::start), with
//! `metrics::with_local_recorder`. The actors look their metrics up once, on the thread that starts them.
//!
//! `docs/metrics.md` describes each metric. The books of the buffer and of the outbox balance whenever nothing is in
//! progress: what was found at the start and what was accepted since has left in a way that is counted, or is still
//! held. So each subject counts where a message enters or leaves, and nowhere else.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ::metrics::{Counter, Gauge, counter, describe_counter};

use crate::age::{self, Since};
use crate::codec::DecodeError;
use crate::error::Error;
use crate::store::StoreError;

/// The histogram of changes in a commit of a store. Its buckets are numbers; those of all other histograms are seconds.
pub const STORE_COMMIT_CHANGES: &str = "user_http_server_store_commit_changes";

/// Why a message is refused: the label `reason` of the metrics of refused messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not what the contract asks for.
    Malformed,
    /// Its `TYPE` is not known. One from a worker is answered 200 all the same, and dropped.
    UnknownType,
    /// It is larger than a limit for single messages.
    TooLarge,
    /// It has not arrived as it was sent: it broke off, was too slow, has another digest, or was encoded.
    Transfer,
    /// Its sender may not send it.
    Forbidden,
    /// Its idempotency key was used for another message.
    KeyReused,
    /// A limit for all messages is reached.
    NoCapacity,
    /// The disk is full, or the system is short of descriptors or memory.
    DiskFull,
    /// The store has failed, the database or the broker does not answer, or the service stops.
    Unavailable,
}

impl Refusal {
    const ALL: [(Self, &str); 9] = [
        (Self::Malformed, "malformed"),
        (Self::UnknownType, "unknown_type"),
        (Self::TooLarge, "too_large"),
        (Self::Transfer, "transfer"),
        (Self::Forbidden, "forbidden"),
        (Self::KeyReused, "key_reused"),
        (Self::NoCapacity, "no_capacity"),
        (Self::DiskFull, "disk_full"),
        (Self::Unavailable, "unavailable"),
    ];
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        match error {
            Error::Decode(DecodeError::UnknownMessageType) => Self::UnknownType,
            Error::Decode(DecodeError::Unreadable(_)) => Self::Unavailable,
            Error::TooLargeForBroker { .. } | Error::Store(StoreError::TooLarge { .. }) => Self::TooLarge,
            error if error.never_fits() => Self::TooLarge,
            Error::NoCapacity { .. } | Error::DecoderFull { .. } => Self::NoCapacity,
            Error::Store(StoreError::NoSpace(_) | StoreError::Busy(_)) => Self::DiskFull,
            Error::OtherUser { .. } => Self::Forbidden,
            Error::KeyReused => Self::KeyReused,
            Error::Store(StoreError::Failed(_) | StoreError::Gone(_) | StoreError::Database(_))
            | Error::NotConfirmed { .. }
            | Error::BrokerIsConfigured
            | Error::Stopping => Self::Unavailable,
            _ => Self::Malformed,
        }
    }
}

/// Counts refused messages of one kind. Clones share the counters.
#[derive(Clone, Debug)]
pub(crate) struct Refusals(Vec<(Refusal, Counter)>);

impl Refusals {
    /// Of messages for workers.
    pub fn of_buffer() -> Self {
        const NAME: &str = "user_http_server_buffer_refused_total";
        describe_counter!(NAME, "Messages for workers that were refused, whoever sent them.");
        Self::register(NAME)
    }

    /// Of messages for the user manager.
    pub fn of_outbox() -> Self {
        const NAME: &str = "user_http_server_outbox_refused_total";
        describe_counter!(NAME, "Messages of workers that were refused, or dropped for their type.");
        Self::register(NAME)
    }

    fn register(name: &'static str) -> Self {
        Self(Refusal::ALL.map(|(refusal, reason)| (refusal, counter!(name, "reason" => reason))).to_vec())
    }

    /// Counts one.
    pub fn count(&self, refusal: impl Into<Refusal>) {
        let refusal = refusal.into();
        self.0.iter().filter(|(counted, _)| *counted == refusal).for_each(|(_, counter)| counter.increment(1));
    }
}

/// A counter whose value its actor reports itself, too.
#[derive(Debug)]
pub(crate) struct Total {
    counter: Counter,
    value: u64,
}

impl Total {
    /// Counts from 0 on.
    pub fn new(counter: Counter) -> Self {
        Self { counter, value: 0 }
    }

    /// Counts one.
    pub fn count(&mut self) {
        self.value += 1;
        self.counter.increment(1);
    }

    /// How many were counted.
    pub fn value(&self) -> u64 {
        self.value
    }
}

/// The age of the oldest message that an actor holds. The actor reports since when it holds that message, and whoever
/// reads the metrics computes the age: so it grows even while the actor hangs.
#[derive(Debug)]
pub(crate) struct OldestAge {
    /// [`OldestAge::NONE`] while nothing is held.
    since: AtomicI64,
    gauge: Gauge,
}

impl OldestAge {
    const NONE: Since = Since::MAX;

    /// Of no message.
    pub fn new(gauge: Gauge) -> Self {
        Self { since: AtomicI64::new(Self::NONE), gauge }
    }

    /// The oldest message is held since this time.
    pub fn set(&self, since: Option<Since>) {
        self.since.store(since.unwrap_or(Self::NONE), Ordering::Relaxed);
        if since.is_none() {
            self.gauge.set(0);
        }
    }

    /// Sets the gauge to the age at this moment.
    pub fn update(&self) {
        let since = self.since.load(Ordering::Relaxed);
        self.gauge.set(if since == Self::NONE { Duration::ZERO } else { age::of(since) });
    }
}
