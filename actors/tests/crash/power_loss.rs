//! Power failures at every moment: the directory is rebuilt from what was synced and some of what was not, and opened.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Put, Recovered, Seq, Store};

use crate::crash::disk::{EIO, ENOSPC, Fault, FaultKind, RecordingDisk, Unsynced, rebuild};
use crate::support::in_file::{body_files, in_file, is_in_file};
use crate::support::unsynced_disk::UnsyncedDisk;

/// So small that a campaign of 150 commits begins, empties and deletes many segments.
pub const SEGMENT_BYTES: u64 = 8 << 10;

pub fn body(record: &Recovered) -> Vec<u8> {
    record.body.read_all().expect("readable").to_vec()
}

/// What a store has to hold at a moment.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Everything that was acknowledged and not removed.
    pub kept: BTreeMap<Seq, Vec<u8>>,
    /// Put or removed by commits that are unanswered or not durable yet: there, or not.
    pub uncertain: BTreeMap<Seq, Vec<u8>>,
}

impl Expected {
    pub fn check(&self, directory: &Path, segment_bytes: u64, what: &str) {
        let (_, recovered) = LogStore::open_on(Arc::new(UnsyncedDisk), directory, segment_bytes)
            .unwrap_or_else(|error| panic!("{what}: the store does not open: {error}"));
        let found: BTreeMap<Seq, Vec<u8>> = recovered.iter().map(|record| (record.seq, body(record))).collect();
        let in_files = recovered.iter().filter(|record| is_in_file(&record.body)).count();
        assert_eq!(body_files(directory).len(), in_files, "{what}: files that nobody needs are deleted");
        for (seq, body) in &self.kept {
            assert!(
                found.get(seq) == Some(body),
                "{what}: record {seq} was acknowledged, but is lost or has another body"
            );
        }
        for (seq, body) in &found {
            let known = self.kept.get(seq).or_else(|| self.uncertain.get(seq));
            assert!(known == Some(body), "{what}: record {seq} was removed or never put, but is there");
        }
    }
}

/// Random commits, now and then with a kill in the middle or at a failed sync; what is expected after each number of
/// operations.
fn campaign(disk: &RecordingDisk, directory: &Path, random: &mut StdRng) -> Vec<(usize, Expected)> {
    let open = || LogStore::open_on(Arc::new(disk.clone()), directory, SEGMENT_BYTES);
    let (mut store, _) = open().expect("the store opens");
    let mut expected = Expected::default();
    let mut history = Vec::new();
    let mut next_seq = 1;
    // numbers that are taken, and put later or never
    let mut taken = Vec::new();
    for _ in 0..150 {
        let mut changes = Vec::new();
        let (mut kept, mut uncertain) = (expected.kept.clone(), expected.uncertain.clone());
        let puts = if random.random_bool(0.3) { 0 } else { random.random_range(0..4) };
        for _ in 0..puts {
            let len = [40, 700, 3_000, 70_000][random.random_range(0..100_usize).min(60) / 20];
            let body: Vec<u8> = (0..random.random_range(0..len)).map(|_| random.random()).collect();
            let payload = if body.len() > 10 && random.random_bool(0.4) {
                in_file(store.bodies(), &body).expect("a sound disk")
            } else {
                let (head, tail) = body.split_at(body.len() / 3);
                Payload::from_parts(vec![Bytes::copy_from_slice(head), Bytes::copy_from_slice(tail)])
            };
            if random.random_bool(0.2) {
                taken.push(next_seq);
                next_seq += 1;
            }
            let seq = match taken.len() {
                0 => next_seq,
                len if random.random_bool(0.2) => taken.swap_remove(random.random_range(0..len)),
                _ => next_seq,
            };
            changes.push(Change::Put(Put { seq, meta: Bytes::from_static(b"meta"), body: payload }));
            kept.insert(seq, body.clone());
            uncertain.insert(seq, body);
            next_seq = next_seq.max(seq + 1);
        }
        if random.random_bool(0.1)
            && let Some(&Change::Put(Put { seq, .. })) = changes.last()
        {
            // the broker has confirmed it meanwhile
            kept.remove(&seq);
            changes.push(Change::Remove(seq));
        }
        for _ in 0..random.random_range(0..5) {
            // mostly the oldest, as a queue does
            let at = if random.random_bool(0.8) { 0 } else { random.random_range(0..expected.kept.len().max(1)) };
            if let Some((&seq, body)) = expected.kept.iter().nth(at) {
                changes.push(Change::Remove(seq));
                kept.remove(&seq);
                uncertain.insert(seq, body.clone());
                expected.kept.remove(&seq);
            }
        }
        expected.uncertain.clone_from(&uncertain);
        history.push((disk.len(), expected.clone()));
        if random.random_bool(0.1) {
            // an upload that is broken off, or that a kill has interrupted
            let upload = in_file(store.bodies(), &[7; 600]).expect("a sound disk");
            if random.random_bool(0.5) {
                std::mem::forget(upload);
            }
        }
        let killed = random.random_bool(0.1);
        if killed {
            let (kind, latest) = if random.random_bool(0.5) { (FaultKind::Any, 6) } else { (FaultKind::LastSync, 3) };
            let at = random.random_range(1..latest);
            disk.set_fault(Some(Fault { kind, at, error: EIO, for_good: true }));
        }
        let durable = if puts == 0 && random.random_bool(0.7) { Durable::Later } else { Durable::Now };
        let committed = store.commit(&changes, durable);
        // where that fails, the space is given back later
        while store.compact().is_ok_and(|step| step.more && random.random_bool(0.8)) {}
        disk.set_fault(None);
        if committed.is_ok() {
            let uncertain = if durable == Durable::Now { BTreeMap::new() } else { uncertain };
            expected = Expected { kept, uncertain };
            history.push((disk.len(), expected.clone()));
        }
        if killed {
            drop(store);
            if random.random_bool(0.3) {
                disk.set_fault(Some(Fault { kind: FaultKind::LastSync, at: 1, error: EIO, for_good: true }));
                open().expect_err("it cannot know what is durable");
                disk.set_fault(None);
            }
            let found;
            (store, found) = open().expect("the store opens");
            if committed.is_err() {
                // whatever of it is found now is durable from now on
                let kept = found.iter().map(|record| (record.seq, body(record))).collect();
                expected = Expected { kept, uncertain: BTreeMap::new() };
                history.push((disk.len(), expected.clone()));
            }
        }
    }
    history
}

