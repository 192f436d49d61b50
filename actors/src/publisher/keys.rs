//! The idempotency keys: those of requests in progress, and those of requests that were accepted within the last hour.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::age::{AgeClock, Since};
use crate::error::Error;
use crate::idempotency::{Accepted, Digest, IdempotencyKey};
use crate::publisher::record::KeyRecord;
use crate::reply::Reply;
use crate::store::Seq;
use crate::wait_queue::WaitQueue;

#[cfg(test)]
mod tests;

/// How long a key is remembered: an hour is promised. It counts from when the key's record is written. The five minutes
/// more are for a disk that is slow to write it.
const REMEMBERED: Duration = Duration::from_secs(65 * 60);

/// How many keys are remembered. The oldest are dropped first. Each takes 185 bytes of memory, those of the
/// store's index included, and 225 bytes on the disk with its removal (docs/decisions/0019).
const MAX_KEYS: usize = 1_000_000;

/// How many keys are forgotten in one turn of the event loop: some milliseconds (docs/decisions/0019).
const SLICE: usize = 1_000;

/// The pause before the next slice, if more keys are due, so that other events are handled in between.
const NEXT_SLICE: Duration = Duration::from_millis(1);

/// The shortest time between two checks without a result.
const MIN_CHECK: Duration = Duration::from_secs(1);

/// The reply to a request with a key.
pub type KeyReply = Reply<Result<Accepted, Error>>;

/// The keys.
#[derive(Debug)]
pub struct Keys {
    clock: KeyClock,
    max: usize,
    in_progress: HashMap<Digest, InProgress>,
    /// The records that the store is writing, with their keys.
    recording: BTreeMap<Seq, Digest>,
    /// A tree: a hash table of this size would have to be moved as a whole when it grows.
    remembered: BTreeMap<Digest, Remembered>,
    /// The same keys, oldest first.
    by_age: VecDeque<(Since, Digest)>,
}

/// A key whose first request has no outcome yet.
#[derive(Debug)]
struct InProgress {
    body: Digest,
    at_ms: u64,
    /// The number of the key's record, once the store has been asked to write it.
    record: Option<Seq>,
    waiting: WaitQueue<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    reply: KeyReply,
    is_first: bool,
}

#[derive(Debug)]
struct Remembered {
    body: Digest,
    at_ms: u64,
    record: Seq,
}

/// The boot clock at the start, and tokio's from then on.
#[derive(Debug)]
struct KeyClock {
    boot: AgeClock,
    started: Since,
    started_at: Instant,
}

impl KeyClock {
    fn start() -> Self {
        let boot = AgeClock::start();
        Self { started: boot.now(), boot, started_at: Instant::now() }
    }

    fn now(&self) -> Since {
        self.started + self.started_at.elapsed().as_millis() as Since
    }
}

/// Keys that were forgotten.
#[derive(Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// Their records, which are of no use any more.
    pub records: Vec<Seq>,
    /// When to forget more; `None` if no key is left.
    pub next: Option<Duration>,
}

impl Keys {
    /// The keys with these records.
    pub fn recover(records: Vec<(Seq, KeyRecord)>) -> (Self, Vec<Seq>) {
        Self::with_max(records, MAX_KEYS)
    }

    /// Keeps at most `max` keys. Returns the records that are of no use any more.
    fn with_max(records: Vec<(Seq, KeyRecord)>, max: usize) -> (Self, Vec<Seq>) {
        let clock = KeyClock::start();
        let (mut remembered, mut by_age, mut useless) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (record, meta) in records {
            let (key, body) = meta.digests();
            by_age.push((clock.boot.since(meta.since_ms, meta.boot), key, record));
            // a kill may leave two records of a key that was used again after it was forgotten
            let earlier: Option<Remembered> = remembered.insert(key, Remembered { body, at_ms: meta.since_ms, record });
            useless.extend(earlier.map(|earlier| earlier.record));
        }
        by_age.retain(|(_, key, record)| remembered.get(key).is_some_and(|current| current.record == *record));
        by_age.sort_unstable();
        let by_age = by_age.into_iter().map(|(since, key, _)| (since, key)).collect();
        let (in_progress, recording) = (HashMap::new(), BTreeMap::new());
        (Self { clock, max, in_progress, recording, remembered, by_age }, useless)
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.remembered.len()
    }

