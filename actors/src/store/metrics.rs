//! What a store reports about its commits.

use std::time::Duration;

use metrics::{Gauge, Histogram, SharedString, describe_gauge, describe_histogram, gauge, histogram};

use crate::metrics::STORE_COMMIT_CHANGES;

const COMMIT: &str = "user_http_server_store_commit_seconds";
const DISK_BYTES: &str = "user_http_server_store_disk_bytes";

#[derive(Debug)]
pub(super) struct StoreMetrics {
    commit: Histogram,
    changes: Histogram,
    disk_bytes: Gauge,
}

impl StoreMetrics {
    /// Of the store with this name.
    pub fn register(name: &str) -> Self {
        describe_histogram!(COMMIT, "How long the commits of a store took; those that only remove wait for no sync.");
        describe_histogram!(STORE_COMMIT_CHANGES, "How many records the commits of a store have put or removed.");
        describe_gauge!(DISK_BYTES, "What a store takes on the disk; uploads that have not been stored are not in it.");
        let name = SharedString::from(name.to_owned());
        Self {
            commit: histogram!(COMMIT, "store" => name.clone()),
            changes: histogram!(STORE_COMMIT_CHANGES, "store" => name.clone()),
            disk_bytes: gauge!(DISK_BYTES, "store" => name),
        }
    }

    /// A commit has succeeded.
    pub fn committed(&self, changes: usize, time: Duration) {
        self.changes.record(changes as f64);
        self.commit.record(time);
    }

    /// The store takes so much on the disk now.
    pub fn takes(&self, disk_bytes: u64) {
        self.disk_bytes.set(disk_bytes as f64);
    }
}
