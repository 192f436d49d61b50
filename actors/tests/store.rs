//! The contract of a store, kept by every backend, and what the log does beyond it.

use crate::support::in_file;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use user_http_actors::payload::Payload;
use user_http_actors::store::disk::SystemDisk;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Compacted, Durable, OpenError, Put, Recovered, Seq, Store};

mod bits;
mod body_files;
mod bounds;
mod earlier_version;
mod space;
mod stopped;
mod torn;
mod unreadable;
mod verified;
mod zeros;

fn put(seq: Seq, meta: &str, body: &[u8]) -> Change {
    let (head, tail) = body.split_at(body.len() / 3);
    let body = vec![Bytes::copy_from_slice(head), Bytes::copy_from_slice(tail)];
    Change::Put(Put { seq, meta: Bytes::copy_from_slice(meta.as_bytes()), body: Payload::from_parts(body) })
}

fn body(payload: &Payload) -> Vec<u8> {
    payload.read_all().expect("a stored body can be read").to_vec()
}

fn pattern(seq: Seq, len: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..251_u64).map(|at| (at * 31 + seq * 7) as u8).collect();
    period.iter().copied().cycle().take(len).collect()
}

fn open(directory: &Path) -> (LogStore, Vec<Recovered>) {
    LogStore::open(directory).expect("the store opens")
}

fn reopened(directory: &Path) -> BTreeMap<Seq, (String, Vec<u8>)> {
    let (_, recovered) = open(directory);
    let entry = |record: &Recovered| (String::from_utf8_lossy(&record.meta).into_owned(), body(&record.body));
    recovered.iter().map(|record| (record.seq, entry(record))).collect()
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).expect("the directory is there").map(|file| file.expect("an entry").path());
    let mut segments: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    segments.sort();
    segments
}

/// What a segment holds, without the zeros behind its records; the last record must not end with one.
fn records(path: &Path) -> Vec<u8> {
    let mut content = fs::read(path).expect("a segment");
    let end = content.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    content.truncate(end);
    content
}

/// Lets the store give back the space that it can. Returns what it has moved.
fn compacted(store: &mut impl Store) -> Vec<(Seq, Payload)> {
    let mut all = Vec::new();
    loop {
        let Compacted { moved, more } = store.compact().expect("a sound disk");
        all.extend(moved);
        if !more {
            return all;
        }
    }
}

/// What every backend owes its owner.
fn keeps_the_contract(mut store: impl Store) {
    let long = pattern(2, 3_000_000);
    let committed =
        store.commit(&[put(1, "a", b"first"), put(2, "b", &long), put(3, "c", b"")], Durable::Now).expect("committed");
    assert_eq!(committed.len(), 3);
    assert_eq!(body(&committed[0]), b"first");
    assert_eq!(body(&committed[1]), long);
    assert_eq!(committed[1].read(999_990, 20).expect("readable"), long[999_990..1_000_010]);
    assert_eq!(committed[1].read(2_999_999, 20).expect("readable").len(), 1);
    assert!(committed[2].is_empty());
    let later = store
        .commit(&[Change::Remove(2), Change::Remove(77), put(4, "d", b"fourth")], Durable::Now)
        .expect("committed");
    assert_eq!(later.len(), 1);
    assert_eq!(body(&committed[1]), long, "who holds a body can read it after its removal");
    assert!(store.commit(&[], Durable::Now).expect("nothing to do").is_empty());
    let changes = [put(9, "f", b"ninth"), put(6, "e", b"sixth"), Change::Remove(9)];
    let unordered = store.commit(&changes, Durable::Now).expect("room");
    assert_eq!(unordered.iter().map(body).collect::<Vec<_>>(), [b"ninth", b"sixth"]);
}

#[test]
fn the_memory_backend_keeps_the_contract() {
    keeps_the_contract(MemoryStore);
}

#[test]
fn the_log_backend_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a directory");
    keeps_the_contract(open(directory.path()).0);
    let found = reopened(directory.path());
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        [1, 3, 4, 6],
        "a record that is removed as it is put is gone"
    );
    assert_eq!(found[&4], ("d".to_owned(), b"fourth".to_vec()));
}

#[test]
fn a_second_server_is_kept_off_the_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let _first = open(directory.path());
    let second = LogStore::open(directory.path()).expect_err("the directory is taken");
    assert!(matches!(second, OpenError::InUse(_)), "{second}");
}

