//! An error at the n-th write and at the n-th sync, for every n: what was acknowledged is there, and nothing else is
//! acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, OpenError, Put, Seq, Store, StoreError};

use crate::crash::disk::{
    EAGAIN, EDQUOT, EINVAL, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, Fault, FaultKind, RecordingDisk, Unsynced, rebuild,
};
use crate::crash::power_loss::SEGMENT_BYTES;
use crate::support::in_file::{body_files, in_file, is_in_file};
use crate::support::owner::Owner;
use crate::support::unsynced_disk::UnsyncedDisk;

#[derive(Debug, Default)]
struct Outcome {
    /// Acknowledged and not removed.
    kept: BTreeMap<Seq, Vec<u8>>,
    /// Removed, soon.
    removed: BTreeSet<Seq>,
    /// Bodies that were refused.
    refused: BTreeSet<Vec<u8>>,
    no_space: usize,
    failed: usize,
    acknowledged_after_failure: usize,
}

/// Puts and removes through the store's thread, some at a time.
fn scenario(disk: &RecordingDisk, directory: &Path) -> Outcome {
    let mut outcome = Outcome::default();
    let opened = LogStore::open_on(Arc::new(disk.clone()), directory, SEGMENT_BYTES);
    let Ok((store, _)) = opened else { return outcome };
    let next_seq = store.next_seq();
    let files = store.bodies().clone();
    let mut owner = Owner::start(store, next_seq);
    for round in 0..40_u8 {
        let bodies: Vec<Vec<u8>> =
            (0..3).map(|at| vec![round.wrapping_mul(3) + at; 500 + 40 * usize::from(round)]).collect();
        let put = |body: Vec<u8>| {
            let (head, tail) = body.split_at(100);
            let payload = if body[0] % 3 == 1 {
                // an upload that fails never reaches the store
                in_file(&files, &body).ok()?
            } else {
                Payload::from_parts(vec![Bytes::copy_from_slice(head), Bytes::copy_from_slice(tail)])
            };
            Some((owner.handle.put(Bytes::from_static(b"meta"), payload), body))
        };
        let puts: Vec<(Seq, Vec<u8>)> = bodies.into_iter().filter_map(put).collect();
        for (seq, body) in puts {
            match owner.outcome(seq) {
                Ok((seq, payload)) => {
                    assert_eq!(payload.read_all().expect("readable"), body);
                    outcome.acknowledged_after_failure += usize::from(outcome.failed > 0);
                    outcome.kept.insert(seq, body);
                }
                Err(error) => {
                    outcome.refused.insert(body);
                    match error {
                        StoreError::NoSpace(_) | StoreError::Busy(_) => outcome.no_space += 1,
                        StoreError::Failed(_) | StoreError::Gone(_) => outcome.failed += 1,
                        StoreError::TooLarge { .. } => unreachable!("small records are put"),
                        StoreError::Database(_) => unreachable!("this store is on a disk"),
                    }
                }
            }
        }
        while outcome.kept.len() > 6 {
            let (seq, _) = outcome.kept.pop_first().expect("there are some");
            outcome.removed.insert(seq);
            owner.handle.remove(seq);
        }
        let _ = owner.flush();
    }
    outcome
}

fn check(outcome: &Outcome, directory: &Path, faulty: bool, what: &str) {
    let recovered = loop {
        match LogStore::open_on(Arc::new(UnsyncedDisk), directory, SEGMENT_BYTES) {
            Ok((_, recovered)) => break recovered,
            // its thread is about to end
            Err(OpenError::InUse(_)) => thread::yield_now(),
            Err(error) => panic!("{what}: the store does not open: {error}"),
        }
    };
    let found: BTreeMap<Seq, Vec<u8>> =
        recovered.iter().map(|record| (record.seq, record.body.read_all().expect("readable").to_vec())).collect();
    let in_files = recovered.iter().filter(|record| is_in_file(&record.body)).count();
    assert_eq!(body_files(directory).len(), in_files, "{what}: files that nobody needs are deleted");
    for (seq, body) in &outcome.kept {
        assert!(found.get(seq) == Some(body), "{what}: record {seq} was acknowledged, and is lost or other");
    }
    for (seq, body) in &found {
        let refused = outcome.refused.contains(body);
        assert!(!refused, "{what}: record {seq} was refused, and is there");
        // a removal that could not be written is forgotten with the process
        let known = outcome.kept.contains_key(seq) || (faulty && outcome.removed.contains(seq));
        assert!(known, "{what}: record {seq} was removed, and is there");
    }
}

