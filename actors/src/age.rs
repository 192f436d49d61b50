//! The ages of messages. Steps of the wall clock do not change them.

use std::collections::VecDeque;
use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::store::{Seq, now_ms};

/// A point in time: milliseconds since the machine was booted, including time asleep. Negative before the boot.
pub type Since = i64;

/// A point in time that stays valid across restarts of the process, whatever happens to the wall clock: the boot of the
/// machine, and the time since then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTime(u32, Since);

/// A wall-clock time before this comes from a clock that was not set: with a failed battery, clocks start at 1970, 1980
/// or 2000. This is 2001-01-01, in milliseconds since 1970.
const FIRST_PLAUSIBLE_MS: u64 = 978_307_200_000;

/// A clock that only goes forward. It uses the wall clock only for messages that were stored before the machine was
/// booted, or by older versions.
#[derive(Debug)]
pub struct AgeClock {
    /// Identifies the boot of the machine; `None` if the system does not report it.
    boot: Option<u32>,
    started: Since,
    started_at_ms: u64,
}

impl Default for AgeClock {
    fn default() -> Self {
        Self::start()
    }
}

impl AgeClock {
    pub fn start() -> Self {
        let boot = fs::read("/proc/sys/kernel/random/boot_id").ok().map(|id| crc32c::crc32c(&id));
        Self { boot, started: since_boot(), started_at_ms: now_ms() }
    }

    pub fn now(&self) -> Since {
        since_boot()
    }

    /// The current time, as it is stored in records.
    pub fn boot_time(&self) -> Option<BootTime> {
        self.boot.map(|boot| BootTime(boot, self.now()))
    }

    /// The time of a record that was stored before this start. A wall-clock time that is in the future or implausible
    /// comes from a clock that was wrong; it counts as the time of this start.
    pub fn since(&self, stored_at_ms: u64, boot_time: Option<BootTime>) -> Since {
        match boot_time {
            Some(BootTime(boot, since)) if Some(boot) == self.boot && since <= self.started => since,
            _ if stored_at_ms < FIRST_PLAUSIBLE_MS => self.started,
            _ => self.started.saturating_sub_unsigned(self.started_at_ms.saturating_sub(stored_at_ms)),
        }
    }
}

/// How long ago this was.
pub fn of(since: Since) -> Duration {
    Duration::from_millis(u64::try_from(since_boot() - since).unwrap_or_default())
}

fn since_boot() -> Since {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec * 1_000 + time.tv_nsec / 1_000_000
}

/// The queue is not swept while it has fewer stale entries than this.
const MIN_SWEEP: usize = 1_024;

/// The messages by age. Entries of removed messages stay until they are due or swept out.
#[derive(Debug, Default)]
pub struct ByAge(VecDeque<(Since, Seq)>);

impl ByAge {
    /// The messages that were found at the start, in any order.
    pub fn recovered(mut messages: Vec<(Since, Seq)>) -> Self {
        messages.sort_unstable();
        Self(messages.into())
    }

    /// Appends the youngest. `held` is the number of buffered messages, and `is_held` says which they are.
    pub fn push(&mut self, since: Since, seq: Seq, held: usize, is_held: impl Fn(Seq) -> bool) {
        if self.0.len() >= 2 * held + MIN_SWEEP {
            self.0.retain(|&(_, seq)| is_held(seq));
        }
        self.0.push_back((since, seq));
    }

    /// Takes the oldest message if it was stored at `due` or before. It may have been removed already.
    pub fn pop_due(&mut self, due: Since) -> Option<Seq> {
        self.0.pop_front_if(|&mut (since, _)| since <= due).map(|(_, seq)| seq)
    }

    /// Whether the oldest message was stored at `due` or before.
    pub fn is_due(&self, due: Since) -> bool {
        self.0.front().is_some_and(|&(since, _)| since <= due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_from_before_a_boot_are_those_of_the_wall_clock_unless_it_was_wrong() {
        let clock = AgeClock::start();
        let other_boot = clock.boot.map(|boot| BootTime(boot ^ 1, 0));
        for boot_time in [None, other_boot] {
            let age = |stored_at_ms| clock.started - clock.since(stored_at_ms, boot_time);
            assert_eq!(age(clock.started_at_ms - 1_000), 1_000);
            assert_eq!(age(1_000_000_000_000), clock.started_at_ms as Since - 1_000_000_000_000);
            assert_eq!(age(clock.started_at_ms + 1_000_000), 0, "the future");
            assert_eq!(age(0), 0, "1970");
            assert_eq!(age(946_684_800_000), 0, "2000");
        }
    }

    #[test]
    fn ages_within_a_boot_are_independent_of_the_wall_clock() {
        let clock = AgeClock::start();
        let stored = clock.boot_time();
        assert!(stored.is_some(), "the system tells its boots apart");
        let later = AgeClock::start();
        let ages = [0, later.started_at_ms - 90_000_000, later.started_at_ms, later.started_at_ms * 2]
            .map(|stored_at_ms| later.started - later.since(stored_at_ms, stored));
        assert!(ages[0] < 90_000 && ages.iter().all(|age| *age == ages[0]), "{ages:?}");
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
    fn entries_of_removed_messages_do_not_pile_up() {
        let mut by_age = ByAge::default();
        for seq in 0..100_000 {
            by_age.push(seq as Since, seq, 10, |held| held + 10 > seq);
            assert!(by_age.0.len() <= 2 * 10 + MIN_SWEEP);
        }
    }
}
