//! A segment that somebody truncates or changes under the running service: its records stay where they are, everything
//! else goes on, and space comes back.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use user_http_actors::payload::Payload;
use user_http_actors::store::disk::SystemDisk;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Seq, Store};

use crate::store::{body, compacted, pattern, put, reopened, segments};

const SEGMENT: u64 = 64 << 10;

/// The log, and the bodies that its owner knows of.
struct Owner {
    store: LogStore,
    bodies: BTreeMap<Seq, Payload>,
}

impl Owner {
    fn open(directory: &Path) -> Self {
        let (store, found) = LogStore::open_on(Arc::new(SystemDisk), directory, SEGMENT).expect("the store opens");
        Self { store, bodies: found.into_iter().map(|record| (record.seq, record.body)).collect() }
    }

    fn put(&mut self, seq: Seq, len: usize) {
        let stored = self.store.commit(&[put(seq, "meta", &pattern(seq, len))], Durable::Now).expect("space");
        self.bodies.extend([seq].into_iter().zip(stored));
    }

    fn remove(&mut self, seqs: impl IntoIterator<Item = Seq>) {
        for seq in seqs {
            self.store.commit(&[Change::Remove(seq)], Durable::Now).expect("space");
            self.bodies.remove(&seq);
        }
    }

    fn compact(&mut self) {
        self.bodies.extend(compacted(&mut self.store));
    }

    /// Puts and removes so much that every segment before the newest is emptied, some times over.
    fn turn_over(&mut self, from: Seq) {
        for seq in from..from + 20 {
            self.put(seq, 70_000);
            self.remove([seq]);
            self.compact();
        }
    }
}

fn size(directory: &Path) -> u64 {
    segments(directory).iter().map(|path| fs::metadata(path).expect("a segment").len()).sum()
}

/// Records 1 to 9 in one segment, and one in the next; 2, 4, 9 and 10 are removed.
fn with_a_full_segment(directory: &Path) -> Owner {
    let mut owner = Owner::open(directory);
    (1..=8).for_each(|seq| owner.put(seq, 8_000));
    owner.remove([2, 4]);
    (9..=10).for_each(|seq| owner.put(seq, 2_000));
    owner.remove([9, 10]);
    assert_eq!(segments(directory).len(), 2);
    owner
}

#[test]
fn a_truncated_segment_stays_and_the_space_behind_it_comes_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut owner = with_a_full_segment(directory.path());
    let oldest = segments(directory.path()).remove(0);
    let whole = fs::read(&oldest).expect("a segment");
    OpenOptions::new().write(true).open(&oldest).and_then(|file| file.set_len(30_000)).expect("writable");
    owner.turn_over(100);
    assert!(size(directory.path()) < 6 * SEGMENT, "{} bytes are left", size(directory.path()));
    assert_eq!(body(&owner.bodies[&1]), pattern(1, 8_000), "what is not cut off can be read");
    owner.bodies[&8].read_all().expect_err("this is cut off");

    // With a copy of the file put back, everything that was not removed is found.
    owner.remove([6]);
    owner.turn_over(300);
    drop(owner);
    fs::write(&oldest, whole).expect("writable");
    let found = reopened(directory.path());
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1, 3, 5, 7, 8]);
    assert_eq!(found[&8].1, pattern(8, 8_000));
}

#[test]
fn once_nothing_in_a_truncated_segment_is_needed_it_is_given_back_with_what_stands_for_those_behind_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut owner = with_a_full_segment(directory.path());
    let oldest = segments(directory.path()).remove(0);
    OpenOptions::new().write(true).open(&oldest).and_then(|file| file.set_len(30_000)).expect("writable");
    owner.turn_over(100);
    assert!(segments(directory.path()).len() > 10, "an empty file stands for each segment between");
    owner.remove([1, 3, 5, 6, 7, 8]);
    owner.turn_over(300);
    assert!(segments(directory.path()).len() < 5, "{:?}", segments(directory.path()));
    drop(owner);
    assert!(reopened(directory.path()).is_empty());
}

#[test]
fn a_record_that_has_changed_on_the_disk_is_not_moved_as_if_it_were_sound() {
    for at in [28 + 9, 28 + 1_000] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut owner = with_a_full_segment(directory.path());
        let oldest = segments(directory.path()).remove(0);
        let file = OpenOptions::new().write(true).open(&oldest).expect("a segment");
        file.write_all_at(b"damage", at).expect("writable");
        owner.turn_over(100);
        assert!(oldest.exists() && size(directory.path()) < 6 * SEGMENT, "{} bytes are left", size(directory.path()));
    }
}

#[test]
fn a_large_record_that_is_truncated_while_it_is_moved_stays_where_it_is() {
    for steps in [0, 1, 5] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut owner = Owner::open(directory.path());
        owner.put(1, 1 << 20);
        for seq in 2..60 {
            owner.put(seq, 30_000);
            owner.remove([seq]);
        }
        for _ in 0..steps {
            assert!(owner.store.compact().expect("a sound disk").moved.is_empty());
        }
        let oldest = segments(directory.path()).remove(0);
        OpenOptions::new().write(true).open(&oldest).and_then(|file| file.set_len(700_000)).expect("writable");
        owner.turn_over(100);
        let left = size(directory.path());
        assert!(left < 700_000 + 6 * SEGMENT, "{left} bytes are left after {steps} steps");
        assert!(!directory.path().join("MOVING").exists());
        assert_eq!(owner.bodies[&1].read(0, 1_000).expect("readable"), pattern(1, 1_000));
    }
}

#[test]
fn several_segments_that_cannot_be_read_keep_no_other_space() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut owner = Owner::open(directory.path());
    for seq in 1..=40 {
        owner.put(seq, 8_000);
    }
    let all = segments(directory.path());
    assert!(all.len() > 3);
    for path in [&all[0], &all[2]] {
        OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(20_000)).expect("writable");
    }
    owner.remove(21..=40);
    owner.remove([2, 5]);
    owner.turn_over(100);
    owner.turn_over(300);
    assert!(size(directory.path()) < 8 * SEGMENT, "{} bytes are left", size(directory.path()));
    for seq in 10..=18 {
        assert_eq!(body(&owner.bodies[&seq]), pattern(seq, 8_000), "{seq} is in a sound segment");
    }
}
