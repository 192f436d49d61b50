//! Bodies in files of their own: the log refers to them, recovery checks them, and nobody else's files are touched.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use user_http_actors::body_file::BodyDirectory;
use user_http_actors::payload::{Payload, Piece};
use user_http_actors::store::disk::SystemDisk;
use user_http_actors::store::files::MAX_OPEN_FILES;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, OpenError, Put, Seq, Store, StoreError};

use crate::store::{body, compacted, open, pattern, put, reopened, segments};
use crate::support::in_file::{body_files, file, in_file, is_in_file, range};

const LEN: usize = 100_000;

fn put_payload(seq: Seq, body: Payload) -> Change {
    Change::Put(Put { seq, meta: Bytes::from_static(b"meta"), body })
}

/// Puts a body of [`LEN`] bytes whose greater part is in a file. Returns the file's path and the stored body.
fn put_in_file(store: &mut LogStore, seq: Seq) -> (PathBuf, Payload) {
    let body = in_file(store.bodies(), &pattern(seq, LEN)).expect("space");
    let stored = store.commit(&[put_payload(seq, body)], Durable::Now).expect("space").remove(0);
    let path = stored.files().next().expect("a file").path().to_owned();
    (path, stored)
}

/// A segment with two records whose bodies are in files: its path, where the second record begins, and all records.
fn two_in_files(directory: &Path) -> (PathBuf, usize, Vec<u8>) {
    let (mut store, _) = open(directory);
    put_in_file(&mut store, 1);
    let path = segments(directory).remove(0);
    let first = crate::store::records(&path).len();
    put_in_file(&mut store, 2);
    drop(store);
    let whole = crate::store::records(&path);
    (path, first, whole)
}

fn remove(store: &mut LogStore, seq: Seq) {
    store.commit(&[Change::Remove(seq)], Durable::Now).expect("space");
}

fn log_bytes(directory: &Path) -> usize {
    segments(directory).iter().map(|path| crate::store::records(path).len()).sum()
}

#[test]
fn a_body_in_a_file_stays_there_and_the_log_refers_to_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let (path, stored) = put_in_file(&mut store, 1);
    assert_eq!(body(&stored), pattern(1, LEN));
    assert_eq!(stored.read(LEN as u64 / 2 - 10, 20).expect("readable"), pattern(1, LEN)[LEN / 2 - 10..LEN / 2 + 10]);
    assert!(log_bytes(directory.path()) < 500, "{} bytes", log_bytes(directory.path()));
    assert_eq!(body_files(directory.path()), std::slice::from_ref(&path));
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&directory.path().join("bodies")), mode(&path)), (0o700, 0o600));
    let inode = fs::metadata(&path).expect("a file").ino();
    drop((store, stored));
    for _ in 0..2 {
        let (_, found) = open(directory.path());
        assert!(is_in_file(&found[0].body));
        assert_eq!(body(&found[0].body), pattern(1, LEN));
        assert_eq!(&found[0].meta[..], b"meta");
        assert_eq!(fs::metadata(&path).expect("a file").ino(), inode);
    }
}

#[test]
fn the_stored_body_keeps_no_memory_of_the_received_message() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let received = Bytes::from(vec![7; 1 << 20]);
    let file = file(store.bodies(), &pattern(1, LEN)).expect("space");
    let body = [Piece::Memory(received.slice(5..10)), range(&file, 0, LEN)].into_iter().collect();
    let stored = store.commit(&[put_payload(1, body)], Durable::Now).expect("space");
    assert!(received.is_unique(), "a slice of it is still in use");
    drop(stored);
}

#[test]
fn a_body_that_no_record_can_refer_to_is_in_the_log_and_its_files_are_deleted() {
    let directory = tempfile::tempdir().expect("a directory");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let other = BodyDirectory::new(Arc::new(SystemDisk), elsewhere.path().to_owned());
    let (mut store, _) = open(directory.path());
    let bodies = store.bodies().clone();
    let file_of = |directory| file(directory, &pattern(1, LEN)).expect("space");
    let (one, two, foreign, long) = (file_of(&bodies), file_of(&bodies), file_of(&other), file_of(&bodies));
    let several = [range(&one, 0, 10), range(&two, 20, 30)].into_iter().collect();
    let of_another_store = [range(&foreign, 0, LEN)].into_iter().collect();
    let envelope = Piece::Memory(Bytes::from(vec![7; 20_000]));
    let too_long = [envelope, range(&long, 0, LEN)].into_iter().collect();
    let empty = [range(&file(&bodies, b"").expect("space"), 0, 0)].into_iter().collect();
    for (seq, payload) in (1..).zip([several, of_another_store, too_long, empty]) {
        let payload: Payload = payload;
        let expected = body(&payload);
        let stored = store.commit(&[put_payload(seq, payload)], Durable::Now).expect("space").remove(0);
        assert!(!is_in_file(&stored), "{seq}");
        assert_eq!(body(&stored), expected, "{seq}");
    }
    drop((one, two, foreign, long));
    assert!(body_files(directory.path()).is_empty());
    assert_eq!(fs::read_dir(elsewhere.path()).expect("a directory").count(), 0);
    drop(store);
    assert_eq!(reopened(directory.path()).len(), 4);
}

