//! A full disk: what is dead gives its space back, and nothing is written again and again in vain.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, OpenError, Put, Seq, Store, StoreError};

use crate::crash::disk::{EIO, Event, Fault, FaultKind, RecordingDisk};
use crate::support::owner::Owner;

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(30);

fn open(disk: &RecordingDisk, directory: &std::path::Path, segment_bytes: u64) -> LogStore {
    recover(disk, directory, segment_bytes).0
}

/// Opens a store as soon as the thread that has it open ends; with the numbers of its records.
fn recover(disk: &RecordingDisk, directory: &std::path::Path, segment_bytes: u64) -> (LogStore, Vec<Seq>) {
    loop {
        match LogStore::open_on(Arc::new(disk.clone()), directory, segment_bytes) {
            Ok((store, recovered)) => return (store, recovered.iter().map(|record| record.seq).collect()),
            Err(OpenError::InUse(_)) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn start(store: LogStore) -> Owner {
    let next_seq = store.next_seq();
    Owner::start(store, next_seq)
}

fn frame(owner: &mut Owner) -> Result<Seq, StoreError> {
    owner.put(&b"meta"[..], vec![Bytes::from(vec![7; MIB])]).map(|(seq, _)| seq)
}

#[test]
fn a_disk_that_dead_messages_fill_is_free_again_and_the_state_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    disk.set_capacity(12 * MIB as u64 + (300 << 10));
    let mut owner = start(open(&disk, directory.path(), 16 << 20));
    for _ in 0..3 {
        let held: Vec<Seq> = std::iter::from_fn(|| frame(&mut owner).ok()).collect();
        assert!(held.len() >= 10, "{} frames fit", held.len());
        let full = owner.next_failure(DEADLINE).expect("it is reported");
        assert!(matches!(full, Some(StoreError::NoSpace(_))), "{full:?}");
        // While it is full, it stays in that state, even though small changes still fit.
        assert!(owner.next_failure(Duration::from_millis(2_500)).is_none());
        held.into_iter().for_each(|seq| owner.handle.remove(seq));
        owner.flush().expect("there is the reserve");
        let free = owner.next_failure(DEADLINE).expect("it is reported");
        assert!(free.is_none(), "{free:?}");
    }
}

#[test]
fn a_disk_that_dead_messages_fill_is_free_again_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let mut store = open(&disk, directory.path(), 16 << 20);
    let body = || vec![Bytes::from(vec![7; MIB])];
    let put = |seq| Change::Put(Put { seq, meta: Bytes::from_static(b"meta"), body: Payload::from_parts(body()) });
    for seq in 1..=12 {
        store.commit(&[put(seq)], Durable::Now).expect("committed");
    }
    store.commit(&(1..=12).map(Change::Remove).collect::<Vec<_>>(), Durable::Now).expect("committed");
    drop(store);
    disk.set_capacity(disk.used());
    let mut owner = start(open(&disk, directory.path(), 16 << 20));
    // The first one finds out that the disk is full.
    let started = Instant::now();
    let taken = loop {
        match frame(&mut owner) {
            Ok(seq) => break seq,
            Err(refused) => assert!(started.elapsed() < DEADLINE, "{refused}"),
        }
    };
    assert!(taken > 12, "number {taken} is used again");
}

#[test]
fn a_start_on_a_full_disk_is_reported_before_anything_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let mut owner = start(open(&disk, directory.path(), 16 << 20));
    owner.put(&b"meta"[..], vec![Bytes::from_static(b"small")]).expect("space");
    assert!(owner.next_failure(Duration::ZERO).is_none(), "a store that has space has nothing to report");
    drop(owner);
    disk.set_capacity(disk.used());
    let mut owner = start(open(&disk, directory.path(), 16 << 20));
    let full = owner.next_failure(DEADLINE).expect("it is reported");
    assert!(matches!(full, Some(StoreError::NoSpace(_))), "{full:?}");
    assert!(owner.next_failure(Duration::from_millis(1_500)).is_none(), "it stays full");
    disk.set_capacity(disk.used() + 4 * MIB as u64);
    let free = owner.next_failure(DEADLINE).expect("it is reported");
    assert!(free.is_none(), "{free:?}");
}

#[test]
fn frames_that_fill_a_small_disk_and_are_deleted_leave_their_space_to_others_through_one_kill_after_another() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    disk.set_capacity(12 * MIB as u64);
    for round in 0..5 {
        let mut owner = start(open(&disk, directory.path(), 4 * MIB as u64));
        let mut held = Vec::new();
        let started = Instant::now();
        while held.len() < 6 {
            match frame(&mut owner) {
                Ok(seq) => held.push(seq),
                Err(refused) => {
                    assert!(started.elapsed() < DEADLINE, "round {round}, {} frames: {refused}", held.len())
                }
            }
        }
        while let Ok(seq) = frame(&mut owner) {
            held.push(seq);
        }
        if round % 2 == 0 {
            // the kill comes while they are deleted
            let at = 2 + 3 * round;
            disk.set_fault(Some(Fault { kind: FaultKind::Any, at, error: EIO, for_good: true }));
        }
        for seq in held {
            let removed = owner.remove_durably(seq);
            assert!(removed.is_ok() || disk.was_hit(), "round {round}: {removed:?}");
        }
        drop(owner);
        // what the kill has left is deleted at the next start
        disk.set_fault(None);
        let mut owner = start(open(&disk, directory.path(), 4 * MIB as u64));
        for seq in 1..=1_000 {
            owner.handle.remove(seq);
        }
        owner.flush().expect("there is the reserve");
    }
}

