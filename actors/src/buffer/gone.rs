//! What has come from a broker and has gone since: a redelivery must not bring it back.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::broker::Fingerprint;
use crate::store::{NO_RECORD, Seq};

/// How long it is remembered that a message has gone. A broker delivers again what was on the way when a connection ended,
/// as soon as there is another; a broker that is down is back within the hour, or somebody looks after it.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// How many are remembered at the most, the latest: about 100 MiB.
const MAX_REMEMBERED: usize = 1_000_000;

/// The messages that have gone within the last hour, each with the record that keeps its memory.
#[derive(Debug, Default)]
pub struct Gone {
    records: HashMap<Fingerprint, Seq>,
    /// By age, with the time when it went in milliseconds since 1970.
    by_age: VecDeque<(u64, Fingerprint, Seq)>,
}

impl Gone {
    pub fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.records.contains_key(fingerprint)
    }

    /// It goes, and the record that keeps its memory is on its way to the store.
    pub fn announce(&mut self, fingerprint: Fingerprint) {
        self.records.insert(fingerprint, NO_RECORD);
    }

    /// It went at `gone_at_ms`; `record` keeps its memory, or none does.
    pub fn add(&mut self, gone_at_ms: u64, fingerprint: Fingerprint, record: Seq) {
        self.records.insert(fingerprint, record);
        self.by_age.push_back((gone_at_ms, fingerprint, record));
    }

    /// Forgets what went long ago. Returns the records that are not needed any more.
    pub fn forget_old(&mut self, now_ms: u64) -> Vec<Seq> {
        let mut forgotten = Vec::new();
        while let Some(&(gone_at_ms, fingerprint, record)) = self.by_age.front()
            && (now_ms.saturating_sub(gone_at_ms) >= REMEMBERED.as_millis() as u64
                || self.by_age.len() > MAX_REMEMBERED)
        {
            self.by_age.pop_front();
            if self.records.get(&fingerprint) == Some(&record) {
                self.records.remove(&fingerprint);
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
        let mut gone = Gone::default();
        gone.add(1_000, first, 7);
        gone.add(2_000, second, 8);
        // the same message, left and fetched once more
        gone.add(3_000, first, 9);
        assert!(gone.forget_old(3_600_999).is_empty());
        assert_eq!(gone.forget_old(3_602_500), [7, 8]);
        assert!(gone.contains(&first) && !gone.contains(&second));
        assert_eq!(gone.forget_old(3_603_000), [9]);
        assert!(!gone.contains(&first));
    }
}
