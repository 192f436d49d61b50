//! What the next start knows of a store that was stopped in order.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix::System;
use user_http_actors::blend::DEFAULT_MAX_OPEN_BLEND_FILES;
use user_http_actors::codec::Format;
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, OpenError, Seq, Store};
use user_http_actors::{ActorsConfig, StartError, UserHttpActors};

use crate::store::{pattern, put, records, segments};
use crate::support::unsynced_disk::UnsyncedDisk;

const SEGMENT: u64 = 4 << 10;

fn open(directory: &Path) -> Result<(LogStore, Vec<Seq>), OpenError> {
    let (store, found) = LogStore::open_on(Arc::new(UnsyncedDisk), directory, SEGMENT)?;
    Ok((store, found.iter().map(|record| record.seq).collect()))
}

/// A store of several segments that has stopped in order, with records up to the number 20.
fn stopped(directory: &Path) -> Vec<PathBuf> {
    let (mut store, _) = open(directory).expect("a new store opens");
    for seq in 1..=20 {
        store.commit(&[put(seq, "meta", &pattern(seq, 1_000))], Durable::Now).expect("space");
    }
    store.stop().expect("a sound disk");
    let segments = segments(directory);
    assert!(segments.len() > 3, "{segments:?}");
    segments
}

fn mark(directory: &Path) -> PathBuf {
    directory.join("STOPPED")
}

fn cut(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(len)).expect("writable");
}

#[test]
fn a_missing_segment_is_refused_whichever_it_is_and_an_empty_one_gives_up_what_was_in_it() {
    for which in [0, 1, usize::MAX] {
        let directory = tempfile::tempdir().expect("a directory");
        let segments = stopped(directory.path());
        let missing = &segments[which.min(segments.len() - 1)];
        fs::remove_file(missing).expect("deletable");
        for _ in 0..2 {
            let error = open(directory.path()).expect_err("it is missed").to_string();
            assert!(error.contains(&format!("{} is missing", missing.display())), "{error}");
        }
        fs::write(missing, b"").expect("writable");
        let (mut store, found) = open(directory.path()).expect("it is given up");
        assert!((1..20).contains(&found.len()), "{found:?}");
        store.commit(&[put(21, "meta", b"next")], Durable::Now).expect("space");
        drop(store);
        assert_eq!(open(directory.path()).expect("it goes on").1.last(), Some(&21));
    }
}

#[test]
fn all_segments_together_are_missed_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let segments = stopped(directory.path());
    segments.iter().for_each(|path| fs::remove_file(path).expect("deletable"));
    let error = open(directory.path()).expect_err("they are missed").to_string();
    assert!(error.contains(&format!("{} is missing", segments[0].display())), "{error}");
}

#[test]
fn a_segment_that_is_cut_off_anywhere_is_refused_even_between_two_records() {
    let directory = tempfile::tempdir().expect("a directory");
    let segments = stopped(directory.path());
    for path in [&segments[0], &segments[1], segments.last().expect("a segment")] {
        let whole = fs::read(path).expect("a segment");
        let end = records(path).len() as u64;
        // a header of 32 bytes, a meta of 4 and a body of 1,000
        for len in (28..end).step_by(1_036).chain((28..end).step_by(97)) {
            cut(path, len);
            let error = open(directory.path()).expect_err("it is seen").to_string();
            assert!(error.contains(&path.display().to_string()) && error.contains("truncate -s 0"), "{error}");
            fs::write(path, &whole).expect("writable");
        }
    }
    assert_eq!(open(directory.path()).expect("it is sound").1.len(), 20);
}

#[test]
fn a_store_that_is_in_use_has_no_mark_and_a_later_crash_may_tear_its_last_commit() {
    let directory = tempfile::tempdir().expect("a directory");
    let segments = stopped(directory.path());
    let newest = segments.last().expect("a segment");
    assert!(mark(directory.path()).exists());
    let (mut store, _) = open(directory.path()).expect("it is sound");
    assert!(!mark(directory.path()).exists());
    store.stop().expect("a sound disk");
    assert!(!store.compact().expect("a sound disk").more);
    assert!(store.commit(&[], Durable::Now).expect("nothing to do").is_empty());
    assert!(mark(directory.path()).exists());
    store.commit(&[put(21, "meta", b"torn")], Durable::Now).expect("space");
    assert!(!mark(directory.path()).exists(), "a change after the stop");
    drop(store);
    let newest = crate::store::segments(directory.path()).pop().filter(|last| last != newest).unwrap_or(newest.clone());
    let end = records(&newest).len() as u64;
    cut(&newest, end - 1);
    assert_eq!(open(directory.path()).expect("a crash explains it").1.len(), 20);
}

#[test]
fn a_damaged_mark_is_refused_and_one_that_is_empty_or_older_than_the_log_is_ignored() {
    let directory = tempfile::tempdir().expect("a directory");
    stopped(directory.path());
    let older = fs::read(mark(directory.path())).expect("a mark");
    for damaged in [b"nonsense".as_slice(), &older[1..], &older[..older.len() - 1]] {
        fs::write(mark(directory.path()), damaged).expect("writable");
        let error = open(directory.path()).expect_err("it is seen").to_string();
        assert!(error.contains(&mark(directory.path()).display().to_string()), "{error}");
    }
    fs::write(mark(directory.path()), b"").expect("writable");
    let (mut store, _) = open(directory.path()).expect("the log is sound");
    for seq in 21..=30 {
        store.commit(&[put(seq, "meta", &pattern(seq, 1_000))], Durable::Now).expect("space");
    }
    drop(store);
    fs::write(mark(directory.path()), older).expect("writable");
    assert_eq!(open(directory.path()).expect("the log is sound").1.len(), 30);
}