#[test]
fn a_file_belongs_to_one_record_and_another_one_gets_a_copy() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let first = in_file(store.bodies(), &pattern(1, LEN)).expect("space");
    let puts = [put_payload(1, first.clone()), put_payload(2, first.clone())];
    let stored = store.commit(&puts, Durable::Now).expect("space");
    let again = store.commit(&[put_payload(3, stored[0].clone())], Durable::Now).expect("space");
    let in_files: Vec<bool> = stored.iter().chain(&again).map(is_in_file).collect();
    assert_eq!(in_files, [true, false, false]);
    drop((puts, first, stored, again));
    remove(&mut store, 1);
    assert!(body_files(directory.path()).is_empty());
    drop(store);
    let found = reopened(directory.path());
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert!(found.values().all(|(_, body)| *body == pattern(1, LEN)));
}

#[test]
fn a_file_is_deleted_with_its_record_as_soon_as_nobody_reads_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let (first, stored) = put_in_file(&mut store, 1);
    let (second, _) = put_in_file(&mut store, 2);
    remove(&mut store, 2);
    assert!(!second.exists() && first.exists());
    remove(&mut store, 1);
    assert_eq!(body(&stored), pattern(1, LEN), "who holds a body can read it after its removal");
    drop(stored);
    assert!(!first.exists());
    // and after a restart
    let (third, _) = put_in_file(&mut store, 3);
    drop(store);
    let (mut store, found) = open(directory.path());
    remove(&mut store, 3);
    assert!(third.exists());
    drop(found);
    assert!(!third.exists());
}

#[test]
fn a_file_that_no_record_refers_to_is_deleted_with_its_last_handle() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = open(directory.path());
    let mut writer = store.bodies().create().expect("space");
    writer.append(b"an upload that is broken off").expect("space");
    let finished = in_file(store.bodies(), &pattern(1, LEN)).expect("space");
    assert_eq!(body_files(directory.path()).len(), 2);
    drop((writer, finished));
    assert!(body_files(directory.path()).is_empty());
}

#[test]
fn records_with_files_are_moved_and_their_files_are_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = LogStore::open_on(Arc::new(SystemDisk), directory.path(), 16 << 10).expect("it opens");
    let placed: BTreeMap<Seq, (PathBuf, Payload)> = (1..=20).map(|seq| (seq, put_in_file(&mut store, seq))).collect();
    // one that is too large for a step
    let large = file(store.bodies(), &pattern(21, LEN)).expect("space");
    let head = Piece::Memory(Bytes::from(vec![9; 12_000]));
    let large = [head, range(&large, 0, LEN)].into_iter().collect();
    let large = store.commit(&[put_payload(21, large)], Durable::Now).expect("space").remove(0);
    assert!(is_in_file(&large));
    let inode = |path: &Path| fs::metadata(path).expect("a file").ino();
    let before: Vec<u64> = placed.values().map(|(path, _)| inode(path)).collect();
    let first = segments(directory.path())[..1].to_vec();
    for seq in 100..200 {
        store.commit(&[put(seq, "passing", &pattern(seq, 3_000))], Durable::Now).expect("space");
        remove(&mut store, seq);
        assert!(compacted(&mut store).is_empty(), "the owner's payloads stay as they are");
    }
    assert!(first.iter().all(|path| !path.exists()), "{:?}", segments(directory.path()));
    assert_eq!(placed.values().map(|(path, _)| inode(path)).collect::<Vec<_>>(), before);
    for (seq, (_, stored)) in &placed {
        assert_eq!(body(stored), pattern(*seq, LEN));
    }
    drop((store, placed));
    let found = reopened(directory.path());
    assert_eq!(found.len(), 21);
    assert_eq!(found[&21].1, body(&large));
    assert_eq!(found[&7].1, pattern(7, LEN));
}

