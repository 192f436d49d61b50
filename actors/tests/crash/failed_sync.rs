//! A sync has failed, and the process has ended: the next one reads from the page cache what may not be on the disk,
//! and what it syncs then is taken for written. Whatever it finds must survive a power failure all the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, OpenError, Put, Recovered, Seq, Store, StoreError};

use crate::crash::disk::{EIO, ENOSPC, Fault, FaultKind, RecordingDisk, Unsynced, rebuild};
use crate::crash::power_loss::{Expected, SEGMENT_BYTES, body};
use crate::support::in_file::in_file;

const KILLED_AT_A_SYNC: Fault = Fault { kind: FaultKind::LastSync, at: 1, error: EIO, for_good: true };

fn open(disk: &RecordingDisk, directory: &Path) -> Result<(LogStore, Vec<Recovered>), OpenError> {
    LogStore::open_on(Arc::new(disk.clone()), directory, SEGMENT_BYTES)
}

fn put(store: &LogStore, seq: Seq, len: usize, is_in_file: bool) -> Change {
    let body = vec![seq as u8; len];
    let body = match is_in_file {
        true => in_file(store.bodies(), &body).expect("a sound disk"),
        false => Payload::from_parts(vec![Bytes::from(body)]),
    };
    Change::Put(Put { seq, meta: Bytes::from_static(b"meta"), body })
}

/// Puts, removes and compacts until something fails.
fn use_store(store: &mut LogStore) -> Result<(), StoreError> {
    for seq in 1..9 {
        let len = [100, 900, 5_000][seq as usize % 3];
        store.commit(&[put(store, seq, len, seq % 4 == 1)], Durable::Now)?;
        if seq % 3 == 2 {
            store.commit(&[Change::Remove(seq - 2)], Durable::Later)?;
        }
        while store.compact()?.more {}
    }
    Ok(())
}

fn contents(recovered: &[Recovered]) -> BTreeMap<Seq, Vec<u8>> {
    recovered.iter().map(|record| (record.seq, body(record))).collect()
}

/// What a power failure at this moment leaves has everything in `kept`, and nothing that is in neither set.
fn check_power_failure(disk: &RecordingDisk, expected: &Expected, what: &str) {
    let events = disk.events();
    for unsynced in [Unsynced::Nothing, Unsynced::Some] {
        let image = tempfile::tempdir().expect("a directory");
        rebuild(&events, unsynced, &mut StdRng::seed_from_u64(events.len() as u64), image.path());
        let what = format!("{what}; power failure after {} operations, {unsynced:?} unsynced", events.len());
        expected.check(image.path(), SEGMENT_BYTES, &what);
    }
}

/// The process ends at its sync with the number `at`. `failed_starts` further ones end at their first sync. Then one
/// starts, and gives space back while it removes everything that it has found. Returns whether that sync was reached.
fn relies_on_nothing_but_the_disk(at: usize, failed_starts: usize) -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let (mut store, _) = open(&disk, directory.path()).expect("the store opens");
    disk.set_fault(Some(Fault { at, ..KILLED_AT_A_SYNC }));
    let is_killed = use_store(&mut store).is_err();
    assert_eq!(is_killed, disk.was_hit());
    drop(store);
    for _ in 0..failed_starts {
        disk.set_fault(Some(KILLED_AT_A_SYNC));
        open(&disk, directory.path()).expect_err("it cannot know what is durable");
    }
    disk.set_fault(None);

    let (mut store, found) = open(&disk, directory.path()).expect("the store opens");
    let what = format!("sync {at} failed, and then {failed_starts} starts");
    let mut expected = Expected { kept: contents(&found), ..Expected::default() };
    check_power_failure(&disk, &expected, &what);
    while !expected.kept.is_empty() {
        let removed: Vec<Seq> = expected.kept.keys().copied().take(3).collect();
        expected.kept.retain(|seq, _| !removed.contains(seq));
        let removals: Vec<Change> = removed.into_iter().map(Change::Remove).collect();
        store.commit(&removals, Durable::Now).expect("a sound disk");
        check_power_failure(&disk, &expected, &what);
        while store.compact().expect("a sound disk").more {}
        check_power_failure(&disk, &expected, &what);
    }
    is_killed
}

#[test]
fn what_a_start_finds_after_a_failed_sync_survives_a_power_failure() {
    for failed_starts in 0..2 {
        let syncs = (1..).take_while(|&at| relies_on_nothing_but_the_disk(at, failed_starts)).count();
        assert!(syncs > 12, "{syncs} syncs");
    }
}

#[test]
fn what_was_synced_is_not_written_again_by_the_next_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let (mut store, _) = open(&disk, directory.path()).expect("the store opens");
    for seq in 1..4 {
        store.commit(&[put(&store, seq, 1_000, false)], Durable::Now).expect("a sound disk");
    }
    let reserve = fs::metadata(directory.path().join("RESERVE")).expect("the reserve").len();
    let written_by_next_start = |store: LogStore| {
        drop(store);
        let before = disk.written();
        let (store, found) = open(&disk, directory.path()).expect("the store opens");
        assert_eq!(found.len(), 3);
        (store, disk.written() - before - reserve)
    };
    let (mut store, after_kill) = written_by_next_start(store);
    assert!((1_000..1_100).contains(&after_kill), "the last commit alone, not {after_kill} bytes");
    store.stop().expect("a sound disk");
    let (_, after_stop) = written_by_next_start(store);
    assert_eq!(after_stop, 0);
}

#[test]
fn a_start_on_a_full_disk_takes_the_reserve_to_write_the_last_commit_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let (mut store, _) = open(&disk, directory.path()).expect("the store opens");
    store.commit(&[put(&store, 1, 1_000, false)], Durable::Now).expect("a sound disk");
    drop(store);
    for kind in [FaultKind::Write, FaultKind::Sync] {
        disk.set_fault(Some(Fault { kind, at: 1, error: ENOSPC, for_good: false }));
        let (_, found) = open(&disk, directory.path()).expect("the store opens");
        assert!(disk.was_hit());
        let expected = Expected { kept: contents(&found), ..Expected::default() };
        assert_eq!(expected.kept.len(), 1);
        check_power_failure(&disk, &expected, &format!("{kind:?} without space"));
    }
}