#[test]
fn a_tail_that_a_crash_has_torn_is_cut_off_at_any_byte() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    store.commit(&[put(1, "kept", &pattern(1, 500))], Durable::Now).expect("committed");
    let path = segments(directory.path()).remove(0);
    let kept = fs::metadata(&path).expect("a segment").len();
    store.commit(&[put(2, "torn", &pattern(2, 100))], Durable::Now).expect("committed");
    drop(store);
    let whole = records(&path);
    for len in kept + 1..whole.len() as u64 {
        for zeros_behind in [0, 1, 10_000] {
            let mut torn = whole[..len as usize].to_vec();
            torn.resize(torn.len() + zeros_behind, 0);
            fs::write(&path, &torn).expect("writable");
            let found = reopened(directory.path());
            assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1], "cut at {len}");
            assert_eq!(found[&1].1, pattern(1, 500));
            assert_eq!(fs::metadata(&path).expect("a segment").len(), kept, "the torn part is gone");
        }
    }
    // and the log goes on where it was cut
    let (mut store, _) = open(directory.path());
    store.commit(&[put(3, "after", b"more")], Durable::Now).expect("committed");
    drop(store);
    assert_eq!(reopened(directory.path()).keys().copied().collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn a_garbled_tail_is_cut_off() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    store.commit(&[put(1, "kept", b"sound")], Durable::Now).expect("committed");
    let path = segments(directory.path()).remove(0);
    let kept = fs::metadata(&path).expect("a segment").len();
    store.commit(&[put(2, "garbled", &pattern(2, 100))], Durable::Now).expect("committed");
    drop(store);
    let whole = fs::read(&path).expect("a segment");
    for at in kept..records(&path).len() as u64 {
        fs::write(&path, &whole).expect("writable");
        let file = OpenOptions::new().write(true).open(&path).expect("a segment");
        file.write_all_at(&[whole[at as usize] ^ 0x40], at).expect("writable");
        assert_eq!(reopened(directory.path()).keys().copied().collect::<Vec<_>>(), [1], "garbled at {at}");
    }
}

/// Fills more than one segment, and returns the oldest.
fn two_segments(directory: &Path) -> PathBuf {
    let (mut store, _) = open(directory);
    for seq in 1..=20 {
        store.commit(&[put(seq, "large", &pattern(seq, 1 << 20))], Durable::Now).expect("committed");
    }
    let segments = segments(directory);
    assert!(segments.len() > 1, "{segments:?}");
    segments[0].clone()
}

#[test]
fn damage_that_no_crash_explains_is_refused_and_names_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let oldest = two_segments(directory.path());
    let file = OpenOptions::new().write(true).open(&oldest).expect("a segment");
    file.write_all_at(b"damage", 2_000_000).expect("writable");
    let error = LogStore::open(directory.path()).expect_err("the damage is seen").to_string();
    assert!(error.contains(&oldest.display().to_string()) && error.contains("damaged at byte"), "{error}");
}

#[test]
fn damage_before_a_later_commit_is_refused_in_the_newest_segment_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let mut ends = Vec::new();
    for seq in 1..=3 {
        store
            .commit(&[put(seq, "meta", &pattern(seq, 200)), put(seq + 10, "meta", b"second")], Durable::Now)
            .expect("committed");
        ends.push(records(&segments(directory.path())[0]).len());
    }
    drop(store);
    let path = segments(directory.path()).remove(0);
    let whole = fs::read(&path).expect("a segment");
    // every byte of the second commit of three
    for at in ends[0]..ends[1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).expect("writable");
        let error = LogStore::open(directory.path()).expect_err("the damage is seen").to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains("truncate -s 0"), "{at}: {error}");
        assert_eq!(fs::read(&path).expect("a segment"), damaged, "nothing is changed");
    }
    // the last commit may be torn: nothing says that it was ever synced
    let mut torn = whole.clone();
    torn[ends[1] + 5] ^= 0x10;
    fs::write(&path, &torn).expect("writable");
    assert_eq!(reopened(directory.path()).keys().copied().collect::<Vec<_>>(), [1, 2, 11, 12]);
}

#[test]
fn small_commits_overwrite_zeros_that_stand_ready_and_are_found_again_with_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut lengths = Vec::new();
    for first in (1..=2_000).step_by(100) {
        // a stop leaves the zeros there, as a kill does
        let (mut store, found) = open(directory.path());
        assert_eq!(found.len() as u64, first - 1);
        for seq in first..first + 100 {
            store.commit(&[put(seq, "meta", &pattern(seq, 300))], Durable::Now).expect("committed");
            lengths.push(fs::metadata(&segments(directory.path())[0]).expect("a segment").len());
        }
    }
    let path = segments(directory.path()).remove(0);
    lengths.dedup();
    assert!(lengths.len() < 50, "the file has grown {} times for 2000 commits", lengths.len());
    assert!(lengths.last().expect("a length") - records(&path).len() as u64 <= 1 << 20);
}

