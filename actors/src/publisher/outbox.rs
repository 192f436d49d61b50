//! The outbox: the messages for the user manager in the order in which they were accepted, and the state of each.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::time::Duration;

use futures::future::Either;
use tokio::time::Instant;
use uuid::Uuid;

use crate::administration::OutboxEntryState;
use crate::age::{AgeClock, Since};
use crate::deadlines::{Deadline, Deadlines};
use crate::lease::OutboxLeaseId;
use crate::payload::Payload;
use crate::publisher::record::{KeyRecord, Note, OutboxMeta, ParkedMarker};
use crate::store::{Recovered, Seq, cost};

mod durability;
#[cfg(test)]
mod tests;

use durability::Durability;
pub use durability::{Arrival, Sender};

/// The messages for the user manager.
///
/// Every message is in exactly one [`State`], and only [`Outbox::enter`] changes it.
#[derive(Debug, Default)]
pub struct Outbox {
    messages: BTreeMap<Seq, OutboxMessage>,
    clock: AgeClock,
    by_id: HashMap<Uuid, Seq>,
    waiting: BTreeSet<Seq>,
    waiting_bytes: u64,
    /// When each of them was published.
    in_flight: BTreeMap<Seq, Instant>,
    in_flight_bytes: u64,
    /// Also those of them that are being removed.
    parked: BTreeSet<Seq>,
    unstored: BTreeSet<Seq>,
    deadlines: Deadlines<Due>,
    last_lease: OutboxLeaseId,
    readers: HashMap<Seq, Readers>,
    /// What all messages cost, in bytes.
    bytes: u64,
    /// What removed messages cost whose bodies are still being read.
    lingering_bytes: u64,
}

/// The answers that are reading the body of one message.
#[derive(Debug, Default)]
struct Readers {
    count: usize,
    /// What the message costs, once it has been removed.
    lingering: u64,
}

/// What is due when a deadline has passed.
#[derive(Clone, Copy, Debug)]
pub enum Due {
    /// The end of a lease, by its visibility timeout.
    EndOfLease { seq: Seq, lease: OutboxLeaseId },
    /// A look at an unstored message that the broker has not confirmed.
    Confirm { seq: Seq },
    /// The oldest idempotency keys are forgotten.
    OldKeys,
}

/// One message.
#[derive(Debug)]
pub struct OutboxMessage {
    pub meta: OutboxMeta,
    pub payload: Payload,
    /// In bytes; see [`cost`].
    pub cost: u64,
    /// How often it was leased since the service started.
    pub leased: u32,
    /// The time from which its age counts.
    pub since: Since,
    state: State,
    durability: Durability,
}

#[derive(Debug)]
enum State {
    /// Not stored yet, and there is no broker: nobody gets it.
    Arriving,
    /// For the broker, or for a user manager who asks.
    Waiting,
    /// Published; the broker has not answered yet.
    InFlight,
    /// The user manager has it.
    Leased {
        lease: OutboxLeaseId,
        /// `None` once it has passed.
        visibility_timeout: Option<Deadline>,
    },
    Parked(Parked),
    /// Its removal is on its way to the store. Holds the state that it goes back to if the store refuses; a lease there
    /// ends as it would without the removal.
    Removing(Box<State>),
}

/// Why a message is parked.
#[derive(Debug)]
pub struct Parked {
    pub reason: String,
    pub since_ms: u64,
    /// The record of the [`ParkedMarker`], once it is stored.
    pub marker: Option<Seq>,
}

impl State {
    /// The state, or the one before a removal.
    fn before_removal(&mut self) -> &mut Self {
        if let Self::Removing(before) = self { before } else { self }
    }

    fn parked(&self) -> Option<&Parked> {
        match self {
            Self::Parked(parked) => Some(parked),
            Self::Removing(before) => before.parked(),
            Self::Arriving | Self::Waiting | Self::InFlight | Self::Leased { .. } => None,
        }
    }
}

impl OutboxMessage {
    /// Its state as operators see it. One whose removal is being written is in the state before that.
    pub fn shown_state(&self) -> OutboxEntryState {
        let mut state = &self.state;
        while let State::Removing(before) = state {
            state = before;
        }
        match state {
            State::InFlight => OutboxEntryState::InFlight,
            State::Leased { .. } => OutboxEntryState::Leased,
            State::Parked(_) => OutboxEntryState::Parked,
            State::Arriving | State::Waiting | State::Removing(_) => OutboxEntryState::Waiting,
        }
    }
}