#[test]
fn the_mark_of_a_later_version_is_refused_and_not_taken_for_damage() {
    let directory = tempfile::tempdir().expect("a directory");
    stopped(directory.path());
    let mut later = b"UHSSTOP2 and what this program cannot know".to_vec();
    later.extend(crc32c::crc32c(&later).to_le_bytes());
    fs::write(mark(directory.path()), later).expect("writable");
    let error = open(directory.path()).expect_err("the version is seen").to_string();
    let expected =
        format!("{} has format version 2, and this program knows version 1", mark(directory.path()).display());
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn the_only_segment_left_is_not_taken_for_one_that_a_crash_has_kept_from_being_begun() {
    let directory = tempfile::tempdir().expect("a directory");
    stopped(directory.path());
    let (mut store, found) = open(directory.path()).expect("it is sound");
    let all: Vec<Change> = found.into_iter().map(Change::Remove).collect();
    store.commit(&all, Durable::Now).expect("space");
    crate::store::compacted(&mut store);
    let next = store.next_seq();
    drop(store);
    let all = segments(directory.path());
    let only = all.last().expect("a segment");
    all[..all.len() - 1].iter().for_each(|path| fs::remove_file(path).expect("deletable"));
    let mut header = fs::read(only).expect("a segment");
    header.truncate(28);
    fs::write(only, &header).expect("writable");
    assert!(open(directory.path()).expect("it is sound").0.next_seq() >= next - 1, "numbers are not used again");
    header[17] ^= 1;
    fs::write(only, &header).expect("writable");
    let error = open(directory.path()).expect_err("it is seen").to_string();
    assert!(error.contains(&only.display().to_string()), "{error}");
}

async fn start(directory: &Path, blend_roots: Vec<PathBuf>) -> Result<UserHttpActors, StartError> {
    loop {
        let started = UserHttpActors::start(ActorsConfig {
            data_dir: Some(directory.to_owned()),
            blend_roots: blend_roots.clone(),
            private_files: Vec::new(),
            max_open_blend_files: DEFAULT_MAX_OPEN_BLEND_FILES,
            max_buffered: 1 << 20,
            buffer_ttl: Duration::from_secs(3_600),
            shared_buffer: None,
            max_outbox: 1 << 20,
            amqp: None,
            frame_ack: FrameAck::Stored,
        });
        match started {
            // the thread that has the store ends with its actor
            Err(StartError::Store(OpenError::InUse(_))) => tokio::task::yield_now().await,
            started => return started,
        }
    }
}

/// Starts the actors, gives them a message of each kind, and stops them.
async fn use_actors(directory: &Path) {
    let actors = start(directory, Vec::new()).await.expect("new stores open");
    let message = r#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "one", "BUFFER_MSG": 1}}"#;
    actors.handle_communication_interface_message(Format::Json, message).await.expect("stored");
    let frame = r#"{"USER_ID": "me", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": 1}}"#;
    actors.handle_user_message(None, Format::Json, frame, None).await.expect("stored");
    actors.drain().await.expect("a sound disk");
}

#[test]
fn after_a_drain_of_the_actors_the_next_start_misses_what_has_gone() {
    System::new().block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        use_actors(directory.path()).await;
        for store in ["buffer", "outbox"] {
            let segment = segments(&directory.path().join(store)).remove(0);
            let whole = fs::read(&segment).expect("a segment");
            cut(&segment, records(&segment).len() as u64 - 1);
            let error = start(directory.path(), Vec::new()).await.expect_err("it is seen").to_string();
            assert!(error.contains(&format!("{} is damaged", segment.display())), "{error}");
            fs::write(segment, whole).expect("writable");
        }
    });
}

/// The files of both stores, but for what a start may always change: its lock.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let stores = ["buffer", "outbox"].map(|store| directory.join(store));
    let entries = stores.iter().flat_map(|store| fs::read_dir(store).expect("readable"));
    let paths = entries.map(|entry| entry.expect("readable").path());
    let files = paths.filter(|path| path.is_file() && !path.ends_with("LOCK"));
    files.map(|path| (path.clone(), fs::read(path).expect("readable"))).collect()
}

#[test]
fn a_start_that_is_refused_for_a_record_or_a_blend_root_changes_neither_store() {
    System::new().block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        use_actors(directory.path()).await;
        let before = files(directory.path());
        for store in ["buffer", "outbox"] {
            assert!(before.contains_key(&mark(&directory.path().join(store))), "{:?}", before.keys());
        }
        let error = start(directory.path(), vec![PathBuf::new()]).await.expect_err("it has no absolute path");
        assert!(matches!(error, StartError::BlendRoot { .. }), "{error}");
        assert_eq!(files(directory.path()), before);

        for store in ["outbox", "buffer"] {
            let path = directory.path().join(store);
            let (mut log, _) = LogStore::open(&path).expect("it is sound");
            let seq = log.next_seq();
            log.commit(&[put(seq, r#"{"of": "a later version"}"#, b"")], Durable::Now).expect("space");
            log.stop().expect("a sound disk");
            drop(log);
            let before = files(directory.path());
            let error = start(directory.path(), Vec::new()).await.expect_err("the record is unknown");
            let is_refused =
                matches!(&error, StartError::Record { path: found, seq: of } if (found, of) == (&path, &seq));
            assert!(is_refused, "{error}");
            assert_eq!(files(directory.path()), before);
            let (mut log, _) = LogStore::open(&path).expect("it is sound");
            log.commit(&[Change::Remove(seq)], Durable::Now).expect("space");
            log.stop().expect("a sound disk");
        }
        let actors = start(directory.path(), Vec::new()).await.expect("nothing is unknown");
        actors.drain().await.expect("a sound disk");
    });
}
