//! File references in the buffer actor: found until the TTL has passed, also after a restart, and bounded.

use crate::support::log;
use std::time::Duration;

use actix::Addr;
use user_http_actors::blend::{BlendDigest, Stamp};
use user_http_actors::messages::{AddFileReference, Drain, FileReference, FindFileReferences};
use user_http_actors::payload::Payload;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, Store, StoreError};
use user_http_actors::system::OpenStore;
use user_http_actors::{BufferActor, Error};

use log::open;

const DAY: Duration = Duration::from_secs(86_400);

/// How much the TTL may be exceeded.
const RENEWAL: Duration = Duration::from_secs(1);

fn start_on(store: OpenStore, ttl: Duration) -> Addr<BufferActor> {
    store.start(|_| {}, |store, found, _| BufferActor::new(store, found, 1 << 20, ttl)).expect("a sound store")
}

fn start(ttl: Duration) -> Addr<BufferActor> {
    start_on(OpenStore::new("test", Box::new(MemoryStore)), ttl)
}

fn reference(digest: u32, path: &str, inode: u64) -> FileReference {
    FileReference {
        digest: named(digest),
        path: path.to_owned(),
        stamp: Stamp { len: 7, device: 1, inode, modified: (5, 6) },
    }
}

fn named(digest: u32) -> BlendDigest {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&digest.to_be_bytes());
    bytes.into()
}

async fn add(buffer: &Addr<BufferActor>, reference: FileReference) -> Result<(), Error> {
    buffer.send(AddFileReference(reference)).await.expect("alive")
}

async fn find(buffer: &Addr<BufferActor>, digest: u32) -> Vec<FileReference> {
    buffer.send(FindFileReferences(named(digest))).await.expect("alive").expect("found or not").0
}

#[actix::test]
async fn files_of_one_digest_are_found_newest_first_and_each_path_once() {
    let buffer = start(DAY);
    assert!(find(&buffer, 1).await.is_empty());
    for (path, inode) in [("a", 1), ("b", 2), ("a", 3)] {
        add(&buffer, reference(1, path, inode)).await.expect("space");
    }
    add(&buffer, reference(2, "a", 4)).await.expect("space");
    assert_eq!(find(&buffer, 1).await, [reference(1, "a", 3), reference(1, "b", 2)]);
    assert_eq!(find(&buffer, 2).await, [reference(2, "a", 4)]);
}

#[actix::test]
async fn the_newest_64_files_of_one_digest_are_found_also_after_a_restart() {
    let directory = tempfile::tempdir().expect("a folder");
    let newest: Vec<_> = (0..100).rev().take(64).map(|inode| reference(1, &inode.to_string(), inode)).collect();
    for round in 0..2 {
        let (store, recovered) = open(directory.path()).await;
        assert_eq!(recovered.len(), if round == 0 { 0 } else { 64 });
        let buffer = start_on(OpenStore::of_log("test", directory.path(), store, recovered), DAY);
        if round == 0 {
            for inode in 0..100 {
                add(&buffer, reference(1, &inode.to_string(), inode)).await.expect("space");
            }
        }
        assert_eq!(find(&buffer, 1).await, newest);
        buffer.send(Drain).await.expect("drained");
    }
}

#[actix::test]
async fn a_reference_is_found_after_a_restart_and_one_that_was_replaced_leaves_no_record() {
    let directory = tempfile::tempdir().expect("a folder");
    for round in 0..3 {
        let (store, recovered) = open(directory.path()).await;
        assert_eq!(recovered.len(), if round == 0 { 0 } else { 2 }, "{recovered:?}");
        let buffer = start_on(OpenStore::of_log("test", directory.path(), store, recovered), DAY);
        if round > 0 {
            assert_eq!(find(&buffer, 1).await, [reference(1, "a", round - 1), reference(1, "b", 9)]);
        }
        add(&buffer, reference(1, "b", 9)).await.expect("space");
        // within the time in which the same reference would not be written again
        add(&buffer, reference(1, "a", round)).await.expect("space");
        buffer.send(Drain).await.expect("drained");
    }
}

#[actix::test]
async fn a_reference_expires_and_its_record_is_removed() {
    let directory = tempfile::tempdir().expect("a folder");
    let ttl = Duration::from_millis(500);
    let (store, recovered) = open(directory.path()).await;
    let buffer = start_on(OpenStore::of_log("test", directory.path(), store, recovered), ttl);
    add(&buffer, reference(1, "a", 1)).await.expect("space");
    let added = std::time::Instant::now();
    while !find(&buffer, 1).await.is_empty() {
        assert!(added.elapsed() < Duration::from_secs(30), "it does not expire");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(added.elapsed() >= ttl + RENEWAL - Duration::from_millis(20), "{:?}", added.elapsed());
    buffer.send(Drain).await.expect("drained");
    // what has expired but is still there when the actor stops is removed by the next one
    let recovered = loop {
        let (store, recovered) = open(directory.path()).await;
        if recovered.is_empty() || added.elapsed() > Duration::from_secs(30) {
            break recovered;
        }
        let buffer = start_on(OpenStore::of_log("test", directory.path(), store, recovered), ttl);
        assert!(find(&buffer, 1).await.is_empty());
        buffer.send(Drain).await.expect("drained");
    };
    assert!(recovered.is_empty(), "{recovered:?}");
}

#[actix::test]
async fn the_oldest_references_make_space_for_new_ones() {
    let buffer = start(DAY);
    // 4 KiB each, 64 MiB in all
    let path = "x".repeat(4096);
    for digest in 0..20_000 {
        add(&buffer, reference(digest, &path, 1)).await.expect("space");
    }
    assert!(find(&buffer, 0).await.is_empty());
    assert!(find(&buffer, 5_000).await.is_empty());
    assert_eq!(find(&buffer, 10_000).await.len(), 1);
    assert_eq!(find(&buffer, 19_999).await.len(), 1);
}

/// A store without space.
struct Full;

impl Store for Full {
    fn commit(&mut self, _: &[Change], _: Durable) -> Result<Vec<Payload>, StoreError> {
        Err(StoreError::NoSpace("part of the test".to_owned()))
    }
}

#[actix::test]
async fn a_reference_that_cannot_be_stored_is_an_error_and_not_found() {
    let buffer = start_on(OpenStore::new("test", Box::new(Full)), DAY);
    let added = add(&buffer, reference(1, "a", 1)).await;
    assert!(matches!(added, Err(Error::Store(StoreError::NoSpace(_)))), "{added:?}");
    assert!(find(&buffer, 1).await.is_empty());
}