#[test]
fn a_commit_between_large_ones_gets_no_zeros_behind_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    for seq in 1..=10 {
        store.commit(&[put(2 * seq, "large", &pattern(seq, 200_000))], Durable::Now).expect("committed");
        store.commit(&[put(2 * seq + 1, "small", b"small")], Durable::Now).expect("committed");
        let path = segments(directory.path()).remove(0);
        assert_eq!(fs::metadata(&path).expect("a segment").len(), records(&path).len() as u64);
    }
}

/// Small commits in segments of 64 KiB; those that are there in the end.
fn small_segments(directory: &Path) -> Vec<PathBuf> {
    let opened = LogStore::open_on(Arc::new(SystemDisk), directory, 64 << 10);
    let (mut store, _) = opened.expect("the store opens");
    for seq in 1..=1_000 {
        store.commit(&[put(seq, "meta", &pattern(seq, 300))], Durable::Now).expect("committed");
    }
    segments(directory)
}

#[test]
fn a_segment_that_is_followed_by_another_ends_with_its_last_record() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut segments = small_segments(directory.path());
    let newest = segments.pop().expect("a segment");
    assert!(segments.len() > 3, "{segments:?}");
    for path in segments {
        assert_eq!(fs::metadata(&path).expect("a segment").len(), records(&path).len() as u64, "{path:?}");
    }
    assert!(fs::metadata(&newest).expect("a segment").len() > records(&newest).len() as u64, "{newest:?}");
}

#[test]
fn a_body_that_looks_like_a_log_does_not_make_a_torn_tail_look_like_damage() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    store.commit(&[put(1, "meta", b"first")], Durable::Now).expect("committed");
    let path = segments(directory.path()).remove(0);
    let kept = fs::metadata(&path).expect("a segment").len();
    // what another log's file holds, sent as a message
    let other = tempfile::tempdir().expect("a directory");
    open(other.path()).0.commit(&[put(7, "meta", b"second")], Durable::Now).expect("committed");
    let body = fs::read(&segments(other.path())[0]).expect("a segment");
    store.commit(&[put(2, "meta", &body)], Durable::Now).expect("committed");
    drop(store);
    let mut torn = fs::read(&path).expect("a segment");
    torn[kept as usize + 9] ^= 1;
    fs::write(&path, &torn).expect("writable");
    assert_eq!(reopened(directory.path()).keys().copied().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_missing_segment_is_refused_and_an_empty_one_in_its_place_gives_up_what_was_in_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    for seq in 1..=60 {
        store.commit(&[put(seq, "large", &pattern(seq, 1 << 20))], Durable::Now).expect("committed");
    }
    drop(store);
    let missing = segments(directory.path()).remove(1);
    fs::remove_file(&missing).expect("deletable");
    let error = LogStore::open(directory.path()).expect_err("the gap is seen").to_string();
    assert!(error.contains(&format!("{} is missing", missing.display())), "{error}");
    fs::write(&missing, b"").expect("writable");
    let found: Vec<Seq> = reopened(directory.path()).into_keys().collect();
    assert!(found.contains(&1) && found.contains(&60) && found.len() < 60, "{found:?}");
    let (mut store, _) = open(directory.path());
    store.commit(&found.iter().map(|&seq| Change::Remove(seq)).collect::<Vec<_>>(), Durable::Now).expect("committed");
    compacted(&mut store);
    assert!(!missing.exists(), "it is given back like any other");
}

#[test]
fn a_newer_format_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let oldest = two_segments(directory.path());
    let file = OpenOptions::new().write(true).open(&oldest).expect("a segment");
    file.write_all_at(&9_u16.to_le_bytes(), 6).expect("writable");
    let error = LogStore::open(directory.path()).expect_err("the version is seen").to_string();
    assert!(error.contains("format version 9"), "{error}");
}

#[test]
fn space_is_given_back_and_what_lives_is_moved() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let long_lived = pattern(1, 100_000);
    let mut payload = store.commit(&[put(1, "long-lived", &long_lived)], Durable::Now).expect("committed").remove(0);
    let mut moves = 0;
    for seq in 2..200 {
        let mut changes = vec![put(seq, "passing", &pattern(seq, 1 << 20))];
        changes.extend((seq > 2).then(|| Change::Remove(seq - 1)));
        store.commit(&changes, Durable::Now).expect("committed");
        for (seq, moved) in compacted(&mut store) {
            if seq == 1 {
                (payload, moves) = (moved, moves + 1);
            }
        }
    }
    assert!(moves > 0, "the long-lived record has been moved out of the oldest segments");
    assert_eq!(body(&payload), long_lived);
    let size: u64 = segments(directory.path()).iter().map(|path| fs::metadata(path).expect("a segment").len()).sum();
    assert!(size < 64 << 20, "198 MiB have passed, {size} bytes are left");
    drop(store);
    assert_eq!(reopened(directory.path())[&1].1, long_lived);
}

