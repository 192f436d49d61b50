//! Requests with an idempotency key: each takes effect once, and its retries get the same answer.
//!
//! A key has a record of its own, beside that of its message. A message that is stored is put together with the record
//! of its key, in one commit. A message that the broker confirms first is never stored; then only the record of its key
//! is. So the message may leave the outbox at any time, and the key stays.

use actix::prelude::*;

use crate::error::Error;
use crate::idempotency::{Accepted, Digest, IdempotencyKey};
use crate::messages::{CountUserMessage, UnforwardedMessage};
use crate::payload::Payload;
use crate::publisher::keys::{Forgotten, KeyReply};
use crate::publisher::outbox::{Due, Sender};
use crate::publisher::{Draining, FrameAck, Route, UserManagerPublisher};
use crate::reply::{Deferred, deferred};
use crate::store::{Put, Seq, StoreError, check_failure, encode_meta, now_ms};

impl UserManagerPublisher {
    /// Replies to the sender of a message that is durable or has failed. One with a key gets the reply when its key is
    /// durable too.
    pub(super) fn answer(&mut self, sender: Sender, outcome: Result<(), Error>) {
        match (sender, outcome) {
            (Sender::Unkeyed(reply), outcome) => reply.send(outcome.map(|()| Accepted::Unkeyed)),
            (Sender::Keyed(key), Ok(())) => self.record_key(key),
            (Sender::Keyed(key), Err(error)) => self.fail_key(key, &error),
        }
    }

    /// Asks the store to write the record of a key, unless it has been asked before.
    fn record_key(&mut self, key: Digest) {
        if let Some((seq, record)) = self.keys.begin_recording(key, || self.store.take_seq()) {
            self.store.put_as(seq, encode_meta(&record), Payload::empty());
        }
    }

    /// Asks the store to write a message, and the record of its key if it has one.
    pub(super) fn put_message(&mut self, message: Put, sender_key: Option<Digest>) {
        let record = sender_key.and_then(|key| self.keys.begin_recording(key, || self.store.take_seq()));
        match record {
            // the message first: a key without its message would be a lost message
            Some((seq, record)) => {
                self.store.put_both(message, Put { seq, meta: encode_meta(&record), body: Payload::empty() });
            }
            None => self.store.put_as(message.seq, message.meta, message.body),
        }
    }

    /// The store has written the record of a key, or refuses to.
    pub(super) fn key_recorded(&mut self, key: Digest, record: Seq, outcome: Result<Payload, StoreError>) {
        match outcome {
            Ok(_) => {
                let is_first = self.keys.len() == 0;
                self.keys.remember(key, record).into_iter().for_each(|dropped| self.store.remove(dropped));
                if is_first {
                    self.forget_old_keys();
                }
            }
            Err(error) => self.fail_key(key, &error.into()),
        }
    }

    fn fail_key(&mut self, key: Digest, error: &Error) {
        self.keys.fail(key, error).into_iter().for_each(|record| self.store.remove(record));
    }

    /// Forgets old keys, and again when the next one is old enough.
    pub(super) fn forget_old_keys(&mut self) {
        let Forgotten { records, next } = self.keys.forget_old();
        records.into_iter().for_each(|record| self.store.remove(record));
        if let Some(next) = next {
            self.outbox.deadlines().add(Due::OldKeys, next);
        }
    }

    /// Answers a request with a key whose message is in the outbox under this number, although the key is not known: it
    /// was forgotten, or a crash has kept the message without its key. The message is not taken again.
    pub(super) fn answer_held(&mut self, key: &IdempotencyKey, seq: Seq, reply: KeyReply) {
        if let Err(error) = check_failure(&self.store_failure) {
            return reply.send(Err(error.into()));
        }
        if self.frame_ack == FrameAck::Broker {
            let reason = "the message is in the outbox and waits for its turn";
            return reply.send(Err(Error::NotConfirmed { reason }));
        }
        let at_ms = self.outbox.get(seq).map_or_else(now_ms, |message| message.meta.stored_at_ms);
        self.keys.begin(key, at_ms, false, reply);
        self.record_key(key.key);
    }

    /// Refuses a request with a key whose record cannot be written at the moment: with a broker its message would be
    /// published before that is found out.
    pub(super) fn check_key_space(&self) -> Result<(), Error> {
        match (&self.route, &self.store_failure) {
            (Route::Broker(_), Some(failure)) => Err(failure.clone().into()),
            _ => Ok(()),
        }
    }
}

impl Handler<CountUserMessage> for UserManagerPublisher {
    type Result = Deferred<Result<Accepted, Error>>;

    fn handle(&mut self, CountUserMessage { message, key }: CountUserMessage, _: &mut Self::Context) -> Self::Result {
        let (reply, deferred) = deferred();
        let Some(key) = key else {
            self.count(&message);
            return Deferred::now(Ok(Accepted::Unkeyed));
        };
        let Some(reply) = self.keys.answer_known(&key, reply) else { return deferred };
        if !matches!(self.draining, Draining::No) {
            return Deferred::now(Err(Error::Stopping));
        }
        if let Err(error) = check_failure(&self.store_failure) {
            return Deferred::now(Err(error.into()));
        }
        message.log();
        self.count(&message);
        self.keys.begin(&key, now_ms(), true, reply);
        self.record_key(key.key);
        deferred
    }
}

impl UserManagerPublisher {
    fn count(&mut self, message: &UnforwardedMessage) {
        match message {
            UnforwardedMessage::Test { .. } => self.test_total += 1,
            UnforwardedMessage::Other { .. } => {
                self.unknown_total += 1;
                self.metrics.dropped();
            }
        }
    }
}
