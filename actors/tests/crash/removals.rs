//! A removal that somebody waits for: what is reported as removed stays removed, what is reported as refused stays
//! there, whichever operation of the disk fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{OpenError, Seq};

use crate::crash::disk::{EIO, EMFILE, ENOSPC, Fault, FaultKind, RecordingDisk, Unsynced, rebuild};
use crate::crash::power_loss::SEGMENT_BYTES;
use crate::support::in_file::in_file;
use crate::support::owner::Owner;
use crate::support::unsynced_disk::UnsyncedDisk;

/// What the owner of a store knows.
#[derive(Debug, Default)]
struct Known {
    kept: BTreeMap<Seq, usize>,
    /// The removal has failed with the store: the record is there, or not.
    uncertain: Vec<Seq>,
    refused: usize,
}

/// Puts, and removes one at a time, durably. Sometimes a removal that nobody waits for is committed with it.
fn scenario(disk: &RecordingDisk, directory: &Path) -> Known {
    let mut known = Known::default();
    let Ok((store, _)) = LogStore::open_on(Arc::new(disk.clone()), directory, SEGMENT_BYTES) else { return known };
    let next_seq = store.next_seq();
    let files = store.bodies().clone();
    let mut owner = Owner::start(store, next_seq);
    for round in 0..10 {
        for len in [300, 900 + 100 * round, 20_000 * usize::from(round % 5 == 0)] {
            if let Ok((seq, _)) = owner.put(&b"meta"[..], vec![Bytes::from(vec![7; len])]) {
                known.kept.insert(seq, len);
            }
        }
        if let Ok(payload) = in_file(&files, &[7; 900]) {
            let seq = owner.handle.put(Bytes::from_static(b"meta"), payload);
            if owner.outcome(seq).is_ok() {
                known.kept.insert(seq, 900);
            }
        }
        while known.kept.len() > 5 {
            let oldest: Vec<Seq> = known.kept.keys().copied().take(2).collect();
            if round % 3 == 0 {
                owner.handle.remove(oldest[1]);
                known.kept.remove(&oldest[1]);
                known.uncertain.push(oldest[1]);
            }
            match owner.remove_durably(oldest[0]) {
                Ok(()) => drop(known.kept.remove(&oldest[0])),
                Err(error) if error.is_final() => {
                    known.uncertain.push(oldest[0]);
                    return known;
                }
                Err(_) => {
                    known.refused += 1;
                    break;
                }
            }
        }
    }
    if owner.flush().is_ok() {
        known.uncertain.clear();
    }
    known
}

fn check(known: &Known, directory: &Path, what: &str) {
    let found = loop {
        match LogStore::open_on(Arc::new(UnsyncedDisk), directory, SEGMENT_BYTES) {
            Ok((_, found)) => break found,
            Err(OpenError::InUse(_)) => thread::yield_now(),
            Err(error) => panic!("{what}: the store does not open: {error}"),
        }
    };
    let mut found: BTreeMap<Seq, usize> =
        found.into_iter().map(|record| (record.seq, record.body.len() as usize)).collect();
    found.retain(|seq, _| !known.uncertain.contains(seq));
    let kept: BTreeMap<Seq, usize> =
        known.kept.iter().filter(|(seq, _)| !known.uncertain.contains(seq)).map(|(seq, len)| (*seq, *len)).collect();
    assert_eq!(found, kept, "{what}");
}

/// Lets operation 1, 2, 3 … fail, until there are no more of them.
fn fails_at_every(kind: FaultKind, error: i32, for_good: bool) -> usize {
    for at in 1.. {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = RecordingDisk::default();
        disk.set_fault(Some(Fault { kind, at, error, for_good }));
        let known = scenario(&disk, directory.path());
        let what = format!("{kind:?} {at} fails with error {error}");
        check(&known, directory.path(), &what);
        let image = tempfile::tempdir().expect("a directory");
        rebuild(&disk.events(), Unsynced::Nothing, &mut StdRng::seed_from_u64(1), image.path());
        check(&known, image.path(), &format!("{what}, then the power"));
        if !disk.was_hit() {
            assert_eq!(known.refused, 0);
            return at - 1;
        }
    }
    unreachable!("the scenario ends")
}

#[test]
fn a_removal_is_there_or_refused_whichever_operation_fails_for_a_moment() {
    for error in [ENOSPC, EMFILE] {
        let operations = fails_at_every(FaultKind::Any, error, false);
        assert!(operations > 80, "{operations} operations");
    }
}

#[test]
fn a_removal_is_there_or_refused_on_a_disk_that_stays_full() {
    let writes = fails_at_every(FaultKind::Write, ENOSPC, true);
    assert!(writes > 30, "{writes} writes");
}

#[test]
fn a_removal_whose_sync_fails_is_not_reported_as_made() {
    let syncs = fails_at_every(FaultKind::Sync, EIO, false);
    assert!(syncs > 30, "{syncs} syncs");
    let syncs = fails_at_every(FaultKind::Sync, ENOSPC, false);
    assert!(syncs > 30, "{syncs} syncs");
}
