//! All deadlines of an actor behind one timer.
//!
//! actix polls every timer of an actor at every event. With a timer per lease the cost of one event would grow with
//! the number of leases.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::Stream;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

/// Deadlines, as a stream of what becomes due. Clones share the same deadlines.
pub struct Deadlines<T>(Rc<RefCell<DelayQueue<T>>>);

/// A deadline that has not passed. It cannot be cloned: a deadline that has passed must not be removed, because its key
/// may belong to another one by then.
#[derive(Debug)]
pub struct Deadline(Key);

impl<T> Deadlines<T> {
    /// Makes `what` due after the time `after`, to the millisecond.
    pub fn add(&self, what: T, after: Duration) -> Deadline {
        Deadline(self.0.borrow_mut().insert(what, after))
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Removes a deadline that has not passed.
    pub fn remove(&self, deadline: Deadline) {
        self.0.borrow_mut().try_remove(&deadline.0);
    }
}

impl<T> Clone for Deadlines<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Default for Deadlines<T> {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(DelayQueue::new())))
    }
}

impl<T> std::fmt::Debug for Deadlines<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Deadlines").field(&self.0.borrow().len()).finish()
    }
}

impl<T> Stream for Deadlines<T> {
    type Item = T;

    /// Never ends: there may be another deadline.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match self.0.borrow_mut().poll_expired(cx) {
            Poll::Ready(Some(due)) => Poll::Ready(Some(due.into_inner())),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[actix::test]
    async fn what_is_due_comes_in_the_order_of_its_time_and_what_was_removed_does_not() {
        let deadlines = Deadlines::default();
        let mut due = deadlines.clone();
        assert!(futures::poll!(due.next()).is_pending());
        deadlines.add("last", Duration::from_millis(40));
        let removed = deadlines.add("removed", Duration::from_millis(10));
        deadlines.add("first", Duration::from_millis(20));
        deadlines.remove(removed);
        assert_eq!((due.next().await, due.next().await), (Some("first"), Some("last")));
        assert!(futures::poll!(due.next()).is_pending());
    }
}
