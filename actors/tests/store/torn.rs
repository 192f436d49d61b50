//! How long it takes to find out that a crash has torn a record, whatever bytes its sender has chosen.

use std::fs;
use std::time::{Duration, Instant};

use user_http_actors::store::{Durable, Store};

use crate::store::{open, put, reopened, segments};

/// What looks like the header of a commit at each 16th byte, with a meta of `meta_len` bytes. One lies in the free
/// fields of the one before.
fn headers(len: usize, meta_len: u32) -> Vec<u8> {
    let period = [meta_len.to_le_bytes(), 257_u32.to_le_bytes(), 7_u32.to_le_bytes(), [0; 4]].concat();
    period.into_iter().cycle().take(len).collect()
}

/// How long it takes to open a store whose last record, with this body, a crash has torn.
fn time_to_cut_off(body: &[u8]) -> Duration {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    store.commit(&[put(1, "kept", b"sound")], Durable::Now).expect("committed");
    let path = segments(directory.path()).remove(0);
    store.commit(&[put(2, "torn", body)], Durable::Now).expect("committed");
    drop(store);
    let whole = fs::metadata(&path).expect("a segment").len();
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(whole - 1)).expect("writable");
    let started = Instant::now();
    assert_eq!(reopened(directory.path()).into_keys().collect::<Vec<_>>(), [1]);
    started.elapsed()
}

#[test]
fn a_torn_body_that_is_full_of_headers_is_cut_off_as_fast_whatever_lengths_they_tell() {
    let mebibytes: usize = std::env::var("TEST_TORN_MIB").map_or(4, |count| count.parse().expect("a number"));
    let short = time_to_cut_off(&headers(mebibytes << 20, 0));
    let long = time_to_cut_off(&headers(mebibytes << 20, 64 << 10));
    println!("{mebibytes} MiB took {long:?}, and {short:?} with headers that announce nothing after them");
    // with a checksum for each it would be a thousand times as long
    assert!(long < 20 * short + Duration::from_millis(500), "{long:?} against {short:?}");
}
