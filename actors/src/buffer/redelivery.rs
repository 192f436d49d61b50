//! Detects messages that a broker delivers again although they are buffered, or have been.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::broker::Fingerprint;
use crate::buffer::age::Since;
use crate::store::{NO_RECORD, Seq};

/// How long a tombstone is kept. A broker redelivers what was unacknowledged when a connection ended as soon as there
/// is another connection. A broker that is down is back within the hour, or somebody looks after it.
const TOMBSTONE_TTL: Duration = Duration::from_secs(3_600);

/// How many tombstones are kept, the latest: about 100 MiB of memory.
const MAX_TOMBSTONES: usize = 1_000_000;

/// The fingerprints of the messages from a broker that are buffered, and of those that were removed within the last
/// hour.
#[derive(Debug, Default)]
pub struct RedeliveryFilter {
    buffered: HashSet<Fingerprint>,
    /// Each with the record of its latest tombstone.
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

    /// The store is writing a tombstone.
    pub fn announce_tombstone(&mut self, fingerprint: Fingerprint) {
        self.tombstones.insert(fingerprint, NO_RECORD);
    }

    /// A tombstone has the number `record`, even if it could not be written.
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
        // the same message, left and fetched once more
        filter.add_tombstone(3_000, first, 9);
        assert!(filter.remove_old(3_600_999, 10).is_empty());
        assert_eq!(filter.remove_old(3_602_500, 1), [7]);
        assert_eq!(filter.remove_old(3_602_500, 10), [8]);
        assert!(filter.contains(&first) && !filter.contains(&second));
        assert_eq!(filter.remove_old(3_603_000, 10), [9]);
        assert!(!filter.contains(&first));
    }
}