    /// Answers a request whose key is known, now or when the request in progress has its outcome. Returns the reply of
    /// a request that is the first one with its key.
    pub fn answer_known(&mut self, key: &IdempotencyKey, reply: KeyReply) -> Option<KeyReply> {
        if let Some(Remembered { body, at_ms, .. }) = self.remembered.get(&key.key) {
            reply.send(if *body == key.body {
                Ok(Accepted::Replayed { at_ms: *at_ms })
            } else {
                Err(Error::KeyReused)
            });
            return None;
        }
        let Some(in_progress) = self.in_progress.get_mut(&key.key) else { return Some(reply) };
        if in_progress.body == key.body {
            let waiter = Waiter { reply, is_first: false };
            in_progress.waiting.push(waiter, |waiter| waiter.reply.is_closed());
        } else {
            reply.send(Err(Error::KeyReused));
        }
        None
    }

    /// The first request with a key is in progress, or the first one since the key was forgotten (`is_first` is false).
    pub fn begin(&mut self, key: &IdempotencyKey, at_ms: u64, is_first: bool, reply: KeyReply) {
        let mut waiting = WaitQueue::default();
        waiting.push(Waiter { reply, is_first }, |_| false);
        self.in_progress.insert(key.key, InProgress { body: key.body, at_ms, record: None, waiting });
    }

    /// The store is asked to write the record of a key in progress under the number that `take_seq` returns. `None` if
    /// that was asked before.
    pub fn begin_recording(&mut self, key: Digest, take_seq: impl FnOnce() -> Seq) -> Option<(Seq, KeyRecord)> {
        let in_progress = self.in_progress.get_mut(&key).filter(|in_progress| in_progress.record.is_none())?;
        let record = take_seq();
        in_progress.record = Some(record);
        self.recording.insert(record, key);
        let boot = self.clock.boot.boot_time();
        Some((record, KeyRecord::new(key, in_progress.body, in_progress.at_ms, boot)))
    }

    /// The records that the store is writing.
    pub fn recording(&self) -> impl Iterator<Item = Seq> {
        self.recording.keys().copied()
    }

    /// The key of a record that the store is writing.
    pub fn recorded(&self, record: Seq) -> Option<Digest> {
        self.recording.get(&record).copied()
    }

    /// The record of a key in progress is on stable storage: its requests are answered, and the key is remembered.
    /// Returns the records of keys that are dropped for it.
    pub fn remember(&mut self, key: Digest, record: Seq) -> Vec<Seq> {
        let Some(InProgress { body, at_ms, mut waiting, .. }) = self.end(key) else { return Vec::new() };
        self.remembered.insert(key, Remembered { body, at_ms, record });
        self.by_age.push_back((self.clock.now(), key));
        while let Some(Waiter { reply, is_first }) = waiting.pop() {
            reply.send(Ok(if is_first { Accepted::First { at_ms } } else { Accepted::Replayed { at_ms } }));
        }
        let excess = self.by_age.len().saturating_sub(self.max);
        (0..excess).filter_map(|_| self.forget_oldest()).collect()
    }

    /// The request in progress has failed, and so have those that wait for its outcome. Returns the key's record, if
    /// the store has been asked to write it.
    pub fn fail(&mut self, key: Digest, error: &Error) -> Option<Seq> {
        let InProgress { record, mut waiting, .. } = self.end(key)?;
        while let Some(Waiter { reply, .. }) = waiting.pop() {
            reply.send(Err(error.clone()));
        }
        record
    }

    fn end(&mut self, key: Digest) -> Option<InProgress> {
        let in_progress = self.in_progress.remove(&key)?;
        if let Some(record) = &in_progress.record {
            self.recording.remove(record);
        }
        Some(in_progress)
    }

    fn forget_oldest(&mut self) -> Option<Seq> {
        let (_, key) = self.by_age.pop_front()?;
        self.remembered.remove(&key).map(|remembered| remembered.record)
    }

    /// Forgets a slice of the keys that are old enough, and of those beyond the limit.
    pub fn forget_old(&mut self) -> Forgotten {
        let (now, mut records) = (self.clock.now(), Vec::new());
        while let Some((since, _)) = self.by_age.front() {
            let left = REMEMBERED.as_millis() as Since - (now - since);
            if left > 0 && self.by_age.len() <= self.max {
                return Forgotten { records, next: Some(Duration::from_millis(left as u64).max(MIN_CHECK)) };
            }
            if records.len() == SLICE {
                return Forgotten { records, next: Some(NEXT_SLICE) };
            }
            records.extend(self.forget_oldest());
        }
        self.by_age = VecDeque::new();
        Forgotten { records, next: None }
    }
}