fn loses_nothing(seed: u64) -> usize {
    let directory = tempfile::tempdir().expect("a directory");
    let mut random = StdRng::seed_from_u64(seed);
    let disk = RecordingDisk::default();
    let history = campaign(&disk, directory.path(), &mut random);
    let events = disk.events();
    let mut images = 0;
    for count in 0..=events.len() {
        let expected = match history.partition_point(|(at, _)| *at <= count) {
            0 => Expected::default(),
            at => history[at - 1].1.clone(),
        };
        for unsynced in [Unsynced::Nothing, Unsynced::Some] {
            let image = tempfile::tempdir().expect("a directory");
            rebuild(&events[..count], unsynced, &mut random, image.path());
            let what = format!("seed {seed}, {count} of {} operations, {unsynced:?} unsynced", events.len());
            expected.check(image.path(), SEGMENT_BYTES, &what);
            images += 1;
        }
    }
    images
}

#[test]
fn a_power_failure_at_any_moment_loses_nothing_that_was_acknowledged() {
    let wanted = std::env::var("TEST_IMAGES").map_or(1_000, |count| count.parse().expect("a number"));
    let mut images = 0;
    for seed in 1.. {
        images += loses_nothing(seed);
        if images >= wanted {
            println!("{images} images from {seed} campaigns");
            return;
        }
    }
}

/// On a full disk compaction begins another segment. Of its disk operations of this kind, the one with the number `at`
/// and all later ones fail. Then the disk has space, the segment before gets more records, and the power fails. Returns
/// whether the operation was reached.
fn survives_a_segment_that_could_not_be_begun(kind: FaultKind, at: usize) -> bool {
    let segment_bytes = 256 << 10;
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let opened = LogStore::open_on(Arc::new(disk.clone()), directory.path(), segment_bytes);
    let (mut store, _) = opened.expect("the store opens");
    let put = |seq: Seq, len: usize| {
        let body = vec![Bytes::from(vec![seq as u8 + 1; len])];
        Change::Put(Put { seq, meta: Bytes::from_static(b"meta"), body: Payload::from_parts(body) })
    };
    let commit = |store: &mut LogStore, change| store.commit(&[change], Durable::Now).expect("space");
    commit(&mut store, put(1, 80_000));
    commit(&mut store, put(2, 100));
    disk.set_fault(Some(Fault { kind: FaultKind::Write, at: 1, error: ENOSPC, for_good: false }));
    store.commit(&[put(3, 100)], Durable::Now).expect_err("the disk is full");
    commit(&mut store, Change::Remove(1));
    disk.set_fault(Some(Fault { kind, at, error: ENOSPC, for_good: true }));
    loop {
        match store.compact() {
            Ok(step) if step.more => {}
            // what could not be synced could not be cut off either
            Err(error) if error.is_final() => {
                assert!(kind == FaultKind::Any, "{kind:?} {at} fails: {error}");
                return true;
            }
            Ok(_) | Err(_) => break,
        }
    }
    let was_hit = disk.was_hit();
    disk.set_fault(None);

    let kept = BTreeMap::from([(2, vec![3; 100])]);
    let uncertain = BTreeMap::from([(4, vec![5; 3_000])]);
    let before = disk.len();
    commit(&mut store, put(4, 3_000));
    let events = disk.events();
    let mut random = StdRng::seed_from_u64(at as u64);
    for count in before..=events.len() {
        let mut expected = Expected { kept: kept.clone(), uncertain: uncertain.clone() };
        if count == events.len() {
            expected.kept.append(&mut expected.uncertain);
        }
        for _ in 0..3 {
            let image = tempfile::tempdir().expect("a directory");
            rebuild(&events[..count], Unsynced::Some, &mut random, image.path());
            let what = format!("{kind:?} {at} fails, {count} of {} operations", events.len());
            expected.check(image.path(), segment_bytes, &what);
        }
    }
    was_hit
}

#[test]
fn a_power_failure_after_a_segment_that_could_not_be_begun_loses_nothing() {
    for (kind, fewest) in [(FaultKind::Any, 4), (FaultKind::Write, 1), (FaultKind::Sync, 2), (FaultKind::Directory, 1)]
    {
        let failed = (1..).take_while(|&at| survives_a_segment_that_could_not_be_begun(kind, at)).count();
        assert!(failed >= fewest, "only {failed} {kind:?} operations were reached, not {fewest}");
    }
}
