//! How old messages are, whatever happens to the wall clock.

use std::collections::VecDeque;
use std::time::Instant;

use crate::store::{Seq, now_ms};

/// When something began: milliseconds on an [`AgeClock`], negative for what began before that clock.
pub type Since = i64;

/// A clock that only goes forward. Wall-clock times count once, for what was stored before a start; a step of the wall
/// clock afterwards makes nothing older or younger.
#[derive(Debug)]
pub struct AgeClock {
    started: Instant,
    started_at_ms: u64,
}

impl AgeClock {
    pub fn start() -> Self {
        Self { started: Instant::now(), started_at_ms: now_ms() }
    }

    pub fn now(&self) -> Since {
        self.started.elapsed().as_millis() as Since
    }

    /// When something began that was stored at this wall-clock time, before this start. A time in the future comes from
    /// a clock that was wrong, and counts as now.
    pub fn since(&self, stored_at_ms: u64) -> Since {
        -(self.started_at_ms.saturating_sub(stored_at_ms) as Since)
    }
}

/// How many entries of messages that are gone are kept at least, before the queue is swept.
const MIN_SWEEP: usize = 1_024;

/// The messages by age. Entries of messages that are gone stay until they are due or swept out.
#[derive(Debug, Default)]
pub struct ByAge(VecDeque<(Since, Seq)>);

impl ByAge {
    /// The messages that were found at a start, in any order.
    pub fn recovered(mut messages: Vec<(Since, Seq)>) -> Self {
        messages.sort_unstable();
        Self(messages.into())
    }

    /// Appends the youngest. `held` counts all that are held, and `is_held` tells which.
    pub fn push(&mut self, since: Since, seq: Seq, held: usize, is_held: impl Fn(Seq) -> bool) {
        if self.0.len() >= 2 * held + MIN_SWEEP {
            self.0.retain(|&(_, seq)| is_held(seq));
        }
        self.0.push_back((since, seq));
    }

    /// Takes out the oldest, if it began at `due` or before. It may be gone already.
    pub fn pop_due(&mut self, due: Since) -> Option<Seq> {
        self.0.pop_front_if(|&mut (since, _)| since <= due).map(|(_, seq)| seq)
    }

    /// Whether the oldest began at `due` or before.
    pub fn is_due(&self, due: Since) -> bool {
        self.0.front().is_some_and(|&(since, _)| since <= due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_in_the_future_counts_as_now_and_the_past_as_what_it_is() {
        let clock = AgeClock::start();
        assert_eq!(clock.since(clock.started_at_ms + 1_000_000), 0);
        assert_eq!(clock.since(clock.started_at_ms - 1_000), -1_000);
        assert!(clock.since(0) < -1_600_000_000_000);
    }

    #[test]
    fn recovered_messages_are_due_by_age_and_not_by_number() {
        let mut by_age = ByAge::recovered(vec![(0, 1), (-500, 2), (-900, 3)]);
        by_age.push(7, 4, 4, |_| true);
        assert_eq!((by_age.pop_due(-500), by_age.pop_due(-500), by_age.pop_due(-500)), (Some(3), Some(2), None));
        assert!(by_age.is_due(0) && !by_age.is_due(-1));
        assert_eq!((by_age.pop_due(6), by_age.pop_due(6), by_age.pop_due(7)), (Some(1), None, Some(4)));
    }

    #[test]
    fn entries_of_messages_that_are_gone_do_not_pile_up() {
        let mut by_age = ByAge::default();
        for seq in 0..100_000 {
            by_age.push(seq as Since, seq, 10, |held| held + 10 > seq);
            assert!(by_age.0.len() <= 2 * 10 + MIN_SWEEP);
        }
    }
}
