//! What a broker has brought: held, or gone since. A redelivery must not bring it once more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::broker::Fingerprint;
use crate::buffer::age::Since;
use crate::store::{NO_RECORD, Seq};

/// How long it is remembered that a message has gone. A broker delivers again what was on the way when a connection
/// ended, as soon as there is another; a broker that is down is back within the hour, or somebody looks after it.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// How many are remembered at the most, the latest: about 100 MiB.
const MAX_REMEMBERED: usize = 1_000_000;

/// The messages of a broker that are held, and those that have gone within the last hour, each with the record that
/// keeps its memory.
#[derive(Debug, Default)]
pub struct Brought {
    held: HashSet<Fingerprint>,
    gone: HashMap<Fingerprint, Seq>,
    /// What has gone, by age.
    by_age: VecDeque<(Since, Fingerprint, Seq)>,
}

impl Brought {
    pub fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.held.contains(fingerprint) || self.gone.contains_key(fingerprint)
    }

    /// It is held from now on.
    pub fn hold(&mut self, fingerprint: Fingerprint) {
        self.held.insert(fingerprint);
    }

    /// It is not held any more.
    pub fn release(&mut self, fingerprint: &Fingerprint) {
        self.held.remove(fingerprint);
    }

    /// It goes, and the record that keeps its memory is on its way to the store.
    pub fn announce_gone(&mut self, fingerprint: Fingerprint) {
        self.gone.insert(fingerprint, NO_RECORD);
    }

    /// It went at `since`; `record` keeps its memory, or none does.
    pub fn add_gone(&mut self, since: Since, fingerprint: Fingerprint, record: Seq) {
        self.gone.insert(fingerprint, record);
        self.by_age.push_back((since, fingerprint, record));
    }

    /// Forgets what went long ago, up to `limit` of it. Returns the records that are not needed any more.
    pub fn forget_old(&mut self, now: Since, limit: usize) -> Vec<Seq> {
        let mut forgotten = Vec::new();
        while forgotten.len() < limit
            && let Some(&(since, fingerprint, record)) = self.by_age.front()
            && (now - since >= REMEMBERED.as_millis() as Since || self.by_age.len() > MAX_REMEMBERED)
        {
            self.by_age.pop_front();
            if self.gone.get(&fingerprint) == Some(&record) {
                self.gone.remove(&fingerprint);
            }
            forgotten.extend(Some(record).filter(|&record| record != NO_RECORD));
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_gone_is_remembered_for_an_hour() {
        let (first, second) = (Fingerprint::new(b"1", None), Fingerprint::new(b"2", None));
        let mut brought = Brought::default();
        brought.add_gone(1_000, first, 7);
        brought.add_gone(2_000, second, 8);
        // the same message, left and fetched once more
        brought.add_gone(3_000, first, 9);
        assert!(brought.forget_old(3_600_999, 10).is_empty());
        assert_eq!(brought.forget_old(3_602_500, 1), [7]);
        assert_eq!(brought.forget_old(3_602_500, 10), [8]);
        assert!(brought.contains(&first) && !brought.contains(&second));
        assert_eq!(brought.forget_old(3_603_000, 10), [9]);
        assert!(!brought.contains(&first));
    }
}
