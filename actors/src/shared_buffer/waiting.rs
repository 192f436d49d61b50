//! The requests of this gateway that wait for a message, and the deliveries that are about to end.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use tokio::sync::oneshot;

use crate::buffer_uuid::BufferUuid;

/// Who waits for what. Each one belongs to an open request, so the connections bound their number.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_uuid: RefCell<HashMap<BufferUuid, Vec<Waiter>>>,
    has_ended: Cell<bool>,
}

#[derive(Debug)]
struct Waiter {
    wake: oneshot::Sender<()>,
    /// Whether a message that is being delivered will do.
    leased_too: bool,
}

impl Waiting {
    /// Resolves when something may have changed for those who wait for this message.
    pub fn wait(&self, uuid: &BufferUuid, leased_too: bool) -> oneshot::Receiver<()> {
        let (wake, woken) = oneshot::channel();
        self.by_uuid.borrow_mut().entry(uuid.clone()).or_default().push(Waiter { wake, leased_too });
        woken
    }

    /// The message is there; `free` if nobody delivers it. Wakes those whom that may help, in the order in which they
    /// came.
    pub fn wake(&self, uuid: &BufferUuid, free: bool) {
        let mut by_uuid = self.by_uuid.borrow_mut();
        let Some(waiters) = by_uuid.get_mut(uuid) else { return };
        for waiter in waiters.extract_if(.., |waiter| free || waiter.leased_too) {
            // one that has given up
            let _ = waiter.wake.send(());
        }
        if waiters.is_empty() {
            by_uuid.remove(uuid);
        }
    }

    /// From now on, nobody waits for a message.
    pub fn end(&self) {
        self.has_ended.set(true);
        for waiter in self.by_uuid.take().into_values().flatten() {
            let _ = waiter.wake.send(());
        }
    }

    /// Whether nobody waits any more.
    pub fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// The messages that somebody waits for. Forgets those who have given up.
    pub fn uuids(&self) -> Vec<BufferUuid> {
        let mut by_uuid = self.by_uuid.borrow_mut();
        by_uuid.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.wake.is_closed());
            !waiters.is_empty()
        });
        by_uuid.keys().cloned().collect()
    }

    /// How many there are, with those that have given up and are not forgotten yet.
    pub fn len(&self) -> usize {
        self.by_uuid.borrow().values().map(Vec::len).sum()
    }
}
