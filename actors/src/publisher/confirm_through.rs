//! Confirm-through: while the broker takes messages, its confirm answers their senders, and nothing is written here.
//!
//! A message is published as soon as it arrives, in the order of arrival, whether it is stored or not. Its sender is
//! answered when the broker has confirmed it or when it is stored, whichever comes first. The store writes what the
//! broker does not take soon. Without a broker it writes everything.

use std::time::Duration;

use actix::prelude::*;
use uuid::Uuid;

use crate::error::Error;
use crate::idempotency::Accepted;
use crate::messages::SendMessageToUserManager;
use crate::payload::Payload;
use crate::publisher::metrics::Departure;
use crate::publisher::outbox::{Arrival, Sender};
use crate::publisher::record::OutboxMeta;
use crate::publisher::{FrameAck, Route, UserManagerPublisher};
use crate::reply::{Deferred, deferred};
use crate::store::{Seq, StoreError, cost, encode_meta, now_ms};

/// How often it is checked whether the broker still takes messages while one is unstored. Until a stop ends, senders
/// wait no longer.
const CONFIRM_CHECKED: Duration = Duration::from_secs(1);

/// How long the broker may answer nothing, beyond the time that the transfer takes, before messages are stored.
/// RabbitMQ needs some milliseconds to confirm small messages, and 0.3 s for one of 50 MiB.
const MAX_SILENCE: Duration = Duration::from_secs(1);

/// How long a message is unstored at most. Senders wait as long when the broker is slow.
const MAX_UNSTORED_TIME: Duration = Duration::from_secs(5);

/// How long [`FrameAck::Broker`] waits for a confirm, beyond the time that the transfer takes.
const MAX_CONFIRM_TIME: Duration = Duration::from_secs(10);

/// How many bytes may wait before a message, stored or not: what RabbitMQ takes in 2 to 3 s (170 to 300 MB/s of 8 MiB).
/// If more do, the message is stored at once.
const MAX_WAITING_BYTES: u64 = 512 << 20;

/// How many messages may wait before another: what RabbitMQ takes in less than a second (13,000 to 15,000 of 1 KiB).
const MAX_WAITING_MESSAGES: usize = 10_000;

impl UserManagerPublisher {
    /// Asks the store to write an unstored message.
    pub(super) fn store_message(&mut self, seq: Seq) {
        if let Some((put, key)) = self.outbox.begin_storing(seq) {
            self.put_message(put, key);
        }
    }

    /// Asks the store to write all unstored messages, before a stop. Those whose senders wait for the broker alone have
    /// until the end of the stop.
    pub(super) fn store_all(&mut self) {
        if self.frame_ack == FrameAck::Stored {
            let unstored: Vec<Seq> = self.outbox.unstored().collect();
            unstored.into_iter().for_each(|seq| self.store_message(seq));
        }
    }

    /// The broker does not take an unstored message soon, for this reason: it is stored, or refused.
    fn give_up(&mut self, seq: Seq, reason: &'static str) {
        match self.frame_ack {
            FrameAck::Stored => self.store_message(seq),
            FrameAck::Broker => self.refuse(seq, Error::NotConfirmed { reason }),
        }
    }

    /// Whether so much waits for the broker that it does not take another message soon.
    fn is_behind(&self) -> bool {
        self.outbox.waiting_len() >= MAX_WAITING_MESSAGES || self.outbox.waiting_bytes() >= MAX_WAITING_BYTES
    }