#[test]
fn a_missing_or_damaged_file_is_refused_and_an_empty_one_gives_its_message_up() {
    let whole = pattern(1, LEN);
    type Harm<'a> = (&'a str, &'a dyn Fn(&Path));
    let harm: [Harm<'_>; 5] = [
        ("is missing", &|path| fs::remove_file(path).expect("deletable")),
        ("another length", &|path| fs::write(path, &whole[..500]).expect("writable")),
        ("another length", &|path| fs::write(path, [&whole[..], &whole].concat()).expect("writable")),
        ("does not match its checksum", &|path| {
            OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|file| file.write_all_at(b"damage", 70_000))
                .expect("it is there");
        }),
        ("does not match its checksum", &|path| {
            let len = fs::metadata(path).expect("a file").len();
            fs::write(path, vec![0; len as usize]).expect("writable");
        }),
    ];
    for (what, harm) in harm {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut store, _) = open(directory.path());
        let (path, _) = put_in_file(&mut store, 1);
        put_in_file(&mut store, 2);
        let (dead, _) = put_in_file(&mut store, 3);
        remove(&mut store, 3);
        drop(store);
        let orphan = directory.path().join("bodies").join(dead.file_name().expect("a name"));
        fs::write(&orphan, "a file that is not needed").expect("writable");
        harm(&path);
        let error = LogStore::open(directory.path()).expect_err("it is seen").to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains(what), "{what}: {error}");
        assert!(orphan.exists(), "a directory that cannot be opened is not changed");
        // as the text says: `truncate -s 0` for a damaged file, an empty file for a missing one
        assert!(error.contains("truncate -s 0") || error.contains("make an empty file of that name"), "{error}");
        fs::write(&path, "").expect("writable");
        for _ in 0..2 {
            assert_eq!(reopened(directory.path()).keys().copied().collect::<Vec<_>>(), [2], "{what}");
        }
        assert!(path.exists() && !orphan.exists());
        // when the record is no longer in the log, nobody needs the empty file
        let (mut store, _) = LogStore::open_on(Arc::new(SystemDisk), directory.path(), 4 << 10).expect("it opens");
        for seq in 10..30 {
            store.commit(&[put(seq, "passing", &pattern(seq, 3_000))], Durable::Now).expect("space");
            remove(&mut store, seq);
            compacted(&mut store);
        }
        drop(store);
        assert_eq!(reopened(directory.path()).keys().copied().collect::<Vec<_>>(), [2], "{what}");
        assert!(!path.exists());
    }
}

#[test]
fn of_several_missing_files_each_can_be_given_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    (1..=5).for_each(|seq| drop(put_in_file(&mut store, seq)));
    drop(store);
    body_files(directory.path()).iter().for_each(|path| fs::remove_file(path).expect("deletable"));
    for _ in 0..5 {
        match LogStore::open(directory.path()) {
            Err(OpenError::Missing(path)) => fs::write(path, "").expect("writable"),
            other => panic!("{other:?}"),
        }
    }
    assert!(reopened(directory.path()).is_empty());
}

#[test]
fn files_that_no_live_record_refers_to_are_deleted_at_the_start_and_others_are_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let (needed, _) = put_in_file(&mut store, 1);
    // uploads that a crash interrupts
    let mut upload = store.bodies().create().expect("space");
    upload.append(b"half of it").expect("space");
    std::mem::forget(upload);
    std::mem::forget(in_file(store.bodies(), &pattern(2, LEN)).expect("space"));
    drop(store);
    let bodies = directory.path().join("bodies");
    let others = [
        "README",
        "copy of 1.body",
        "DEADBEEFDEADBEEFDEADBEEFDEADBEEF.body",
        "67e55044-10b1-426f-9247-bb680e5fe0c8.body",
        "67e5504410b1426f9247bb680e5fe0c8.bak",
    ];
    others.iter().for_each(|name| fs::write(bodies.join(name), "mine").expect("writable"));
    assert_eq!(body_files(directory.path()).len(), 3 + others.len());
    assert_eq!(reopened(directory.path()).len(), 1);
    let mut left = body_files(directory.path());
    left.sort();
    let mut expected: Vec<PathBuf> = others.iter().map(|name| bodies.join(name)).chain([needed]).collect();
    expected.sort();
    assert_eq!(left, expected);
}

