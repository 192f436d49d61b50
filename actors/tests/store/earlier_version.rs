//! A store that version 0.1.0 wrote before it was killed. `data/version-0.1.0` has the segments of its data directory;
//! all but 256 of the zeros at their ends are cut off.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actix::System;
use user_http_actors::messages::{
    Drain, GetBufferState, GetOutboxState, LeaseBufferMsg, PeekBufferMsg, TakeNextMessage,
};
use user_http_actors::system::OpenStore;
use user_http_actors::{BufferActor, Error, UserManagerPublisher};

/// A data directory with these segments.
fn data_directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["buffer", "outbox"] {
        let written = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/version-0.1.0/{name}.log"));
        let store = directory.path().join(name);
        fs::create_dir(&store).expect("a directory");
        fs::copy(written, store.join("0000000000000001.log")).expect("the segment is there");
    }
    let path = directory.path().to_owned();
    (directory, path)
}

/// Longer than these segments will be kept.
const LONG: Duration = Duration::from_secs(1_000 * 365 * 86_400);

#[test]
fn every_message_for_a_worker_is_found_and_those_that_were_fetched_are_not() {
    System::new().block_on(async {
        let (_directory, path) = data_directory();
        let buffer = OpenStore::open(Some(&path), "buffer")
            .and_then(|store| store.start(|_| {}, |store, found, _| BufferActor::new(store, found, 1 << 30, LONG)))
            .expect("the store opens");
        let peek = async |uuid: &str| {
            buffer.send(PeekBufferMsg { buffer_uuid: uuid.into(), wait: Duration::ZERO }).await.expect("alive")
        };
        for uuid in ["job-0", "job-1"] {
            assert!(matches!(peek(uuid).await, Err(Error::NoBufferMsg)), "{uuid} was fetched");
        }
        for uuid in ["job-2", "job-3", "job-4"] {
            let view = peek(uuid).await.unwrap_or_else(|error| panic!("{uuid}: {error}"));
            let pickle = view.payload.read_all().expect("readable");
            assert!(pickle.starts_with(b"\x80") && pickle.windows(6).any(|part| part == b"FRAMES"), "{pickle:?}");
        }
        let replaced = peek("job-5").await.expect("it is there").payload.read_all().expect("readable");
        assert!(replaced.windows(5).any(|part| part == b"later"), "{replaced:?}");
        let blend = peek("blend").await.expect("it is there").blend.expect("a .blend file");
        assert_eq!(blend.path.as_deref(), Some("scene.blend"));
        assert_eq!(buffer.send(GetBufferState).await.expect("alive").messages, 5);
        // and it goes on
        let leased = buffer
            .send(LeaseBufferMsg { buffer_uuid: "job-2".into(), max_single_write: 0, wait: Duration::ZERO, seen: None })
            .await;
        leased.expect("alive").expect("it is there").lease.delivered();
        buffer.send(Drain).await.expect("alive");
    });
}

#[test]
fn every_message_for_the_user_manager_is_found_in_its_order() {
    System::new().block_on(async {
        let (_directory, path) = data_directory();
        let actor = |store, found, address| UserManagerPublisher::new(store, found, 1 << 30, None, address);
        let publisher =
            OpenStore::open(Some(&path), "outbox").and_then(|store| store.start(|_| {}, actor)).expect("it opens");
        assert_eq!(publisher.send(GetOutboxState).await.expect("alive").messages, 5, "one was deleted");
        for frame in 1..5_u8 {
            let next = publisher.send(TakeNextMessage { lease: LONG / 1_000, wait: false }).await.expect("alive");
            let next = next.expect("no broker").expect("a message");
            let body = next.payload.read_all().expect("readable");
            next.lease.delivered();
            assert!(body.windows(100).any(|part| part == [frame; 100]), "{frame}: {body:?}");
        }
        assert_eq!(publisher.send(GetOutboxState).await.expect("alive").messages, 5);
    });
}