/// Lets operation 1, 2, 3 … of a kind fail until there are no more of them. Returns how many there were.
fn fails_at_every(kind: FaultKind, error: i32, for_good: bool, judge: impl Fn(&Outcome, &str)) -> usize {
    for at in 1.. {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = RecordingDisk::default();
        disk.set_fault(Some(Fault { kind, at, error, for_good }));
        let outcome = scenario(&disk, directory.path());
        if !disk.was_hit() {
            assert_eq!((outcome.no_space, outcome.failed), (0, 0));
            check(&outcome, directory.path(), false, "without a fault");
            return at - 1;
        }
        let what = format!("{kind:?} {at} fails with error {error}");
        judge(&outcome, &what);
        check(&outcome, directory.path(), true, &what);
        // and should the power fail too
        let image = tempfile::tempdir().expect("a directory");
        rebuild(&disk.events(), Unsynced::Nothing, &mut StdRng::seed_from_u64(1), image.path());
        check(&outcome, image.path(), true, &format!("{what}, then the power"));
    }
    unreachable!("the scenario ends")
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_nothing_acknowledged_is_lost() {
    let syncs = fails_at_every(FaultKind::Sync, EIO, false, |outcome, what| {
        assert_eq!(outcome.acknowledged_after_failure, 0, "{what}");
    });
    assert!(syncs > 40, "{syncs} syncs");
}

#[test]
fn after_a_failed_write_nothing_acknowledged_is_lost() {
    let writes = fails_at_every(FaultKind::Write, EIO, false, |outcome, what| {
        assert_eq!(outcome.acknowledged_after_failure, 0, "{what}");
    });
    assert!(writes > 40, "{writes} writes");
}

#[test]
fn a_write_without_space_is_refused_and_the_next_one_succeeds() {
    let writes = fails_at_every(FaultKind::Write, ENOSPC, false, |outcome, what| {
        assert_eq!(outcome.failed, 0, "{what}");
        assert!(outcome.no_space <= 3, "{what}: {} refused", outcome.no_space);
    });
    assert!(writes > 40, "{writes} writes");
}

#[test]
fn a_sync_without_space_is_refused_and_what_it_was_to_write_is_written_anew() {
    for error in [ENOSPC, EDQUOT] {
        let syncs = fails_at_every(FaultKind::Sync, error, false, |outcome, what| {
            assert_eq!(outcome.failed, 0, "{what}");
            assert!(outcome.no_space <= 3, "{what}: {} refused", outcome.no_space);
        });
        assert!(syncs > 40, "{syncs} syncs");
    }
}

#[test]
fn without_descriptors_or_memory_for_a_moment_a_put_is_refused_and_the_next_one_succeeds() {
    fails_at_every(FaultKind::Any, EMFILE, false, |outcome, what| {
        assert_eq!(outcome.failed, 0, "{what}");
        assert!(outcome.no_space <= 3, "{what}: {} refused", outcome.no_space);
    });
    for error in [ENFILE, ENOMEM, EAGAIN] {
        for at in [10, 20, 40] {
            let directory = tempfile::tempdir().expect("a directory");
            let disk = RecordingDisk::default();
            disk.set_fault(Some(Fault { kind: FaultKind::Write, at, error, for_good: false }));
            let outcome = scenario(&disk, directory.path());
            assert!(disk.was_hit());
            assert_eq!(outcome.failed, 0, "write {at} fails with error {error}");
            check(&outcome, directory.path(), true, &format!("write {at} fails with error {error}"));
        }
    }
}

#[test]
fn a_file_system_that_syncs_no_directory_is_used_all_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    disk.set_fault(Some(Fault { kind: FaultKind::Directory, at: 1, error: EINVAL, for_good: true }));
    let outcome = scenario(&disk, directory.path());
    assert!(disk.was_hit());
    assert_eq!((outcome.no_space, outcome.failed, outcome.kept.len()), (0, 0, 6));
    check(&outcome, directory.path(), false, "without directory syncs");
}

#[test]
fn a_disk_that_stays_full_refuses_and_loses_nothing() {
    fails_at_every(FaultKind::Write, ENOSPC, true, |outcome, what| {
        assert_eq!(outcome.failed, 0, "{what}");
    });
}

#[test]
fn on_a_disk_without_a_byte_left_removals_are_kept_and_free_space() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let open = || LogStore::open_on(Arc::new(disk.clone()), directory.path(), SEGMENT_BYTES);
    let (store, _) = open().expect("the store opens");
    let mut owner = Owner::start(store, 1);
    let put = |owner: &mut Owner, len: usize| owner.put(&b"meta"[..], vec![Bytes::from(vec![7; len])]);
    let mut kept = Vec::new();
    for _ in 0..300 {
        kept.push(put(&mut owner, 1_000).expect("committed").0);
    }
    // Other files on this disk take the remaining space.
    disk.set_capacity(disk.used());
    for len in [1_000, 1] {
        // This store may still have preallocated space.
        let refused = loop {
            match put(&mut owner, len) {
                Ok((seq, _)) => kept.push(seq),
                Err(refused) => break refused,
            }
        };
        assert!(matches!(refused, StoreError::NoSpace(_)), "{refused}");
    }
    // nothing of what is removed makes the oldest segment free, at first
    for seq in kept.drain(100..) {
        owner.handle.remove(seq);
    }
    owner.flush().expect("there is the reserve");
    let mut again = 0;
    while again == 0 {
        // The oldest ones free space.
        kept.drain(..10).for_each(|seq| owner.handle.remove(seq));
        owner.flush().expect("there is the reserve");
        again = usize::from(put(&mut owner, 1_000).is_ok());
    }
    drop(owner);
    let found = loop {
        match open() {
            Ok((_, found)) => break found,
            Err(OpenError::InUse(_)) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(found.len(), kept.len() + again, "what was removed stays removed");
}

#[test]
fn where_there_is_no_space_for_zeros_the_record_is_written_without_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let opened = LogStore::open_on(Arc::new(disk.clone()), directory.path(), 16 << 20);
    let (mut store, _) = opened.expect("the store opens");
    let mut put = |seq: Seq| {
        let body = vec![Bytes::from_static(b"a small body")];
        store.commit(
            &[Change::Put(Put { seq, meta: Bytes::from_static(b"meta"), body: Payload::from_parts(body) })],
            Durable::Now,
        )
    };
    put(1).expect("committed");
    disk.set_capacity(disk.used() + 200);
    let taken = (2..).take_while(|&seq| put(seq).is_ok()).count();
    assert!(taken > 1, "{taken} records of 48 bytes were taken");
}