/// What a store has kept.
#[derive(Debug, Default)]
pub struct RecoveredOutbox {
    pub outbox: Outbox,
    /// The records of idempotency keys.
    pub keys: Vec<(Seq, KeyRecord)>,
    /// Markers that mark nothing any more.
    pub useless: Vec<Seq>,
}

impl Outbox {
    /// The outbox that a store has kept.
    ///
    /// # Errors
    /// The number of a record that is no record of an outbox.
    pub fn recover(recovered: Vec<Recovered>) -> Result<RecoveredOutbox, Seq> {
        let RecoveredOutbox { mut outbox, mut keys, mut useless } = RecoveredOutbox::default();
        for record in recovered {
            match record.decode_meta::<OutboxMeta, Note>()? {
                Either::Left(meta) => {
                    let cost = cost(record.meta.len(), record.body.len());
                    outbox.insert(record.seq, meta, record.body, cost, Durability::Stored);
                    outbox.enter(record.seq, State::Waiting);
                }
                Either::Right(Note::Key(key)) => keys.push((record.seq, key)),
                Either::Right(Note::Parked(ParkedMarker { parked, reason, since_ms })) => {
                    let marker = Some(record.seq);
                    // a kill may leave two markers of a message that was published and parked again
                    useless.extend(outbox.unpark(parked));
                    // a marker is younger than the message that it marks
                    if !outbox.enter(parked, State::Parked(Parked { reason, since_ms, marker })) {
                        useless.extend(marker);
                    }
                }
            }
        }
        Ok(RecoveredOutbox { outbox, keys, useless })
    }

    fn insert(&mut self, seq: Seq, meta: OutboxMeta, payload: Payload, cost: u64, durability: Durability) {
        self.bytes += cost;
        self.by_id.insert(meta.message_id, seq);
        let since = match &durability {
            Durability::Stored => self.clock.since(meta.stored_at_ms, None),
            Durability::Unstored { .. } | Durability::Storing(_) => self.clock.now(),
        };
        let message = OutboxMessage { meta, payload, cost, leased: 0, since, state: State::Arriving, durability };
        self.messages.insert(seq, message);
    }

    /// The oldest message that waits.
    pub fn first_waiting(&self) -> Option<(Seq, &OutboxMessage)> {
        let seq = *self.waiting.first()?;
        self.messages.get(&seq).map(|message| (seq, message))
    }

    /// How many messages wait.
    pub fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    /// The bytes of their bodies.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// The oldest message that waits is in flight from now on.
    pub fn publish_first(&mut self) -> Option<(Seq, &OutboxMessage)> {
        let seq = *self.waiting.first()?;
        self.enter(seq, State::InFlight);
        self.messages.get(&seq).map(|message| (seq, message))
    }

    /// Whether the broker owes an answer for this message.
    pub fn is_in_flight(&self, seq: Seq) -> bool {
        self.in_flight.contains_key(&seq)
    }

    /// The messages in flight, in their order.
    pub fn in_flight(&self) -> impl ExactSizeIterator<Item = Seq> + DoubleEndedIterator {
        self.in_flight.keys().copied()
    }

    /// When a message in flight was published.
    pub fn published_at(&self, seq: Seq) -> Option<Instant> {
        self.in_flight.get(&seq).copied()
    }

    /// The bytes of the bodies in flight.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// A message in flight waits again, in its old position.
    pub fn return_to_queue(&mut self, seq: Seq) {
        if self.is_in_flight(seq) {
            self.enter(seq, State::Waiting);
        }
    }

    /// As [`Outbox::return_to_queue`], for all of them.
    pub fn return_all_to_queue(&mut self) {
        while let Some((&seq, _)) = self.in_flight.first_key_value() {
            self.enter(seq, State::Waiting);
        }
    }