#[test]
fn a_record_for_whose_move_there_is_no_space_is_not_tried_again_and_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let mut owner = start(open(&disk, directory.path(), MIB as u64));
    let put = |owner: &mut Owner, len: usize| owner.put(&b"meta"[..], vec![Bytes::from(vec![7; len])]);
    let large = put(&mut owner, 8 * MIB).expect("committed").0;
    let mut small: Vec<Seq> = (0..2_000).map(|_| put(&mut owner, 10_000).expect("committed").0).collect();
    disk.set_capacity(disk.used() + 4 * MIB as u64);
    while put(&mut owner, MIB).is_ok() {}
    let before = disk.written();
    // each of them leaves the log more too large than it is
    for seq in small.drain(..1_900) {
        owner.handle.remove(seq);
        owner.flush().expect("there is the reserve");
    }
    let written = disk.written() - before;
    println!("{written} bytes were written");
    assert!(written < 20 * MIB as u64, "{written} bytes were written for 1,900 removals");
    // As soon as it is removed, all of the space is free again.
    owner.handle.remove(large);
    owner.flush().expect("there is the reserve");
    drop(owner);
    let mut store = open(&disk, directory.path(), MIB as u64);
    while store.compact().expect("committed").more {}
    assert!(disk.used() < 16 * MIB as u64, "{} bytes are left", disk.used());
}

/// A store on a disk that a large record at its start and `others` behind it fill.
fn full_behind_a_large_record(disk: &RecordingDisk, owner: &mut Owner) -> (Seq, Vec<Seq>) {
    let large = owner.put(&b"meta"[..], vec![Bytes::from(vec![7; 8 * MIB])]);
    disk.set_capacity(disk.used() + 8 * MIB as u64);
    (large.expect("space").0, std::iter::from_fn(|| frame(owner).ok()).collect())
}

#[test]
fn a_large_record_at_the_start_of_a_full_disk_does_not_keep_the_space_of_dead_ones_behind_it() {
    for is_one_kept in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = RecordingDisk::default();
        let mut owner = start(open(&disk, directory.path(), 2 * MIB as u64));
        let (large, mut others) = full_behind_a_large_record(&disk, &mut owner);
        let mut alive = vec![large];
        for round in 0..3 {
            if is_one_kept && round == 0 {
                // it lives in a segment whose other records are dead
                alive.push(others.remove(1));
            }
            let removed = others.len();
            others.drain(..).for_each(|seq| owner.handle.remove(seq));
            owner.flush().expect("there is the reserve");
            let started = Instant::now();
            // dead records may keep a fifth of the disk beside live ones
            while others.len() + 2 < removed {
                match frame(&mut owner) {
                    Ok(seq) => others.push(seq),
                    Err(refused) => {
                        let (put, used) = (others.len(), disk.used());
                        assert!(
                            started.elapsed() < DEADLINE,
                            "round {round}, {put} of {removed}, {used} used: {refused}"
                        );
                    }
                }
            }
            while let Ok(seq) = frame(&mut owner) {
                others.push(seq);
            }
        }
        drop(owner);
        alive.append(&mut others);
        let (_, recovered) = recover(&disk, directory.path(), 2 * MIB as u64);
        assert_eq!(recovered, alive, "kept: {is_one_kept}");
    }
}

#[test]
fn compaction_on_a_full_disk_ends_although_removals_have_to_stay() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let mut store = open(&disk, directory.path(), MIB as u64);
    let put = |seq, len| {
        Change::Put(Put {
            seq,
            meta: Bytes::from_static(b"meta"),
            body: Payload::from_parts(vec![Bytes::from(vec![7; len])]),
        })
    };
    // the large record keeps its segment, and so the removals of the small ones beside it
    let first: Vec<Change> = (1..=5_000).map(|seq| put(seq, 600)).chain([put(5_001, 8 * MIB)]).collect();
    store.commit(&first, Durable::Now).expect("space");
    disk.set_capacity(disk.used() + 4 * MIB as u64);
    let mut next = 5_002;
    while store.commit(&[put(next, MIB)], Durable::Now).is_ok() {
        next += 1;
    }
    let removals: Vec<Change> = (1..=5_000).chain(5_002..next).map(Change::Remove).collect();
    store.commit(&removals, Durable::Now).expect("there is the reserve");
    let before = disk.written();
    let steps = (0..1_000).take_while(|_| store.compact().expect("no failure that lasts").more).count();
    let written = disk.written() - before;
    assert!(steps < 1_000 && written < 40 * MIB as u64, "{steps} steps, {written} bytes");
    drop(store);
    let (_, recovered) = recover(&disk, directory.path(), MIB as u64);
    assert_eq!(recovered, [5_001]);
}

#[test]
fn the_reserve_takes_its_space_on_a_file_system_that_compresses_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    open(&disk, directory.path(), 16 << 20);
    let events = disk.events();
    let reserve = events.iter().find_map(|event| match event {
        Event::Create(name, file) if name == "RESERVE" => Some(*file),
        _ => None,
    });
    let bytes = events.iter().find_map(|event| match event {
        Event::Write { file, bytes, .. } if Some(*file) == reserve => Some(bytes),
        _ => None,
    });
    let words: BTreeSet<&[u8]> = bytes.expect("it is written").chunks(8).collect();
    assert!(words.len() > 30_000, "{} different words of 32,768", words.len());
}
