//! What a server would not start on is no backup: the error names the file of the data directory.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use user_http_actors::backup::BackupError;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Put, Store};

use crate::backup::history::{meta, numbers, pattern};
use crate::backup::{back_up_all, folder, opened, put, records, segments};
use crate::support::in_file::{body_files, in_file};

/// The error of a backup that must fail, and that leaves nothing.
#[track_caller]
fn refusal(folder: &Path) -> String {
    let error = back_up_all(&folder.join("data"), &folder.join("backup")).expect_err("no server starts on it");
    let left: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, ["data"], "{error}");
    assert!(matches!(error, BackupError::Copy(_)), "{error:?}");
    error.to_string()
}

/// A store with some records of 100 bytes in one segment.
fn small_store(folder: &Path) -> LogStore {
    let (mut store, _) = LogStore::open(&folder.join("data/buffer")).expect("a new store");
    put(&mut store, 1..20, 100);
    store
}

#[test]
fn damage_in_the_middle_of_the_newest_segment_is_no_torn_tail() {
    let folder = folder();
    let store = small_store(folder.path());
    let segment = segments(&folder.path().join("data/buffer")).remove(0);
    let file = fs::OpenOptions::new().write(true).open(&segment).expect("a segment");
    file.write_all_at(b"damage", 1_000).expect("writable");
    let error = refusal(folder.path());
    assert!(error.starts_with(&format!("{} is damaged at byte ", segment.display())), "{error}");
    drop(store);
}

#[test]
fn a_record_that_is_being_written_is_cut_off_and_those_before_it_are_kept() {
    let folder = folder();
    let store = small_store(folder.path());
    let segment = segments(&folder.path().join("data/buffer")).remove(0);
    let content = records(&segment);
    let file = fs::OpenOptions::new().write(true).open(&segment).expect("a segment");
    // the beginning of another record
    file.write_all_at(&content[28..60], content.len() as u64).expect("writable");
    back_up_all(&folder.path().join("data"), &folder.path().join("backup")).expect("what a crash would leave");
    assert_eq!(numbers(&opened(&folder.path().join("backup")).1), (1..20).collect());
    drop(store);
}

#[test]
fn a_missing_segment_is_named() {
    let folder = folder();
    let directory = folder.path().join("data/buffer");
    let (mut store, _) = LogStore::open(&directory).expect("a new store");
    put(&mut store, 1..8, 10 << 20);
    let segments = segments(&directory);
    assert!(segments.len() > 3, "{segments:?}");
    fs::remove_file(&segments[1]).expect("a segment");
    let error = refusal(folder.path());
    assert!(error.starts_with(&format!("{} is missing", segments[1].display())), "{error}");
    drop(store);
}

#[test]
fn what_is_missing_at_the_end_of_a_stopped_store_is_named_and_its_copy_would_miss_it_too() {
    let folder = folder();
    let directory = folder.path().join("data/buffer");
    let mut store = small_store(folder.path());
    store.stop().expect("a sound disk");
    drop(store);
    let segment = segments(&directory).remove(0);
    let whole = fs::read(&segment).expect("a segment");
    for len in [28, records(&segment).len() - 1] {
        fs::write(&segment, &whole[..len]).expect("writable");
        let error = refusal(folder.path());
        assert!(error.starts_with(&format!("{} is damaged at byte ", segment.display())), "{error}");
    }
    fs::remove_file(&segment).expect("a segment");
    let error = refusal(folder.path());
    assert!(error.starts_with(&format!("{} is missing", segment.display())), "{error}");

    fs::write(&segment, &whole).expect("writable");
    back_up_all(&folder.path().join("data"), &folder.path().join("backup")).expect("a sound store");
    let copy = folder.path().join("backup/buffer");
    let copied = segments(&copy).remove(0);
    let whole = fs::read(&copied).expect("a segment");
    fs::remove_file(&copied).expect("a segment");
    let error = LogStore::open(&copy).expect_err("it is missed").to_string();
    assert!(error.starts_with(&format!("{} is missing", copied.display())), "{error}");
    fs::write(&copied, &whole).expect("writable");
    assert_eq!(numbers(&opened(&folder.path().join("backup")).1), (1..20).collect());
}

#[test]
fn damage_of_an_older_segment_is_found() {
    let folder = folder();
    let directory = folder.path().join("data/buffer");
    let (mut store, _) = LogStore::open(&directory).expect("a new store");
    put(&mut store, 1..5, 10 << 20);
    let segment = segments(&directory).remove(0);
    let file = fs::OpenOptions::new().write(true).open(&segment).expect("a segment");
    file.write_all_at(b"damage", 9 << 20).expect("writable");
    let error = refusal(folder.path());
    assert!(error.starts_with(&format!("{} is damaged at byte ", segment.display())), "{error}");
    drop(store);
}

#[test]
fn a_body_file_that_is_missing_or_changed_is_named() {
    let folder = folder();
    let directory = folder.path().join("data/buffer");
    let (mut store, _) = LogStore::open(&directory).expect("a new store");
    let body = in_file(store.bodies(), &pattern(1, 10_000)).expect("space");
    let put = Change::Put(Put { seq: 1, meta: meta(1).into(), body });
    store.commit(&[put], Durable::Now).expect("space");
    let file = body_files(&directory).remove(0);
    let content = fs::read(&file).expect("a body");
    let mut changed = content.clone();
    changed[5_000] ^= 1;
    for damage in [&content[..9_000], &changed] {
        fs::write(&file, damage).expect("writable");
        let error = refusal(folder.path());
        assert!(error.starts_with(&format!("{} is damaged at byte ", file.display())), "{error}");
    }
    fs::remove_file(&file).expect("a file");
    let error = refusal(folder.path());
    assert!(error.starts_with(&format!("{} is missing", file.display())), "{error}");
    // an operator who gives the message up
    fs::write(&file, "").expect("writable");
    back_up_all(&folder.path().join("data"), &folder.path().join("backup")).expect("a server starts on it");
    assert_eq!(opened(&folder.path().join("backup")).1.len(), 0);
    drop(store);
}
