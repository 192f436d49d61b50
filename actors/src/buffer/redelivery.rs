//! Detects redeliveries of messages that are in the buffer or were removed from it recently.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::age::Since;
use crate::broker::Fingerprint;
use crate::store::{NO_RECORD, Seq};

/// How long a tombstone is kept. When a connection has ended, the broker redelivers unacknowledged messages as soon as
/// there is another one. A broker that is down for more than an hour is an incident that somebody handles.
const TOMBSTONE_TTL: Duration = Duration::from_secs(3_600);

/// How many tombstones are kept. The oldest are dropped first. They take about 100 MiB of memory.
const MAX_TOMBSTONES: usize = 1_000_000;

/// The fingerprints of the messages from a broker that are buffered, and of those that were removed within the last
/// hour.
#[derive(Debug, Default)]
pub struct RedeliveryFilter {
    buffered: HashSet<Fingerprint>,
    /// The record of the latest tombstone for each fingerprint.
    tombstones: HashMap<Fingerprint, Seq>,
    by_age: VecDeque<(Since, Fingerprint, Seq)>,
}

impl RedeliveryFilter {
    pub fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.buffered.contains(fingerprint) || self.tombstones.contains_key(fingerprint)
    }

    pub fn add_buffered(&mut self, fingerprint: Fingerprint) {
        self.buffered.insert(fingerprint);
    }

    pub fn remove_buffered(&mut self, fingerprint: &Fingerprint) {
        self.buffered.remove(fingerprint);
    }

    /// Adds a tombstone that the store is writing.
    pub fn announce_tombstone(&mut self, fingerprint: Fingerprint) {
        self.tombstones.insert(fingerprint, NO_RECORD);
    }

    /// Adds a tombstone with the number `record`. It counts even if it could not be written.
    pub fn add_tombstone(&mut self, since: Since, fingerprint: Fingerprint, record: Seq) {
        self.tombstones.insert(fingerprint, record);
        self.by_age.push_back((since, fingerprint, record));
    }

    /// Removes old tombstones, at most `limit`. Returns their records.
    pub fn remove_old(&mut self, now: Since, limit: usize) -> Vec<Seq> {
        let mut records = Vec::new();
        while records.len() < limit
            && let Some(&(since, fingerprint, record)) = self.by_age.front()
            && (now - since >= TOMBSTONE_TTL.as_millis() as Since || self.by_age.len() > MAX_TOMBSTONES)
        {
            self.by_age.pop_front();
            if self.tombstones.get(&fingerprint) == Some(&record) {
                self.tombstones.remove(&fingerprint);
            }
            records.push(record);
        }
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_message_is_remembered_for_an_hour() {
        let (first, second) = (Fingerprint::new(b"1", None), Fingerprint::new(b"2", None));
        let mut filter = RedeliveryFilter::default();
        filter.add_tombstone(1_000, first, 7);
        filter.add_tombstone(2_000, second, 8);
        // The same message was added and delivered once more.
        filter.add_tombstone(3_000, first, 9);
        assert!(filter.remove_old(3_600_999, 10).is_empty());
        assert_eq!(filter.remove_old(3_602_500, 1), [7]);
        assert_eq!(filter.remove_old(3_602_500, 10), [8]);
        assert!(filter.contains(&first) && !filter.contains(&second));
        assert_eq!(filter.remove_old(3_603_000, 10), [9]);
        assert!(!filter.contains(&first));
    }
}
