//! Space comes back in steps between commits, and few files are open.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use user_http_actors::store::disk::SystemDisk;
use user_http_actors::store::files::MAX_OPEN_FILES;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Seq, Store};

use crate::store::{body, compacted, pattern, put, reopened, segments};

const SEGMENT: u64 = 64 << 10;

fn open_small(directory: &Path) -> LogStore {
    LogStore::open_on(Arc::new(SystemDisk), directory, SEGMENT).expect("the store opens").0
}

fn commit(store: &mut LogStore, changes: &[Change]) {
    store.commit(changes, Durable::Now).expect("committed");
}

/// A store whose oldest segment has a record of 1 MiB that lives, and so much behind it that does not that it is to be
/// moved.
fn with_a_large_record(directory: &Path) -> LogStore {
    let mut store = open_small(directory);
    commit(&mut store, &[put(1, "large", &pattern(1, 1 << 20))]);
    for seq in 2..60 {
        commit(&mut store, &[put(seq, "passing", &pattern(seq, 30_000))]);
        commit(&mut store, &[Change::Remove(seq)]);
    }
    store
}

#[test]
fn a_large_record_is_moved_in_steps_between_which_others_are_put_and_found_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = with_a_large_record(directory.path());
    let oldest = segments(directory.path()).remove(0);
    let (mut moved, mut steps) = (None, 0);
    let mut seq = 60;
    while moved.is_none() {
        let step = store.compact().expect("a sound disk");
        moved = step.moved.into_iter().find(|(seq, _)| *seq == 1).map(|(_, body)| body);
        steps += 1;
        assert!(step.more && steps < 1_000);
        commit(&mut store, &[put(seq, "beside", &pattern(seq, 100))]);
        seq += 1;
    }
    assert!(steps > 16, "{steps} steps for 1 MiB in segments of 64 KiB");
    compacted(&mut store);
    assert!(!oldest.exists(), "what it was moved out of is given back");
    assert_eq!(body(&moved.expect("a move")), pattern(1, 1 << 20));
    drop(store);
    let found = reopened(directory.path());
    assert_eq!(found[&1].1, pattern(1, 1 << 20));
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1].into_iter().chain(60..seq).collect::<Vec<_>>());
}

#[test]
fn a_large_record_that_is_removed_while_it_is_moved_stays_removed() {
    for steps in [1, 5, 17, 18, 19, 25] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = with_a_large_record(directory.path());
        (0..steps).for_each(|_| drop(store.compact().expect("a sound disk")));
        commit(&mut store, &[Change::Remove(1)]);
        compacted(&mut store);
        drop(store);
        assert!(reopened(directory.path()).is_empty(), "after {steps} steps");
    }
}

#[test]
fn what_somebody_has_cut_off_is_never_read_as_zeros() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = open_small(directory.path());
    let kept = store.commit(&[put(1, "kept", &pattern(1, 100))], Durable::Now).expect("committed").remove(0);
    let lost = store.commit(&[put(2, "lost", &pattern(2, 5_000))], Durable::Now).expect("committed").remove(0);
    let newest = segments(directory.path()).remove(0);
    fs::OpenOptions::new().write(true).open(newest).and_then(|file| file.set_len(1_000)).expect("it can be cut");
    let next = store.commit(&[put(3, "next", &pattern(3, 5_000))], Durable::Now).expect("committed").remove(0);
    assert_eq!((body(&kept), body(&next)), (pattern(1, 100), pattern(3, 5_000)));
    let error = lost.read_all().expect_err("zeros, where it was");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_move_that_a_kill_has_cut_short_loses_nothing_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = with_a_large_record(directory.path());
    (0..5).for_each(|_| drop(store.compact().expect("a sound disk")));
    let leftover = directory.path().join("MOVING");
    assert!(leftover.exists());
    drop(store);
    let found = reopened(directory.path());
    assert_eq!(found.len(), 1);
    assert_eq!(found[&1].1, pattern(1, 1 << 20));
    assert!(!leftover.exists());
}

#[test]
fn a_relocation_whose_file_somebody_deletes_begins_anew_and_the_store_goes_on() {
    for is_removed in [true, false] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = with_a_large_record(directory.path());
        (0..5).for_each(|_| drop(store.compact().expect("a sound disk")));
        fs::remove_file(directory.path().join("MOVING")).expect("it is being written");
        if is_removed {
            commit(&mut store, &[Change::Remove(1)]);
        }
        compacted(&mut store);
        let left: u64 =
            segments(directory.path()).iter().map(|path| fs::metadata(path).expect("a segment").len()).sum();
        assert!(left < (1 << 20) + 4 * SEGMENT, "{left} bytes are left");
        commit(&mut store, &[put(60, "later", b"small")]);
        drop(store);
        let found: Vec<Seq> = reopened(directory.path()).into_keys().collect();
        assert_eq!(found, if is_removed { vec![60] } else { vec![1, 60] });
    }
}

/// The files in `directory` that this process has open, those that are deleted among them.
fn open_files(directory: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").expect("Linux").filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    open.filter(|path| path.starts_with(directory)).count()
}

#[test]
fn few_files_are_open_however_many_segments_there_are_and_somebody_reads() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = open_small(directory.path());
    let mut bodies = Vec::new();
    for seq in 1..=300_u64 {
        bodies.extend(store.commit(&[put(seq, "meta", &pattern(seq, 70_000))], Durable::Now).expect("committed"));
    }
    assert!(segments(directory.path()).len() >= 300);
    let check = |bodies: &[_], first: Seq| {
        for (stored, seq) in bodies.iter().zip(first..) {
            assert_eq!(body(stored), pattern(seq, 70_000), "{seq}");
            let open = open_files(directory.path());
            assert!(open <= MAX_OPEN_FILES, "{open} files are open");
        }
    };
    check(&bodies, 1);
    // the deleted ones that somebody still reads are bounded too
    for seq in 1..=200 {
        commit(&mut store, &[Change::Remove(seq)]);
        compacted(&mut store);
    }
    check(&bodies, 1);
    assert!(segments(directory.path()).len() < 300, "some are deleted all the same");
    // and the others are, as soon as nobody does
    bodies.drain(..200);
    commit(&mut store, &[put(301, "meta", b"small")]);
    compacted(&mut store);
    check(&bodies, 201);
    let left = segments(directory.path()).len();
    assert!(left <= 102, "{left} segments");
    drop((store, bodies));
    assert_eq!(open_files(directory.path()), 0);
    assert_eq!(reopened(directory.path()).len(), 101);
}

#[test]
fn many_who_read_in_more_segments_than_may_be_open_wait_for_one_another() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = open_small(directory.path());
    let put =
        |seq| store.commit(&[put(seq, "meta", &pattern(seq, 70_000))], Durable::Now).expect("committed").remove(0);
    let bodies: Vec<_> = (1..=100).map(put).collect();
    std::thread::scope(|scope| {
        for reader in 0..64_usize {
            let bodies = &bodies;
            scope.spawn(move || {
                for at in (0..300).map(|round| (round * 37 + reader) % bodies.len()) {
                    assert_eq!(
                        bodies[at].read(5, 10).expect("readable"),
                        Bytes::copy_from_slice(&pattern(at as Seq + 1, 15)[5..])
                    );
                }
            });
        }
    });
}
