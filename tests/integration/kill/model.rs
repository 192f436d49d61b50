//! What the server may have and must have, according to its answers.
//!
//! An answer makes an outcome certain; a request without one leaves both open until the next survey settles it. What a
//! survey did not find must never appear again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Mutex;

use super::content::{Fetched, Kind, Label, Taken};

/// How often things have happened.
#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<&'static str, u64>>);

impl Counts {
    pub fn add(&self, what: &'static str, times: u64) {
        *self.0.lock().expect("the counts").entry(what).or_default() += times;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.lock().expect("the counts");
        let parts: Vec<String> = counts.iter().map(|(what, times)| format!("{what} {times}")).collect();
        f.write_str(&parts.join(", "))
    }
}

/// What may be buffered under a UUID that one client alone uses.
#[derive(Debug)]
pub struct Slot {
    /// The messages that may be there, the oldest first.
    candidates: Vec<Label>,
    may_be_absent: bool,
    /// Fetched, whole, since the server was started: it must not be there until the next start.
    delivered: Option<Label>,
    /// Stored for certain, and neither fetched nor replaced.
    owed: Option<Label>,
    /// Its bytes at an earlier attempt.
    seen: Option<Fetched>,
    versions: u64,
}

impl Default for Slot {
    fn default() -> Self {
        Self { candidates: Vec::new(), may_be_absent: true, delivered: None, owed: None, seen: None, versions: 0 }
    }
}

impl Slot {
    /// Whether a message is there for certain.
    pub fn is_filled(&self) -> bool {
        !self.may_be_absent
    }

    pub fn next_version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    /// The message is about to be sent.
    pub fn adding(&mut self, label: Label) {
        self.candidates.push(label);
    }

    /// It was not stored, as far as the end of the server was in order.
    pub fn not_added(&mut self, label: Label) {
        self.candidates.retain(|candidate| *candidate != label);
    }

    pub fn added(&mut self, label: Label, counts: &Counts) {
        counts.add("messages acknowledged", 1);
        if self.owed.replace(label).is_some() {
            counts.add("messages replaced", 1);
        }
        self.candidates = vec![label];
        self.may_be_absent = false;
        self.delivered = None;
    }

    /// A worker has it, whole.
    #[track_caller]
    pub fn fetched(&mut self, fetched: Fetched, counts: &Counts) {
        assert_ne!(self.delivered, Some(fetched.label), "delivered twice without a restart between: {self:?}");
        self.check(fetched);
        counts.add("messages fetched", 1);
        self.may_be_absent = true;
        self.delivered = Some(fetched.label);
        self.owed = None;
    }

    /// A worker has begun to fetch, and does not know how it ended.
    pub fn fetch_broke_off(&mut self) {
        self.may_be_absent = true;
    }

    /// There is no message, says the running server.
    #[track_caller]
    pub fn found_empty(&mut self, counts: &Counts) {
        assert!(self.may_be_absent, "an acknowledged message is lost: {self:?}");
        if self.owed.take().is_some() {
            counts.add("messages lost to a transfer that broke off", 1);
        }
    }

    /// A survey has found a message.
    #[track_caller]
    pub fn survived(&mut self, fetched: Fetched, counts: &Counts) {
        self.check(fetched);
        let label = fetched.label;
        if self.delivered.take() == Some(label) {
            counts.add("fetched messages that came back", 1);
        } else if self.owed != Some(label) {
            counts.add("messages kept without an answer", 1);
        }
        self.owed = Some(label);
        self.may_be_absent = false;
    }

    /// A survey has found none.
    #[track_caller]
    pub fn is_empty(&mut self, counts: &Counts) {
        self.found_empty(counts);
        self.candidates.clear();
        self.delivered = None;
    }

    #[track_caller]
    fn check(&mut self, fetched: Fetched) {
        assert!(self.candidates.contains(&fetched.label), "{:?} must not be here: {self:?}", fetched.label);
        self.candidates = vec![fetched.label];
        if let Some(seen) = self.seen.replace(fetched).filter(|seen| seen.label == fetched.label) {
            assert_eq!(seen.digest, fetched.digest, "other bytes than before: {self:?}");
        }
    }
}

/// A message for the user manager.
#[derive(Debug)]
struct Frame {
    label: Label,
    kind: Kind,
    stored: bool,
    received: bool,
    /// Its first delivery.
    seen: Option<Taken>,
    /// How many DELETEs were sent since the server was started.
    deletes: u32,
    /// When the first answer to one of them came, by the outbox's clock.
    deleted_at: Option<u64>,
}

