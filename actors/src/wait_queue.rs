//! Those who wait for something, first come first served, where any of them may give up without a word.

use std::collections::VecDeque;

/// Below this many nobody looks for those who have given up.
const MIN_SWEEP: usize = 16;

/// A queue of those who wait. Those who have given up are swept out when their number may have doubled, so that one
/// more costs the same however many wait.
#[derive(Debug)]
pub struct WaitQueue<T> {
    waiting: VecDeque<T>,
    sweep_at: usize,
}

impl<T> WaitQueue<T> {
    /// Appends one. `is_gone` tells who has given up.
    pub fn push(&mut self, one: T, is_gone: impl Fn(&T) -> bool) {
        if self.waiting.len() >= self.sweep_at {
            self.waiting.retain(|one| !is_gone(one));
            self.sweep_at = (2 * self.waiting.len()).max(MIN_SWEEP);
        }
        self.waiting.push_back(one);
    }

    /// Puts one back to where [`WaitQueue::pop`] has taken it from.
    pub fn push_first(&mut self, one: T) {
        self.waiting.push_front(one);
    }

    /// The one that has waited longest.
    pub fn first(&self) -> Option<&T> {
        self.waiting.front()
    }

    /// Takes out the one that has waited longest.
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
    use super::*;

    #[test]
    fn those_who_have_given_up_do_not_pile_up() {
        let mut queue = WaitQueue::default();
        for number in 0..10_000 {
            // every hundredth goes on waiting
            queue.push(number, |number| number % 100 != 0);
            assert!(queue.waiting.len() <= 2 * (number / 100 + 1) + MIN_SWEEP, "{} wait", queue.waiting.len());
        }
        assert_eq!((queue.pop(), queue.pop(), queue.first()), (Some(0), Some(100), Some(&200)));
    }
}
