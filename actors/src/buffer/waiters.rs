//! The waiters for buffered messages, in the order in which they came.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::buffer::lease::Request;
use crate::buffer_uuid::BufferUuid;
use crate::deadlines::{Deadline, Deadlines};

/// With fewer waiters than this, those that have given up are not searched for.
const MIN_SWEEP: usize = 16;

/// All waiters. Each one belongs to an open request, so the connections bound their number; one takes less than 2 KiB
/// and its UUID.
///
/// A waiter that gives up does not report that. When the number of waiters has doubled since the last sweep, those that
/// have given up are removed, so the cost of adding one does not depend on how many wait.
#[derive(Debug)]
pub(super) struct Waiters {
    by_uuid: HashMap<BufferUuid, Queues>,
    deadlines: Deadlines<WaitingIsOver>,
    next: WaiterId,
    len: usize,
    sweep_at: usize,
}

/// Grows with each waiter.
type WaiterId = u64;

/// The waiters of one UUID, by what they wait for.
#[derive(Debug, Default)]
struct Queues([BTreeMap<WaiterId, Waiter>; 3]);

#[derive(Debug)]
struct Waiter {
    request: Request,
    deadline: Deadline,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// The end of a delivery whose last chunk is being handed over, whatever that end is.
    Outcome,
    /// A message, leased or not.
    Message,
    /// A message that is not leased.
    Lease,
}

/// To [`BufferActor`](super::BufferActor): this waiter has waited long enough.
#[derive(Debug)]
pub(super) struct WaitingIsOver {
    uuid: BufferUuid,
    waits_for: WaitsFor,
    id: WaiterId,
}

impl Default for Waiters {
    fn default() -> Self {
        Self { by_uuid: HashMap::new(), deadlines: Deadlines::default(), next: 0, len: 0, sweep_at: MIN_SWEEP }
    }
}

impl Waiters {
    /// The waiters' deadlines. What becomes due of them is to be passed to [`Waiters::time_out`].
    pub fn deadlines(&self) -> Deadlines<WaitingIsOver> {
        self.deadlines.clone()
    }

    /// Adds a waiter behind all others.
    pub fn add(&mut self, uuid: &BufferUuid, waits_for: WaitsFor, request: Request, at_most: Duration) {
        if self.len >= self.sweep_at {
            self.sweep();
        }
        let id = self.next;
        self.next += 1;
        let deadline = self.deadlines.add(WaitingIsOver { uuid: uuid.clone(), waits_for, id }, at_most);
        let queues = self.by_uuid.entry(uuid.clone()).or_default();
        queues.of(waits_for).insert(id, Waiter { request, deadline });
        self.len += 1;
    }

    /// Removes the first waiter of this UUID that waits for one of these.
    pub fn pop(&mut self, uuid: &BufferUuid, waiting_for: &[WaitsFor]) -> Option<Request> {
        loop {
            let queues = self.by_uuid.get_mut(uuid)?;
            let first = |waits_for: &WaitsFor| Some((*queues.of(*waits_for).first_key_value()?.0, *waits_for));
            let (id, waits_for) = waiting_for.iter().filter_map(first).min_by_key(|(id, _)| *id)?;
            let Waiter { request, deadline } = self.remove(uuid, waits_for, id)?;
            self.deadlines.remove(deadline);
            if !request.is_gone() {
                return Some(request);
            }
        }
    }

    /// Removes the waiter whose deadline has passed.
    pub fn time_out(&mut self, WaitingIsOver { uuid, waits_for, id }: WaitingIsOver) -> Option<TimedOut> {
        let request = self.remove(&uuid, waits_for, id)?.request;
        (!request.is_gone()).then_some(TimedOut { uuid, waits_for, request })
    }

    /// How many there are, with those that have given up and have not been removed yet.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The UUIDs that somebody waits for.
    pub fn uuids(&self) -> Vec<BufferUuid> {
        self.by_uuid.keys().cloned().collect()
    }

    fn remove(&mut self, uuid: &BufferUuid, waits_for: WaitsFor, id: WaiterId) -> Option<Waiter> {
        let queues = self.by_uuid.get_mut(uuid)?;
        let waiter = queues.of(waits_for).remove(&id)?;
        self.len -= 1;
        if queues.are_empty() {
            self.by_uuid.remove(uuid);
        }
        Some(waiter)
    }

    /// Removes the waiters that have given up.
    fn sweep(&mut self) {
        let Self { by_uuid, deadlines, len, .. } = self;
        by_uuid.retain(|_, queues| {
            for queue in &mut queues.0 {
                for (_, waiter) in queue.extract_if(.., |_, waiter| waiter.request.is_gone()) {
                    deadlines.remove(waiter.deadline);
                    *len -= 1;
                }
            }
            !queues.are_empty()
        });
        self.sweep_at = (2 * self.len).max(MIN_SWEEP);
    }
}

/// A request that has waited long enough.
pub(super) struct TimedOut {
    pub uuid: BufferUuid,
    pub waits_for: WaitsFor,
    pub request: Request,
}

impl Queues {
    fn of(&mut self, waits_for: WaitsFor) -> &mut BTreeMap<WaiterId, Waiter> {
        &mut self.0[waits_for as usize]
    }

    fn are_empty(&self) -> bool {
        self.0.iter().all(BTreeMap::is_empty)
    }
}
