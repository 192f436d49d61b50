//! Zeros behind the records of a segment.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use user_http_actors::store::disk::SystemDisk;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, OpenError, Seq, Store};

use crate::store::{open, pattern, put, reopened, segments, small_segments};

const SEGMENT: u64 = 64 << 10;

fn add_zeros(path: &Path, len: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("a segment");
    file.set_len(file.metadata().expect("metadata").len() + len).expect("writable");
}

fn open_small(directory: &Path) -> Result<Vec<Seq>, OpenError> {
    let (_, found) = LogStore::open_on(Arc::new(SystemDisk), directory, SEGMENT)?;
    Ok(found.iter().map(|record| record.seq).collect())
}

/// Some full segments, with records of such sizes that the first of them does not end where a segment may.
fn full_segments(directory: &Path) -> Vec<PathBuf> {
    let (mut store, _) = LogStore::open_on(Arc::new(SystemDisk), directory, SEGMENT).expect("the store opens");
    for seq in 1..=40 {
        store.commit(&[put(seq, "meta", &pattern(seq, 10_000))], Durable::Now).expect("space");
    }
    segments(directory)
}

#[test]
fn zeros_behind_full_segments_as_version_0_1_0_left_them_are_cut_off() {
    let directory = tempfile::tempdir().expect("a directory");
    let all = full_segments(directory.path());
    let lengths = || all.iter().map(|path| fs::metadata(path).expect("a segment").len()).collect::<Vec<_>>();
    let before = lengths();
    add_zeros(&all[0], 5);
    add_zeros(&all[2], 20 << 20);
    assert_eq!(open_small(directory.path()).expect("it opens"), (1..=40).collect::<Vec<_>>());
    assert_eq!(lengths()[..4], before[..4], "they are cut off");
    assert_eq!(open_small(directory.path()).expect("it opens").len(), 40);
}

#[test]
fn zeros_where_a_record_was_are_refused_behind_a_full_segment_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = LogStore::open_on(Arc::new(SystemDisk), directory.path(), SEGMENT).expect("the store opens");
    // one commit that goes on where a segment may end
    let group: Vec<Change> = (1..=10).map(|seq| put(seq, "meta", &pattern(seq, 10_000))).collect();
    store.commit(&group, Durable::Now).expect("space");
    store.commit(&[put(11, "meta", b"next")], Durable::Now).expect("space");
    drop(store);
    let all = segments(directory.path());
    let len = fs::metadata(&all[0]).expect("a segment").len();
    let file = OpenOptions::new().write(true).open(&all[0]).expect("a segment");
    file.set_len(len - 10_036).and_then(|()| file.set_len(len)).expect("writable");
    let damaged = fs::read(&all[0]).expect("a segment");
    let error = open_small(directory.path()).expect_err("the zeros are seen").to_string();
    assert!(error.contains(&all[0].display().to_string()) && error.contains("zeros"), "{error}");
    assert_eq!(fs::read(&all[0]).expect("a segment"), damaged, "nothing is changed");
}

#[test]
fn zeros_that_no_crash_explains_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let oldest = small_segments(directory.path()).remove(0);
    let mut content = fs::read(&oldest).expect("a segment");
    content.resize(content.len() + 5, 0);
    fs::write(&oldest, &content).expect("writable");
    let error = LogStore::open(directory.path()).expect_err("the zeros are seen").to_string();
    assert!(error.contains(&oldest.display().to_string()) && error.contains("zeros"), "{error}");
}

#[test]
fn zeros_of_any_length_behind_the_newest_segment_are_cut_off_at_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    store.commit(&[put(1, "meta", b"first")], Durable::Now).expect("committed");
    drop(store);
    let path = segments(directory.path()).remove(0);
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(20 << 20)).expect("writable");
    // a start and a stop, and one with so much that another segment begins
    assert_eq!(reopened(directory.path()).len(), 1);
    assert!(fs::metadata(&path).expect("a segment").len() < 1 << 20);
    for start in 0..2 {
        let (mut store, _) = open(directory.path());
        for seq in 2..=20 {
            store.commit(&[put(start * 20 + seq, "meta", &pattern(seq, 1 << 20))], Durable::Now).expect("committed");
        }
    }
    assert_eq!(reopened(directory.path()).len(), 39);
}