    /// Leases the oldest message that waits.
    pub fn lease_first(&mut self, visibility_timeout: Duration) -> Option<(Seq, OutboxLeaseId, &OutboxMessage)> {
        let seq = *self.waiting.first()?;
        self.last_lease += 1;
        let lease = self.last_lease;
        let visibility_timeout = Some(self.deadlines.add(Due::EndOfLease { seq, lease }, visibility_timeout));
        self.enter(seq, State::Leased { lease, visibility_timeout });
        let message = self.messages.get_mut(&seq)?;
        message.leased = message.leased.saturating_add(1);
        Some((seq, lease, message))
    }

    /// What is due, as it becomes due.
    pub fn deadlines(&self) -> Deadlines<Due> {
        self.deadlines.clone()
    }

    /// [`Due::EndOfLease`]: the message waits again.
    pub fn expire_lease(&mut self, seq: Seq, expired: OutboxLeaseId) {
        let state = self.messages.get_mut(&seq).map(|message| message.state.before_removal());
        if let Some(State::Leased { lease, visibility_timeout }) = state
            && *lease == expired
        {
            *visibility_timeout = None;
            self.end_lease(seq);
        }
    }

    /// A lease ends early: the message waits again, unless that lease has ended before.
    pub fn release(&mut self, seq: Seq, released: OutboxLeaseId) {
        let state = self.messages.get_mut(&seq).map(|message| message.state.before_removal());
        if matches!(state, Some(State::Leased { lease, .. }) if *lease == released) {
            self.end_lease(seq);
        }
    }

    fn end_lease(&mut self, seq: Seq) {
        let is_being_removed = self.is_being_removed(seq);
        self.enter(seq, if is_being_removed { State::Removing(Box::new(State::Waiting)) } else { State::Waiting });
    }

    /// Keeps a message back until somebody decides about it. Returns whether it is parked only now.
    pub fn park(&mut self, seq: Seq, reason: String, since_ms: u64) -> bool {
        let Some(OutboxMessage { meta, payload, state, .. }) = self.messages.get(&seq) else { return false };
        if let State::Parked(_) | State::Removing(_) = state {
            return false;
        }
        let (id, kind, user, len) = (meta.message_id, meta.kind, &meta.user_id, payload.len());
        log::error!("message {id} ({kind:?} of {user:?}, {len} bytes) is parked: {reason}");
        self.enter(seq, State::Parked(Parked { reason, since_ms, marker: None }))
    }

    /// The marker of a parked message is stored. Returns a marker that is of no use.
    pub fn marker_stored(&mut self, seq: Seq, marker: Seq) -> Option<Seq> {
        match self.messages.get_mut(&seq).map(|message| message.state.before_removal()) {
            Some(State::Parked(parked)) => parked.marker.replace(marker),
            _ => Some(marker),
        }
    }

    /// A parked message waits again, in its old position. Returns its marker, which is of no use any more.
    pub fn unpark(&mut self, seq: Seq) -> Option<Seq> {
        let State::Parked(parked) = &mut self.messages.get_mut(&seq)?.state else { return None };
        let marker = parked.marker.take();
        self.enter(seq, State::Waiting);
        marker
    }

    /// The parked messages in their order, including those that are being removed.
    pub fn parked(&self) -> impl Iterator<Item = (&OutboxMessage, &Parked)> {
        let parked = self.parked.iter().filter_map(|seq| self.messages.get(seq));
        parked.filter_map(|message| Some((message, message.state.parked()?)))
    }

    /// How many these are.
    pub fn parked_len(&self) -> usize {
        self.parked.len()
    }

    /// Whether a message is parked, or was when its removal began.
    pub fn is_parked(&self, seq: Seq) -> bool {
        self.parked.contains(&seq)
    }

    /// Nobody gets this message while its removal is on its way to the store. One in flight stays there.
    pub fn begin_removal(&mut self, seq: Seq) {
        let Some(message) = self.messages.get_mut(&seq) else { return };
        if let State::Arriving | State::InFlight | State::Removing(_) = message.state {
            return;
        }
        // not left, because a lease runs on
        let before = std::mem::replace(&mut message.state, State::Waiting);
        self.enter(seq, State::Removing(Box::new(before)));
    }

    /// Whether the removal of a message is on its way to the store.
    pub fn is_being_removed(&self, seq: Seq) -> bool {
        matches!(self.messages.get(&seq), Some(OutboxMessage { state: State::Removing(_), .. }))
    }