    /// Why the broker confirms nothing at the moment.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        match &self.route {
            Route::Broker(forwarder) => forwarder.obstacle(),
            Route::UserManager(_) => Some("there is no broker"),
        }
    }

    /// If nothing is published at the moment, gives up the unstored messages that are not in flight. Those in flight
    /// may have been taken.
    pub(super) fn give_up_unpublished(&mut self) {
        if let Some(obstacle) = self.obstacle() {
            let unpublished: Vec<Seq> = self.outbox.unstored_and_not_in_flight().collect();
            unpublished.into_iter().for_each(|seq| self.give_up(seq, obstacle));
        }
    }

    /// Checks whether an unstored message may wait for its confirm any longer.
    pub(super) fn confirm_is_due(&mut self, seq: Seq) {
        let (Some(time), Route::Broker(forwarder)) = (self.outbox.confirm_is_due(seq), &mut self.route) else { return };
        let transfer_time = forwarder.transfer_time(&self.outbox);
        let (max_silence, max_time) = match self.frame_ack {
            FrameAck::Stored => ((MAX_SILENCE + transfer_time).min(MAX_UNSTORED_TIME), MAX_UNSTORED_TIME),
            FrameAck::Broker => (MAX_CONFIRM_TIME + transfer_time, MAX_CONFIRM_TIME + transfer_time),
        };
        forwarder.note_silence(max_silence, &self.outbox);
        match forwarder.obstacle() {
            Some(obstacle) => {
                self.give_up(seq, obstacle);
                self.give_up_unpublished();
            }
            None if self.is_stopping => self.give_up(seq, "the gateway stops"),
            None if time >= max_time => self.give_up(seq, "it is too slow"),
            None => self.outbox.await_confirm(seq, CONFIRM_CHECKED),
        }
    }

    /// A message whose sender waits is answered with an error and forgotten.
    pub(super) fn refuse(&mut self, seq: Seq, error: Error) {
        if let Route::Broker(forwarder) = &mut self.route {
            forwarder.forget_in_flight(seq, &self.outbox);
        }
        let is_unstored = self.outbox.is_unstored(seq);
        if let Some(sender) = self.forget(seq, Departure::Refused) {
            self.answer(sender, Err(error));
        }
        // after its key: a key without its message would be a lost message
        if !is_unstored {
            self.store.remove(seq);
        }
    }

    /// The broker never takes a message: it is parked, or refused if its sender can be told.
    pub(super) fn reject(&mut self, seq: Seq, reason: String) {
        let size = self.outbox.get(seq).map_or(0, |message| message.payload.len());
        match self.check_size(size) {
            Err(error) if self.outbox.is_awaited(seq) => self.refuse(seq, error),
            Ok(()) if self.frame_ack == FrameAck::Broker && self.outbox.is_unstored(seq) => {
                log::error!("a message is refused, because the broker never takes it: {reason}");
                self.refuse(seq, Error::NotConfirmed { reason: "it does not take this message" });
            }
            _ => self.park(seq, reason),
        }
    }

    /// The store has written a message, or refuses to.
    pub(super) fn message_stored(&mut self, seq: Seq, outcome: Result<Payload, StoreError>, ctx: &mut Context<Self>) {
        match outcome {
            Ok(payload) => {
                let sender = self.outbox.stored(seq, payload);
                if let Some(message) = self.outbox.get(seq).filter(|_| sender.is_some()) {
                    self.metrics.accepted(message.meta.kind);
                }
                self.advance(ctx);
                sender.into_iter().for_each(|sender| self.answer(sender, Ok(())));
            }
            Err(error) if self.outbox.is_awaited(seq) => {
                self.refuse(seq, error.into());
                self.advance(ctx);
            }
            // the broker has confirmed it in the meantime
            Err(_) => {}
        }
    }
}

impl Handler<SendMessageToUserManager> for UserManagerPublisher {
    type Result = Deferred<Result<Accepted, Error>>;

    fn handle(
        &mut self,
        SendMessageToUserManager { message, key }: SendMessageToUserManager,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let (mut reply, deferred) = deferred();
        if let Some(key) = &key {
            let Some(first) = self.keys.answer_known(key, reply) else { return deferred };
            if let Some(seq) = self.outbox.find(key.message_id()) {
                self.answer_held(key, seq, first);
                return deferred;
            }
            reply = first;
        }
        let message_id = key.map_or_else(Uuid::new_v4, |key| key.message_id());
        let meta = OutboxMeta::new(&message, message_id, now_ms());
        let size = message.body.len();
        let encoded = encode_meta(&meta);
        let cost = cost(encoded.len(), size);
        let checked = if key.is_some() { self.check_key_space() } else { Ok(()) };
        if let Err(error) = checked.and_then(|()| self.check_size(size)).and_then(|()| self.admit(cost)) {
            return Deferred::now(Err(error));
        }
        let sender = match &key {
            None => Sender::Unkeyed(reply),
            Some(key) => {
                self.keys.begin(key, meta.stored_at_ms, true, reply);
                Sender::Keyed(key.key)
            }
        };
        self.arrived_total += 1;
        self.arrived_bytes_total += size;
        let seq = self.store.take_seq();
        let has_broker = matches!(self.route, Route::Broker(_));
        let is_behind = self.is_behind();
        self.outbox.arrive(seq, Arrival { meta, encoded, payload: message.body, cost, sender }, has_broker);
        self.metrics.holds(&self.outbox);
        if is_behind {
            self.give_up(seq, "too many messages wait for it");
        } else if self.is_stopping {
            self.store_all();
        }
        self.give_up_unpublished();
        self.outbox.await_confirm(seq, CONFIRM_CHECKED);
        self.advance(ctx);
        deferred
    }
}