/// A store with a segment that version 0.1.0 has written.
fn of_an_earlier_version() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let directory = tempfile::tempdir().expect("a directory");
    let written = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/version-0.1.0/buffer.log");
    let path = directory.path().join("0000000000000001.log");
    let content = fs::read(written).expect("it is there");
    fs::write(&path, &content).expect("writable");
    (directory, path, content)
}

fn version_of(path: &Path) -> u16 {
    let content = fs::read(path).expect("a segment");
    u16::from_le_bytes([content[6], content[7]])
}

#[test]
fn a_segment_of_an_earlier_version_gets_no_more_records() {
    let (directory, path, _) = of_an_earlier_version();
    let (mut store, found) = open(directory.path());
    let next = store.next_seq();
    let before = crate::store::records(&path);
    store.commit(&[put(next, "small", b"in the log")], Durable::Now).expect("space");
    put_in_file(&mut store, next + 1);
    let all = segments(directory.path());
    assert_eq!(all.iter().map(|path| version_of(path)).collect::<Vec<_>>(), [2, 4]);
    assert_eq!(crate::store::records(&path), before);
    put_in_file(&mut store, next + 2);
    assert_eq!(segments(directory.path()).len(), 2);
    drop(store);
    assert_eq!(reopened(directory.path()).len(), found.len() + 3);
}

#[test]
fn a_record_with_a_file_in_a_segment_of_an_earlier_version_is_damage() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    put_in_file(&mut store, 1);
    store.commit(&[put(2, "meta", b"behind it")], Durable::Now).expect("space");
    drop(store);
    let path = segments(directory.path()).remove(0);
    let file = OpenOptions::new().write(true).open(&path).expect("a segment");
    // this version has 8 bytes for the segment's number, and no checksum
    file.write_all_at(&2_u16.to_le_bytes(), 6).and_then(|()| file.write_all_at(&[0; 4], 12)).expect("writable");
    let error = LogStore::open(directory.path()).expect_err("it is seen").to_string();
    assert!(error.contains("a record is of an unknown kind"), "{error}");
}

#[test]
fn a_torn_record_with_a_file_is_cut_off_and_its_file_deleted() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, kept, whole) = two_in_files(directory.path());
    let files: Vec<(PathBuf, Vec<u8>)> =
        body_files(directory.path()).into_iter().map(|path| (path.clone(), fs::read(path).expect("a file"))).collect();
    for at in (kept..whole.len()).step_by(3) {
        for (path, content) in &files {
            fs::write(path, content).expect("writable");
        }
        let mut garbled = whole.clone();
        garbled[at] ^= 1;
        for torn in [&whole[..at], &garbled] {
            fs::write(&path, torn).expect("writable");
            assert_eq!(reopened(directory.path()).keys().copied().collect::<Vec<_>>(), [1], "at {at}");
            assert_eq!(body_files(directory.path()).len(), 1);
        }
    }
}

#[test]
fn damage_in_a_record_with_a_file_before_a_later_one_is_seen() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, first, whole) = two_in_files(directory.path());
    for at in (28..first).step_by(3) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).expect("writable");
        let error = LogStore::open(directory.path()).expect_err("the damage is seen").to_string();
        assert!(error.contains("damaged at byte 28"), "{at}: {error}");
    }
}

#[test]
fn a_directory_of_body_files_that_is_deleted_or_moved_while_the_service_runs_is_noticed() {
    let moved = tempfile::tempdir().expect("a directory");
    let harm: [&dyn Fn(&Path); 3] = [
        &|bodies| fs::remove_dir_all(bodies).expect("deletable"),
        &|bodies| fs::rename(bodies, moved.path().join("elsewhere")).expect("movable"),
        &|bodies| {
            fs::remove_dir_all(bodies).and_then(|()| fs::create_dir(bodies)).expect("replaceable");
        },
    ];
    for harm in harm {
        for large in [false, true] {
            let directory = tempfile::tempdir().expect("a directory");
            let (mut store, _) = open(directory.path());
            put_in_file(&mut store, 1);
            let late = if large {
                in_file(store.bodies(), &pattern(2, LEN)).expect("space")
            } else {
                Payload::from_parts(vec![Bytes::from_static(b"small")])
            };
            let _ = fs::remove_dir_all(moved.path().join("elsewhere"));
            harm(&directory.path().join("bodies"));
            let error = store.commit(&[put_payload(2, late)], Durable::Now).expect_err("it is noticed");
            assert!(matches!(&error, StoreError::Gone(path) if path.starts_with(directory.path())), "{error}");
            assert!(error.to_string().contains("bodies"), "{error}");
            store.commit(&[put(3, "meta", b"later")], Durable::Now).expect_err("it stays so");
        }
    }
}

