//! What the publisher reports about the outbox.

use std::sync::Arc;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use crate::codec::ForwardedType;
use crate::metrics::{OldestAge, Refusal, Refusals, Total};
use crate::publisher::outbox::Outbox;

const MESSAGES: &str = "user_http_server_outbox_messages";
const BYTES: &str = "user_http_server_outbox_bytes";
const LIMIT: &str = "user_http_server_outbox_limit_bytes";
const OLDEST: &str = "user_http_server_outbox_oldest_seconds";
const PARKED: &str = "user_http_server_outbox_parked";
const RECOVERED: &str = "user_http_server_outbox_recovered_messages";
const ACCEPTED: &str = "user_http_server_outbox_accepted_total";
const FORWARDED: &str = "user_http_server_outbox_forwarded_total";
const DISCARDED: &str = "user_http_server_outbox_discarded_total";

/// How a message leaves the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// The broker or the user manager has it.
    Forwarded,
    /// An operator does not want it.
    Discarded,
    /// Its sender is told that it was not accepted.
    Refused,
}

#[derive(Debug)]
pub(super) struct OutboxMetrics {
    messages: Gauge,
    bytes: Gauge,
    oldest: Arc<OldestAge>,
    parked: Gauge,
    recovered: Gauge,
    accepted_frames: Counter,
    accepted_completions: Counter,
    pub forwarded: Total,
    pub discarded: Total,
    refused: Refusals,
}

impl OutboxMetrics {
    /// Of an outbox that holds at most `max_bytes`.
    pub fn register(max_bytes: u64) -> Self {
        describe_gauge!(MESSAGES, "Messages for the user manager in the outbox, parked ones included.");
        describe_gauge!(BYTES, "What these messages take of --max-outbox.");
        describe_gauge!(LIMIT, "The limit of these bytes: --max-outbox.");
        gauge!(LIMIT).set(max_bytes as f64);
        describe_gauge!(OLDEST, "The age of the oldest message in the outbox; 0 if there is none.");
        describe_gauge!(PARKED, "Messages that the broker refuses permanently, and that wait for an operator.");
        describe_gauge!(RECOVERED, "Messages that the outbox found on the disk when the gateway started.");
        describe_counter!(ACCEPTED, "Messages that the outbox has taken, by their TYPE.");
        describe_counter!(FORWARDED, "Messages that left the outbox because the broker or the user manager has them.");
        describe_counter!(DISCARDED, "Messages that left the outbox because an operator discarded them.");
        let accepted = |kind: ForwardedType| counter!(ACCEPTED, "type" => kind.name());
        Self {
            messages: gauge!(MESSAGES),
            bytes: gauge!(BYTES),
            oldest: Arc::new(OldestAge::new(gauge!(OLDEST))),
            parked: gauge!(PARKED),
            recovered: gauge!(RECOVERED),
            accepted_frames: accepted(ForwardedType::FrameRendered),
            accepted_completions: accepted(ForwardedType::RenderCompleted),
            forwarded: Total::new(counter!(FORWARDED)),
            discarded: Total::new(counter!(DISCARDED)),
            refused: Refusals::of_outbox(),
        }
    }

    /// The age of the oldest message.
    pub fn oldest(&self) -> &Arc<OldestAge> {
        &self.oldest
    }

    /// The store had these messages at the start.
    pub fn recovered(&self, outbox: &Outbox) {
        self.recovered.set(outbox.len() as f64);
        self.holds(outbox);
    }

    /// A message has become durable, here or at the broker.
    pub fn accepted(&self, kind: ForwardedType) {
        match kind {
            ForwardedType::FrameRendered => &self.accepted_frames,
            ForwardedType::RenderCompleted => &self.accepted_completions,
        }
        .increment(1);
    }

    /// A message has left the outbox. One that `was_awaited` by its sender was not accepted before.
    pub fn left(&mut self, kind: ForwardedType, was_awaited: bool, departure: Departure) {
        match departure {
            Departure::Forwarded => {
                if was_awaited {
                    self.accepted(kind);
                }
                self.forwarded.count();
            }
            Departure::Discarded if was_awaited => {}
            Departure::Discarded => self.discarded.count(),
            Departure::Refused => {}
        }
    }

    /// A message of an unknown type was dropped.
    pub fn dropped(&self) {
        self.refused.count(Refusal::UnknownType);
    }

    /// The outbox has changed to this.
    pub fn holds(&self, outbox: &Outbox) {
        self.messages.set(outbox.len() as f64);
        self.bytes.set(outbox.bytes() as f64);
        self.parked.set(outbox.parked_len() as f64);
        self.oldest.set(outbox.oldest());
    }
}
