//! The deliveries in progress, and how many bytes all deliveries have sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::status::lock;

/// How many characters of an id are kept. UUIDs have 36 and digests 64, but the communication interface may choose
/// names of 4,096 bytes.
const MAX_ID_CHARS: usize = 200;

/// What a delivery sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A buffered message, or a range of one.
    Message,
    /// A .blend file, or a range of one.
    Blend,
}

/// The deliveries in progress. Each connection has at most one, so their number has the same bound.
///
/// A delivery locks the list when it starts and when it ends. In between, it only adds to its own counter.
#[derive(Clone, Debug, Default)]
pub struct Deliveries(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// In the order of their starts.
    entries: Mutex<Entries>,
    sent_total: AtomicU64,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    by_number: BTreeMap<u64, Arc<Entry>>,
}

#[derive(Debug)]
struct Entry {
    what: Sent,
    id: String,
    total: u64,
    client: Option<SocketAddr>,
    started: SystemTime,
    sent: AtomicU64,
}

/// A delivery at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub what: Sent,
    /// The buffer UUID of the message, or the SHA-256 of the file; truncated if it is long.
    pub id: String,
    /// Bytes that the socket has accepted.
    pub sent: u64,
    /// Bytes of this answer.
    pub total: u64,
    pub client: Option<SocketAddr>,
    pub started: SystemTime,
}

impl Deliveries {
    /// A delivery of `total` bytes begins. It ends when the returned value is dropped.
    pub fn begin(&self, what: Sent, id: &str, total: u64, client: Option<SocketAddr>) -> InProgress {
        let id = id.chars().take(MAX_ID_CHARS).collect();
        let started = SystemTime::now();
        let entry = Arc::new(Entry { what, id, total, client, started, sent: AtomicU64::new(0) });
        let mut entries = lock(&self.0.entries);
        let number = entries.next;
        entries.next += 1;
        entries.by_number.insert(number, Arc::clone(&entry));
        InProgress { shared: Arc::clone(&self.0), number, entry }
    }

    /// The number of all deliveries in progress, and the oldest ones, at most `limit`.
    pub fn oldest(&self, limit: usize) -> (usize, Vec<Delivery>) {
        let (count, entries) = {
            let entries = lock(&self.0.entries);
            let oldest: Vec<_> = entries.by_number.values().take(limit).cloned().collect();
            (entries.by_number.len(), oldest)
        };
        let deliveries = entries.iter().map(|entry| Delivery {
            what: entry.what,
            id: entry.id.clone(),
            sent: entry.sent.load(Ordering::Relaxed),
            total: entry.total,
            client: entry.client,
            started: entry.started,
        });
        (count, deliveries.collect())
    }

    /// The bytes that all deliveries have sent since the start.
    pub fn sent_total(&self) -> u64 {
        self.0.sent_total.load(Ordering::Relaxed)
    }
}

/// A delivery in progress. Dropping it removes it from the list.
#[derive(Debug)]
pub struct InProgress {
    shared: Arc<Shared>,
    number: u64,
    entry: Arc<Entry>,
}

impl InProgress {
    /// The socket has accepted this many more bytes.
    pub fn add(&self, bytes: u64) {
        self.entry.sent.fetch_add(bytes, Ordering::Relaxed);
        self.shared.sent_total.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        lock(&self.shared.entries).by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_listed_with_what_it_has_sent_until_it_is_dropped() {
        let deliveries = Deliveries::default();
        let client = Some(SocketAddr::from(([127, 0, 0, 1], 7)));
        let first = deliveries.begin(Sent::Message, "first", 100, client);
        let second = deliveries.begin(Sent::Blend, &"ä".repeat(5_000), 10, None);
        first.add(40);
        first.add(2);
        let (count, listed) = deliveries.oldest(10);
        assert_eq!(count, 2);
        let Delivery { what, ref id, sent, total, client: of, .. } = listed[0];
        assert_eq!((what, id.as_str(), sent, total, of), (Sent::Message, "first", 42, 100, client));
        assert_eq!(listed[1].id.chars().count(), MAX_ID_CHARS);
        let (count, listed) = deliveries.oldest(1);
        assert_eq!((count, listed.len(), listed[0].id.as_str()), (2, 1, "first"), "the oldest one");
        drop(first);
        second.add(1);
        assert_eq!((deliveries.oldest(10).0, deliveries.sent_total()), (1, 43));
        drop(second);
        assert_eq!((deliveries.oldest(10), deliveries.sent_total()), ((0, Vec::new()), 43));
    }
}