#[test]
fn an_upload_whose_file_somebody_has_deleted_or_truncated_is_not_acknowledged() {
    let harm: [&dyn Fn(&Path); 2] =
        [&|path| fs::remove_file(path).expect("deletable"), &|path| fs::write(path, "short").expect("writable")];
    for harm in harm {
        for synced in [false, true] {
            let directory = tempfile::tempdir().expect("a directory");
            let (mut store, _) = open(directory.path());
            let file = file(store.bodies(), &pattern(1, LEN)).expect("space");
            if synced {
                file.sync().expect("a sound disk");
            }
            harm(file.path());
            let body = [range(&file, 0, LEN)].into_iter().collect();
            let error = store.commit(&[put_payload(1, body)], Durable::Now).expect_err("it is noticed");
            assert!(matches!(&error, StoreError::Gone(path) if path == file.path()), "{error}");
        }
    }
}

#[test]
fn a_stored_body_whose_file_somebody_harms_cannot_be_read_and_all_others_can() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let (deleted, first) = put_in_file(&mut store, 1);
    let (truncated, second) = put_in_file(&mut store, 2);
    let (_, third) = put_in_file(&mut store, 3);
    fs::remove_file(deleted).expect("deletable");
    OpenOptions::new().write(true).open(truncated).and_then(|file| file.set_len(40_000)).expect("writable");
    let mut buffer = vec![0; LEN];
    for payload in [&first, &second] {
        payload.read_all().expect_err("it is not whole");
        payload.for_each_part(|_| Ok(())).expect_err("it is not whole");
        assert!(payload.read_cached(0, &mut buffer) < LEN);
    }
    assert_eq!(second.read(5, 1_000).expect("readable"), pattern(2, LEN)[5..1_005]);
    assert_eq!(body(&third), pattern(3, LEN));
    // the store goes on, and forgets them like any other
    for seq in [1, 2] {
        remove(&mut store, seq);
    }
    drop((first, second));
    put_in_file(&mut store, 4);
    drop(store);
    assert_eq!(reopened(directory.path()).keys().copied().collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn however_many_read_and_write_few_files_are_open() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(directory.path());
    let stored: Vec<Payload> = (1..=100).map(|seq| put_in_file(&mut store, seq).1).collect();
    let bodies = store.bodies().clone();
    let open_files = || {
        let open = fs::read_dir("/proc/self/fd").expect("Linux");
        let paths = open.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        paths.filter(|path| path.starts_with(directory.path())).count()
    };
    std::thread::scope(|scope| {
        for reader in 0..64_usize {
            let (stored, bodies) = (&stored, &bodies);
            scope.spawn(move || {
                for at in (0..100).map(|round| (round * 37 + reader) % stored.len()) {
                    assert_eq!(stored[at].read(5, 10).expect("readable"), pattern(at as Seq + 1, 15)[5..]);
                    drop(in_file(bodies, &[7; 700]).expect("space"));
                }
            });
        }
        for _ in 0..100 {
            let open = open_files();
            assert!(open <= MAX_OPEN_FILES, "{open} files are open");
        }
    });
    assert_eq!(body_files(directory.path()).len(), 100);
}

#[test]
fn a_body_that_is_missing_is_given_up_if_the_segment_that_may_have_removed_it_was() {
    let directory = tempfile::tempdir().expect("a directory");
    let open_small = || LogStore::open_on(Arc::new(SystemDisk), directory.path(), 64 << 10);
    let (mut store, _) = open_small().expect("the store opens");
    let (path, stored) = put_in_file(&mut store, 1);
    drop(stored);
    // The segment is full, so the removal is in the next one.
    store.commit(&[put(2, "full", &[2; 64 << 10])], Durable::Now).expect("space");
    remove(&mut store, 1);
    store.commit(&[put(3, "full", &[3; 64 << 10])], Durable::Now).expect("space");
    store.commit(&[put(4, "behind", b"them")], Durable::Now).expect("space");
    drop(store);
    assert!(!path.exists());
    let [_, second, _] = &segments(directory.path())[..] else { panic!("three segments") };
    OpenOptions::new().write(true).open(second).expect("a file").set_len(0).expect("truncated");
    let (mut store, found) = open_small().expect("the store opens");
    assert_eq!(found.iter().map(|record| record.seq).collect::<Vec<_>>(), [2, 4]);
    store.commit(&[put(5, "goes", b"on")], Durable::Now).expect("space");
}
