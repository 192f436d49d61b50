//! A disk that fails for a moment while space is given back: the owner still learns where its records are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Put, Seq, Store};

use crate::crash::disk::{EMFILE, ENOSPC, Fault, FaultKind, RecordingDisk};

const SEGMENT: u64 = 64 << 10;

/// Files below `directory` that are deleted, and that this process keeps open.
fn deleted_and_open(directory: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").expect("Linux").filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let deleted = open.filter(|path| path.starts_with(directory) && path.to_string_lossy().ends_with(" (deleted)"));
    deleted.count()
}

fn body(seq: Seq, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at * 31 + seq * 7) as u8).collect()
}

/// Puts a large record and small ones, then gives space back, while operation `at` fails. Returns whether there was
/// one.
fn gives_space_back(at: usize, error: i32) -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let (mut store, _) = LogStore::open_on(Arc::new(disk.clone()), directory.path(), SEGMENT).expect("the store opens");
    let mut payloads: BTreeMap<Seq, Payload> = BTreeMap::new();
    let mut commit = |store: &mut LogStore, seq: Seq, len: usize| {
        let meta = Bytes::from_static(b"meta");
        let put = Change::Put(Put { seq, meta, body: Payload::from_parts(vec![Bytes::from(body(seq, len))]) });
        let stored = store.commit(&[put], Durable::Now).expect("space");
        payloads.extend([seq].into_iter().zip(stored));
    };
    commit(&mut store, 1, 200_000);
    commit(&mut store, 2, 500);
    for seq in 3..60 {
        commit(&mut store, seq, 10_000);
        store.commit(&[Change::Remove(seq)], Durable::Now).expect("space");
    }
    payloads.retain(|seq, _| *seq < 3);
    disk.set_fault(Some(Fault { kind: FaultKind::Any, at, error, for_good: false }));
    let mut failures = 0;
    loop {
        match store.compact() {
            Ok(step) => {
                payloads.extend(step.moved);
                if !step.more {
                    break;
                }
            }
            Err(refused) => {
                assert!(!refused.is_final(), "operation {at}: {refused}");
                failures += 1;
                assert!(failures < 3, "operation {at} fails once: {refused}");
            }
        }
    }
    let what = format!("operation {at} fails with error {error}");
    assert_eq!(deleted_and_open(directory.path()), 0, "{what}: no deleted file is kept open");
    assert!(!directory.path().join("MOVING").exists(), "{what}");
    for (seq, len) in [(1, 200_000), (2, 500)] {
        assert_eq!(payloads[&seq].read_all().expect("readable"), body(seq, len), "{what}");
    }
    drop(store);
    let was_hit = disk.was_hit();
    disk.set_fault(None);
    let (_, found) = LogStore::open_on(Arc::new(disk.clone()), directory.path(), SEGMENT).expect("the store opens");
    assert_eq!(found.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2], "{what}");
    was_hit
}

#[test]
fn whichever_operation_fails_while_space_is_given_back_the_owner_learns_where_its_records_are() {
    for error in [ENOSPC, EMFILE] {
        let failed = (1..).take_while(|&at| gives_space_back(at, error)).count();
        assert!(failed > 15, "{failed} operations");
    }
}
