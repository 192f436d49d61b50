//! A FIFO queue of waiters, any of which may give up without notice.

use std::collections::VecDeque;

/// A queue shorter than this is not swept.
const MIN_SWEEP: usize = 16;

/// A queue of waiters. When its length has doubled since the last sweep, those that have given up are removed. So the
/// cost of adding one does not depend on how many wait.
#[derive(Debug)]
pub struct WaitQueue<T> {
    waiting: VecDeque<T>,
    sweep_at: usize,
}

impl<T> WaitQueue<T> {
    /// Appends a waiter. `is_gone` says which have given up.
    pub fn push(&mut self, one: T, is_gone: impl Fn(&T) -> bool) {
        if self.waiting.len() >= self.sweep_at {
            self.waiting.retain(|one| !is_gone(one));
            self.sweep_at = (2 * self.waiting.len()).max(MIN_SWEEP);
        }
        self.waiting.push_back(one);
    }

    /// Undoes [`WaitQueue::pop`].
    pub fn push_first(&mut self, one: T) {
        self.waiting.push_front(one);
    }

    /// The waiter that has waited longest.
    pub fn first(&self) -> Option<&T> {
        self.waiting.front()
    }

    /// Removes the waiter that has waited longest.
    pub fn pop(&mut self) -> Option<T> {
        self.waiting.pop_front()
    }
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), sweep_at: MIN_SWEEP }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn adding_a_waiter_costs_the_same_however_many_wait() {
        let (mut queue, asked) = (WaitQueue::default(), Cell::new(0));
        for number in 0..10_000 {
            queue.push(number, |_| {
                asked.set(asked.get() + 1);
                false
            });
        }
        assert!(asked.get() < 20_000, "{} were asked", asked.get());
    }

    #[test]
    fn waiters_that_have_given_up_do_not_pile_up() {
        let mut queue = WaitQueue::default();
        for number in 0..10_000 {
            // Every hundredth keeps waiting.
            queue.push(number, |number| number % 100 != 0);
            assert!(queue.waiting.len() <= 2 * (number / 100 + 1) + MIN_SWEEP, "{} wait", queue.waiting.len());
        }
        assert_eq!((queue.pop(), queue.pop(), queue.first()), (Some(0), Some(100), Some(&200)));
    }
}
