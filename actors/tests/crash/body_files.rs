//! Bodies in files of their own: a power failure or a full disk never leaves a record whose file is not there, and
//! files give their space back at once.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use user_http_actors::body_file::BodyDirectory;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Put, Seq, Store, StoreError};

use crate::crash::disk::{EIO, EMFILE, ENOSPC, Event, Fault, FaultKind, RecordingDisk, Unsynced, rebuild};
use crate::support::in_file::{body_files, file, in_file, range};
use crate::support::owner::Owner;
use crate::support::unsynced_disk::UnsyncedDisk;

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(30);

fn open(disk: &RecordingDisk, directory: &Path) -> LogStore {
    LogStore::open_on(Arc::new(disk.clone()), directory, 16 << 20).expect("the store opens").0
}

fn put(seq: Seq, body: Payload) -> Change {
    Change::Put(Put { seq, meta: Bytes::from_static(b"meta"), body })
}

fn once(kind: FaultKind, error: i32) -> Option<Fault> {
    Some(Fault { kind, at: 1, error, for_good: false })
}

/// What a start after a power failure finds, right after the first `count` operations.
fn found_after(disk: &RecordingDisk, count: usize, unsynced: Unsynced, random: &mut StdRng) -> Vec<Seq> {
    let image = tempfile::tempdir().expect("a directory");
    rebuild(&disk.events()[..count], unsynced, random, image.path());
    let opened = LogStore::open_on(Arc::new(UnsyncedDisk), image.path(), 16 << 20);
    let (_, found) = opened.unwrap_or_else(|error| panic!("{count} operations, {unsynced:?} unsynced: {error}"));
    for record in &found {
        record.body.read_all().expect("its body is there");
    }
    found.iter().map(|record| record.seq).collect()
}

#[test]
fn the_file_of_a_refused_record_that_a_power_failure_may_bring_back_stays_until_the_next_sync() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let mut store = open(&disk, directory.path());
    let large = || Payload::from_parts(vec![Bytes::from(vec![9; 3_000])]);
    store.commit(&[put(1, large())], Durable::Now).expect("space");
    let refused = in_file(store.bodies(), &[7; 700]).expect("space");
    // the first half of what is to be written comes before the error, with the whole of record 2
    disk.set_fault(once(FaultKind::Write, ENOSPC));
    let error = store.commit(&[put(2, refused), put(3, large())], Durable::Now).expect_err("full");
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    disk.set_fault(None);
    assert_eq!(body_files(directory.path()).len(), 1, "a record on the disk may refer to it");
    let before = disk.len();
    store.commit(&[put(4, large())], Durable::Now).expect("space");
    assert!(body_files(directory.path()).is_empty(), "its space is free");
    let mut random = StdRng::seed_from_u64(1);
    let mut came_back = 0;
    for count in before..=disk.len() {
        for _ in 0..25 {
            let found = found_after(&disk, count, Unsynced::Some, &mut random);
            assert!(found.contains(&1), "{found:?}");
            came_back += usize::from(found.contains(&2));
        }
    }
    assert!(came_back > 0, "the disk never brought the record back");
}

#[test]
fn a_removal_that_nobody_waits_for_deletes_the_file_once_it_is_synced() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let mut store = open(&disk, directory.path());
    let body = in_file(store.bodies(), &[7; 700]).expect("space");
    drop(store.commit(&[put(1, body)], Durable::Now).expect("space"));
    store.commit(&[Change::Remove(1)], Durable::Later).expect("space");
    assert_eq!(body_files(directory.path()).len(), 1, "a power failure may bring the record back");
    // the sync fails, and the removal is cut off
    disk.set_fault(once(FaultKind::Sync, ENOSPC));
    store.commit(&[], Durable::Now).expect_err("full");
    disk.set_fault(None);
    assert_eq!(body_files(directory.path()).len(), 1);
    let mut random = StdRng::seed_from_u64(1);
    assert_eq!(found_after(&disk, disk.len(), Unsynced::Nothing, &mut random), [1]);
    store.commit(&[put(2, Payload::empty())], Durable::Now).expect("space");
    assert!(body_files(directory.path()).is_empty());
    for count in 0..=disk.len() {
        found_after(&disk, count, Unsynced::Some, &mut random);
    }
}

#[test]
fn the_directory_of_body_files_is_synced_once_for_a_commit_and_only_for_new_names() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let mut store = open(&disk, directory.path());
    let syncs = |disk: &RecordingDisk| {
        let of_bodies = |event: &&Event| matches!(event, Event::SyncDirectory(name) if name == "bodies");
        disk.events().iter().filter(of_bodies).count()
    };
    let puts: Vec<Change> = (1..=5).map(|seq| put(seq, in_file(store.bodies(), &[7; 700]).expect("space"))).collect();
    assert_eq!(syncs(&disk), 0);
    store.commit(&puts, Durable::Now).expect("space");
    assert_eq!(syncs(&disk), 1);
    store.commit(&[put(6, Payload::empty()), Change::Remove(1)], Durable::Now).expect("space");
    assert_eq!(syncs(&disk), 1);
}

