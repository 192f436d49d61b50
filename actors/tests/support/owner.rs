//! The owner of a store, for tests: sends requests and waits for their outcomes.

use std::collections::{HashMap, VecDeque};
use std::mem::discriminant;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use user_http_actors::payload::Payload;
use user_http_actors::store::{Seq, Store, StoreError, StoreEvent, StoreHandle};

const DEADLINE: Duration = Duration::from_secs(60);

pub struct Owner {
    pub handle: StoreHandle,
    events: Receiver<StoreEvent>,
    stored: HashMap<Seq, Result<Payload, StoreError>>,
    removed: HashMap<Seq, Result<(), StoreError>>,
    flushed: HashMap<Seq, Result<(), StoreError>>,
    failure: Option<StoreError>,
    /// The changes of it that no test has asked for yet.
    changes: VecDeque<Option<StoreError>>,
}

impl Owner {
    pub fn start(store: impl Store + 'static, next_seq: Seq) -> Self {
        let (sender, events) = channel();
        let on_event = move |event| drop(sender.send(event));
        Self {
            handle: StoreHandle::start("test", Box::new(store), next_seq, on_event).expect("a thread"),
            events,
            stored: HashMap::new(),
            removed: HashMap::new(),
            flushed: HashMap::new(),
            failure: None,
            changes: VecDeque::new(),
        }
    }

    /// Takes in the next event, if one comes within `wait`.
    fn next_event(&mut self, wait: Duration) -> bool {
        match self.events.recv_timeout(wait) {
            Ok(StoreEvent { stored, removed, flushed, moved: _, failure }) => {
                self.stored.extend(stored);
                self.removed.extend(removed);
                self.flushed.extend(flushed);
                if self.failure.as_ref().map(discriminant) != failure.as_ref().map(discriminant) {
                    self.changes.push_back(failure.clone());
                }
                self.failure = failure;
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    fn wait<T>(
        &mut self,
        seq: Seq,
        outcomes: impl Fn(&mut Self) -> &mut HashMap<Seq, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        loop {
            if let Some(outcome) = outcomes(self).remove(&seq) {
                return outcome;
            }
            if let Some(error) = self.failure.clone().filter(StoreError::is_final) {
                return Err(error);
            }
            assert!(self.next_event(DEADLINE), "request {seq} has no outcome");
        }
    }

    pub fn outcome(&mut self, seq: Seq) -> Result<(Seq, Payload), StoreError> {
        self.wait(seq, |owner| &mut owner.stored).map(|payload| (seq, payload))
    }

    pub fn put(&mut self, meta: impl Into<Bytes>, body: Vec<Bytes>) -> Result<(Seq, Payload), StoreError> {
        let seq = self.handle.put(meta.into(), Payload::from_parts(body));
        self.outcome(seq)
    }

    pub fn remove_durably(&mut self, seq: Seq) -> Result<(), StoreError> {
        self.handle.remove_durably(seq);
        self.wait(seq, |owner| &mut owner.removed)
    }

    pub fn flush(&mut self) -> Result<(), StoreError> {
        let seq = self.handle.flush();
        self.wait(seq, |owner| &mut owner.flushed)
    }

    /// The next change of the store's failure, if there is one within `wait`.
    pub fn next_failure(&mut self, wait: Duration) -> Option<Option<StoreError>> {
        let end = Instant::now() + wait;
        while self.changes.is_empty() && self.next_event(end.saturating_duration_since(Instant::now())) {}
        self.changes.pop_front()
    }
}