#[test]
fn after_a_million_messages_the_directory_is_hardly_larger_than_what_is_held() {
    const HELD: u64 = 20_000;
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let body = pattern(1, 300);
    for first in (1..=1_000_000).step_by(1_000) {
        let puts = (first..first + 1_000).map(|seq| put(seq, "meta", &body));
        // one in a thousand is never fetched; the others are, in no order of their own
        let gone = (first..first + 1_000).map(|seq| (seq + 500) % 1_000 + first).filter(|seq| *seq > HELD);
        let removals = gone.filter(|seq| seq % 1_000 != 7).map(|seq| Change::Remove(seq - HELD));
        store.commit(&puts.chain(removals).collect::<Vec<_>>(), Durable::Now).expect("committed");
        compacted(&mut store);
    }
    drop(store);
    let size: u64 = fs::read_dir(directory.path())
        .expect("a directory")
        .map(|file| file.expect("an entry").metadata().expect("a file").len())
        .sum();
    let found = reopened(directory.path());
    let held = found.values().map(|(meta, body)| 32 + (meta.len() + body.len()) as u64).sum::<u64>();
    assert!(found.len() as u64 >= HELD, "{} are held", found.len());
    // two of these make a data directory, and together they may exceed what is held by 64 MiB
    assert!(size < held + (32 << 20), "{size} bytes on disk, {held} held");
}

#[test]
fn numbers_are_not_used_again_after_everything_was_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    for seq in 1..=40 {
        let mut changes = vec![put(seq, "passing", &pattern(seq, 1 << 20))];
        changes.push(Change::Remove(seq - 1));
        store.commit(&changes, Durable::Now).expect("committed");
        compacted(&mut store);
    }
    store.commit(&[Change::Remove(40)], Durable::Now).expect("committed");
    compacted(&mut store);
    drop(store);
    let (store, recovered) = open(directory.path());
    assert!(recovered.is_empty());
    assert!(store.next_seq() > 40, "{}", store.next_seq());
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    PutInFile(usize),
    Remove(prop::sample::Index),
    Commit,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![0_usize..200, 10_000_usize..70_000, Just(1_000_000)].prop_map(Step::Put),
        2 => (11_usize..40_000).prop_map(Step::PutInFile),
        3 => any::<prop::sample::Index>().prop_map(Step::Remove),
        4 => Just(Step::Commit),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_log_holds_what_a_map_would_hold(steps in prop::collection::vec(step(), 1..120)) {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut store, _) = open(directory.path());
        let mut model: BTreeMap<Seq, Vec<u8>> = BTreeMap::new();
        let mut payloads: BTreeMap<Seq, Payload> = BTreeMap::new();
        let mut pending: Vec<Change> = Vec::new();
        let mut next = 1;
        for step in steps.into_iter().chain([Step::Commit, Step::Reopen]) {
            match step {
                Step::Put(len) => {
                    pending.push(put(next, "meta", &pattern(next, len)));
                    next += 1;
                }
                Step::PutInFile(len) => {
                    let body = in_file::in_file(store.bodies(), &pattern(next, len)).expect("space");
                    pending.push(Change::Put(Put { seq: next, meta: Bytes::from_static(b"meta"), body }));
                    next += 1;
                }
                Step::Remove(index) if !model.is_empty() => {
                    let seq = *model.keys().nth(index.index(model.len())).expect("in range");
                    pending.push(Change::Remove(seq));
                }
                Step::Remove(_) => {}
                Step::Commit => {
                    let committed = store.commit(&pending, Durable::Now).expect("committed");
                    let mut bodies = committed.into_iter();
                    for change in pending.drain(..) {
                        match change {
                            Change::Put(Put { seq, body, .. }) => {
                                model.insert(seq, body.read_all().expect("in memory").to_vec());
                                payloads.insert(seq, bodies.next().expect("a body for each put"));
                            }
                            Change::Remove(seq) => {
                                model.remove(&seq);
                                payloads.remove(&seq);
                            }
                        }
                    }
                    for (seq, payload) in compacted(&mut store) {
                        payloads.insert(seq, payload);
                    }
                    for (seq, payload) in &payloads {
                        prop_assert_eq!(&body(payload), &model[seq]);
                    }
                }
                Step::Reopen => {
                    // what was not committed is lost with the process
                    pending.clear();
                    drop(store);
                    let recovered;
                    (store, recovered) = open(directory.path());
                    payloads = recovered.into_iter().map(|record| (record.seq, record.body)).collect();
                    let found: BTreeMap<Seq, Vec<u8>> =
                        payloads.iter().map(|(seq, payload)| (*seq, body(payload))).collect();
                    prop_assert_eq!(&found, &model);
                    next = store.next_seq();
                }
            }
        }
    }
}