    /// The store has refused the removal: the message has its former state again. If its lease has ended meanwhile,
    /// it waits.
    pub fn removal_refused(&mut self, seq: Seq) {
        let Some(OutboxMessage { state: State::Removing(before), .. }) = self.messages.get_mut(&seq) else { return };
        let before = std::mem::replace(&mut **before, State::Waiting);
        self.enter(seq, before);
    }

    /// Forgets a message. Returns its marker, which has to be removed too, and its sender if that waits.
    pub fn remove(&mut self, seq: Seq) -> (Option<Seq>, Option<Sender>) {
        self.leave(seq);
        let sender = self.set_durability(seq, Durability::Stored).and_then(Durability::into_sender);
        let Some(message) = self.messages.remove(&seq) else { return (None, None) };
        self.by_id.remove(&message.meta.message_id);
        self.bytes -= message.cost;
        if let Some(readers) = self.readers.get_mut(&seq) {
            readers.lingering = message.cost;
            self.lingering_bytes += message.cost;
        }
        (message.state.parked().and_then(|parked| parked.marker), sender)
    }

    /// Changes the state of a message. Returns whether there is such a message.
    fn enter(&mut self, seq: Seq, state: State) -> bool {
        self.leave(seq);
        let Some(message) = self.messages.get_mut(&seq) else { return false };
        match &state {
            State::Waiting => {
                self.waiting.insert(seq);
                self.waiting_bytes += message.payload.len();
            }
            State::InFlight => {
                self.in_flight.insert(seq, Instant::now());
                self.in_flight_bytes += message.payload.len();
            }
            state if state.parked().is_some() => drop(self.parked.insert(seq)),
            State::Arriving | State::Leased { .. } | State::Parked(_) | State::Removing(_) => {}
        }
        message.state = state;
        true
    }

    /// Takes a message out of what is kept about its state.
    fn leave(&mut self, seq: Seq) {
        let Some(message) = self.messages.get_mut(&seq) else { return };
        if self.waiting.remove(&seq) {
            self.waiting_bytes -= message.payload.len();
        }
        self.parked.remove(&seq);
        if self.in_flight.remove(&seq).is_some() {
            self.in_flight_bytes -= message.payload.len();
        }
        if let State::Leased { visibility_timeout, .. } = message.state.before_removal() {
            visibility_timeout.take().into_iter().for_each(|deadline| self.deadlines.remove(deadline));
        }
    }

    /// The message of this id.
    pub fn find(&self, message_id: Uuid) -> Option<Seq> {
        self.by_id.get(&message_id).copied()
    }

    /// The message with this number.
    pub fn get(&self, seq: Seq) -> Option<&OutboxMessage> {
        self.messages.get(&seq)
    }

    /// The messages with greater numbers, in their order.
    pub fn after(&self, seq: Seq) -> impl Iterator<Item = (Seq, &OutboxMessage)> {
        let after = self.messages.range((Bound::Excluded(seq), Bound::Unbounded));
        after.map(|(seq, message)| (*seq, message))
    }

    /// The store has moved a body.
    pub fn moved(&mut self, seq: Seq, payload: Payload) {
        if let Some(message) = self.messages.get_mut(&seq) {
            message.payload = payload;
        }
    }

    /// What counts towards the limit: all messages, and removed ones whose bodies are still being read. Such a body
    /// keeps its memory, or its segment on the disk.
    pub fn held_bytes(&self) -> u64 {
        self.bytes + self.lingering_bytes
    }

    /// An answer begins to read the body of a message.
    pub fn begin_reading(&mut self, seq: Seq) {
        self.readers.entry(seq).or_default().count += 1;
    }

    /// An answer no longer reads the body of a message. Returns whether that frees what a removed message cost.
    pub fn end_reading(&mut self, seq: Seq) -> bool {
        let Entry::Occupied(mut readers) = self.readers.entry(seq) else { return false };
        readers.get_mut().count -= 1;
        if readers.get().count > 0 {
            return false;
        }
        let freed = readers.remove().lingering;
        self.lingering_bytes -= freed;
        freed > 0
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Since when there is the one that was accepted first.
    pub fn oldest(&self) -> Option<Since> {
        self.messages.first_key_value().map(|(_, message)| message.since)
    }

    /// What they cost, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