#[test]
fn a_file_whose_sync_has_failed_is_never_taken_for_durable() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let mut store = open(&disk, directory.path());
    let file = file(store.bodies(), &[7; 700]).expect("space");
    disk.set_fault(once(FaultKind::Sync, ENOSPC));
    file.sync().expect_err("full");
    disk.set_fault(None);
    file.sync().expect_err("the kernel may have dropped what it could not write");
    let body = || [range(&file, 0, 700)].into_iter().collect();
    let error = store.commit(&[put(1, body())], Durable::Now).expect_err("refused");
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    store.commit(&[put(2, Payload::empty())], Durable::Now).expect("others are accepted");
}

#[test]
fn without_a_descriptor_for_the_sync_of_a_file_a_put_is_refused_and_another_one_succeeds() {
    for kind in [FaultKind::Sync, FaultKind::Directory] {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = RecordingDisk::default();
        let mut store = open(&disk, directory.path());
        let body = |store: &LogStore| in_file(store.bodies(), &[7; 700]).expect("space");
        let refused = body(&store);
        disk.set_fault(once(kind, EMFILE));
        let error = store.commit(&[put(1, refused)], Durable::Now).expect_err("refused");
        assert!(matches!(error, StoreError::Busy(_)), "{error}");
        assert!(body_files(directory.path()).is_empty(), "no record refers to it");
        store.commit(&[put(2, body(&store))], Durable::Now).expect("there are descriptors again");
    }
}

#[test]
fn a_sync_of_a_file_that_fails_ends_the_store_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let mut store = open(&disk, directory.path());
    let body = |store: &LogStore| in_file(store.bodies(), &[7; 700]).expect("space");
    store.commit(&[put(1, body(&store))], Durable::Now).expect("space");
    let second = body(&store);
    disk.set_fault(once(FaultKind::Sync, EIO));
    let error = store.commit(&[put(2, second)], Durable::Now).expect_err("the disk has failed");
    assert!(error.is_final(), "{error}");
    drop(store);
    disk.set_fault(None);
    let mut random = StdRng::seed_from_u64(1);
    assert_eq!(found_after(&disk, disk.len(), Unsynced::Nothing, &mut random), [1]);
}

/// Puts a frame of 1 MiB whose body is in a file.
fn frame(owner: &mut Owner, bodies: &BodyDirectory) -> Result<Seq, StoreError> {
    let body = in_file(bodies, &vec![7; MIB]).map_err(|error| StoreError::NoSpace(error.to_string()))?;
    let seq = owner.handle.put(Bytes::from_static(b"meta"), body);
    owner.outcome(seq).map(|(seq, _)| seq)
}

#[test]
fn deleted_frames_in_files_give_the_space_of_a_full_disk_back_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    disk.set_capacity(12 * MIB as u64);
    let store = open(&disk, directory.path());
    let bodies = store.bodies().clone();
    let mut owner = Owner::start(store, 1);
    for round in 0..5 {
        let started = Instant::now();
        let mut held = Vec::new();
        while held.len() < 9 {
            match frame(&mut owner, &bodies) {
                Ok(seq) => held.push(seq),
                Err(refused) => assert!(started.elapsed() < DEADLINE, "round {round}, {}: {refused}", held.len()),
            }
        }
        while let Ok(seq) = frame(&mut owner, &bodies) {
            held.push(seq);
        }
        // every second one, so that no segment is free
        let (kept, removed): (Vec<Seq>, Vec<Seq>) = held.into_iter().partition(|seq| seq % 2 == 0);
        let before = disk.used();
        removed.iter().for_each(|&seq| owner.handle.remove(seq));
        owner.flush().expect("there is the reserve");
        let freed = before - disk.used().min(before);
        assert!(freed >= (removed.len() * MIB) as u64 - 4_096, "round {round}: {freed} bytes for {removed:?}");
        kept.into_iter().for_each(|seq| owner.handle.remove(seq));
        owner.flush().expect("there is the reserve");
    }
    assert!(body_files(directory.path()).is_empty());
}

#[test]
fn a_record_for_which_a_full_disk_has_no_space_keeps_its_file_until_the_store_is_probed() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let store = open(&disk, directory.path());
    let bodies = store.bodies().clone();
    let mut owner = Owner::start(store, 1);
    owner.put(&b"meta"[..], vec![Bytes::from(vec![7; 200_000])]).expect("space");
    let body = in_file(&bodies, &vec![7; MIB]).expect("space");
    // less than the record needs
    disk.set_capacity(disk.used() + 100);
    let seq = owner.handle.put(Bytes::from_static(b"meta"), body);
    let error = owner.outcome(seq).expect_err("full");
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    assert!(owner.next_failure(DEADLINE).expect("it is reported").is_some());
    // with the space of its file another one would fit
    assert!(owner.next_failure(DEADLINE).expect("it is reported").is_none(), "there is space");
    assert!(body_files(directory.path()).is_empty());
    disk.set_capacity(disk.used() + 2 * MIB as u64);
    frame(&mut owner, &bodies).expect("space");
}