/// What may wait for the user manager. Clients post and take at once, so times are compared by a clock that ticks when
/// a request begins and when its answer has come.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: BTreeMap<(usize, u64), Frame>,
    clock: u64,
}

impl Outbox {
    /// How many messages were posted and not deleted.
    pub fn waiting(&self) -> usize {
        self.frames.values().filter(|frame| frame.deletes == 0).count()
    }

    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The message is about to be posted.
    pub fn posting(&mut self, kind: Kind, label: Label) {
        let frame = Frame { label, kind, stored: false, received: false, seen: None, deletes: 0, deleted_at: None };
        self.frames.insert((label.client, label.number), frame);
    }

    /// It was not stored, as far as the end of the server was in order.
    pub fn not_posted(&mut self, label: Label) {
        self.frames.remove(&(label.client, label.number));
    }

    pub fn posted(&mut self, label: Label, counts: &Counts) {
        counts.add("frames acknowledged", 1);
        self.frame(label).stored = true;
    }

    /// The user manager has it, having asked for it at `asked_at`.
    #[track_caller]
    pub fn taken(&mut self, taken: &Taken, asked_at: u64, counts: &Counts) {
        let frame = self.check(taken);
        assert!(frame.deleted_at.is_none_or(|at| at > asked_at), "offered after it was deleted: {frame:?}");
        if !std::mem::replace(&mut frame.received, true) {
            counts.add("frames taken", 1);
        }
    }

    /// A DELETE is about to be sent.
    pub fn deleting(&mut self, label: Label) {
        self.frame(label).deletes += 1;
    }

    /// That DELETE had no effect, as far as the end of the server was in order.
    pub fn not_deleted(&mut self, label: Label) {
        self.frame(label).deletes -= 1;
    }

    pub fn deleted(&mut self, label: Label, counts: &Counts) {
        counts.add("frames deleted", 1);
        let now = self.tick();
        self.frame(label).deleted_at.get_or_insert(now);
    }

    /// A DELETE was answered that there is no such message.
    #[track_caller]
    pub fn already_deleted(&mut self, label: Label) {
        let frame = self.frame(label);
        assert!(frame.deletes > 1, "an acknowledged frame is lost: {frame:?}");
    }

    /// A survey has found these, in this order.
    #[track_caller]
    pub fn survived(&mut self, found: &[Taken], counts: &Counts) {
        let mut last = BTreeMap::new();
        for taken in found {
            let frame = self.check(taken);
            let Label { client, number, .. } = taken.label;
            let before = last.insert(client, number);
            assert!(before < Some(number), "out of order: {number} after {before:?} of client {client}");
            if frame.deleted_at.take().is_some() {
                counts.add("deleted frames that came back", 1);
            }
            if !std::mem::replace(&mut frame.stored, true) {
                counts.add("frames kept without an answer", 1);
            }
            frame.received = true;
            frame.deletes = 0;
        }
        let found: BTreeSet<_> = found.iter().map(|taken| (taken.label.client, taken.label.number)).collect();
        self.frames.retain(|key, frame| {
            let there = found.contains(key);
            assert!(there || !frame.stored || frame.deletes > 0, "an acknowledged frame is lost: {frame:?}");
            there
        });
    }

    /// Everything was taken and deleted.
    #[track_caller]
    pub fn assert_empty(&self) {
        let left: Vec<_> = self.frames.values().filter(|frame| frame.deleted_at.is_none()).collect();
        assert!(left.is_empty(), "never deleted: {left:?}");
    }

    #[track_caller]
    fn check(&mut self, taken: &Taken) -> &mut Frame {
        let frame = self.frame(taken.label);
        assert_eq!((frame.kind, frame.label), (taken.kind, taken.label), "another message than was posted: {frame:?}");
        let seen = frame.seen.get_or_insert_with(|| taken.clone());
        let same = (&seen.id, seen.digest) == (&taken.id, taken.digest);
        assert!(same, "another id or other bytes than before: {taken:?}, {frame:?}");
        frame
    }

    #[track_caller]
    fn frame(&mut self, label: Label) -> &mut Frame {
        let key = (label.client, label.number);
        self.frames.get_mut(&key).unwrap_or_else(|| panic!("{label:?} was never posted, or was removed permanently"))
    }
}
