//! Power failures while messages with idempotency keys are posted and deleted.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use actix::Addr;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use user_http_actors::codec::{Format, ForwardedType, OutgoingMessage};
use user_http_actors::messages::{DeleteMessage, Drain, SendMessageToUserManager};
use user_http_actors::payload::Payload;
use user_http_actors::store::OpenError;
use user_http_actors::store::disk::Disk;
use user_http_actors::store::log::LogStore;
use user_http_actors::system::OpenStore;
use user_http_actors::{Accepted, Error, IdempotencyKey, RequestKey, UserManagerPublisher};

use crate::crash::disk::{EIO, Fault, FaultKind, RecordingDisk, Unsynced, rebuild};
use crate::crash::power_loss::SEGMENT_BYTES;
use crate::support::unsynced_disk::UnsyncedDisk;

const MESSAGES: u8 = 16;

fn key(number: u8, body: u8) -> IdempotencyKey {
    IdempotencyKey::new(b"worker", RequestKey { key: &[number], body_sha256: [body; 32] })
}

fn start(disk: Arc<dyn Disk>, directory: &Path) -> Addr<UserManagerPublisher> {
    let (store, recovered) = loop {
        match LogStore::open_on(Arc::clone(&disk), directory, SEGMENT_BYTES) {
            Ok(opened) => break opened,
            // its thread is about to end
            Err(OpenError::InUse(_)) => thread::yield_now(),
            Err(error) => panic!("the store does not open: {error}"),
        }
    };
    let store = OpenStore::of_log("test", directory, store, recovered);
    let actor = |store, found, address| UserManagerPublisher::new(store, found, 1 << 30, None, address);
    store.start(|_| {}, actor).expect("sound records")
}

fn message(size: usize) -> OutgoingMessage {
    OutgoingMessage {
        kind: ForwardedType::FrameRendered,
        user_id: "worker".into(),
        format: Format::Pickle,
        body: Payload::from_parts(vec![Bytes::from(vec![1; size])]),
    }
}

async fn post(publisher: &Addr<UserManagerPublisher>, key: IdempotencyKey, size: usize) -> Result<Accepted, Error> {
    let sent = SendMessageToUserManager { message: message(size), key: Some(key) };
    publisher.send(sent).await.expect("alive")
}

async fn is_deleted(publisher: &Addr<UserManagerPublisher>, number: u8) -> bool {
    let message_id = key(number, 1).message_id();
    publisher.send(DeleteMessage { message_id }).await.expect("alive").is_ok()
}

/// What was answered by a number of disk operations.
#[derive(Clone, Default)]
struct Answered {
    accepted: BTreeSet<u8>,
    /// Deletions that were requested, if not answered.
    deleted: BTreeSet<u8>,
}

async fn campaign(disk: &RecordingDisk, directory: &Path, random: &mut StdRng) -> Vec<(usize, Answered)> {
    let publisher = start(Arc::new(disk.clone()), directory);
    let (mut answered, mut history) = (Answered::default(), Vec::new());
    for number in 0..MESSAGES {
        let size = [10, 500, 3_000][random.random_range(0..3)];
        let accepted = post(&publisher, key(number, 1), size).await;
        assert!(matches!(accepted, Ok(Accepted::First { .. })), "{accepted:?}");
        answered.accepted.insert(number);
        history.push((disk.len(), answered.clone()));
        if number > 3 && random.random_bool(0.8) {
            let oldest = (0..number).find(|oldest| !answered.deleted.contains(oldest)).expect("some are left");
            answered.deleted.insert(oldest);
            history.push((disk.len(), answered.clone()));
            assert!(is_deleted(&publisher, oldest).await);
        }
    }
    publisher.send(Drain).await.expect("it stops");
    history
}

async fn check(image: &Path, answered: &Answered, what: &str) {
    let publisher = start(Arc::new(UnsyncedDisk), image);
    for number in 0..MESSAGES {
        let retried = post(&publisher, key(number, 1), 10).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let is_replay = matches!(retried, Accepted::Replayed { .. });
        assert!(is_replay || !answered.accepted.contains(&number), "{what}: key {number} is lost");
        let other = post(&publisher, key(number, 2), 10).await;
        assert!(matches!(other, Err(Error::KeyReused)), "{what}: {other:?}");
        let is_there = is_deleted(&publisher, number).await;
        assert!(
            is_there || answered.deleted.contains(&number),
            "{what}: message {number} is lost, and its key is there"
        );
    }
    publisher.send(Drain).await.expect("it stops");
}

#[actix::test]
async fn a_power_failure_leaves_no_accepted_key_out_and_no_key_without_its_message() {
    for seed in 1..3 {
        let directory = tempfile::tempdir().expect("a directory");
        let mut random = StdRng::seed_from_u64(seed);
        let disk = RecordingDisk::default();
        let history = campaign(&disk, directory.path(), &mut random).await;
        let events = disk.events();
        for count in (0..=events.len()).filter(|count| count % 3 == seed as usize % 3) {
            let answered = match history.partition_point(|(at, _)| *at <= count) {
                0 => Answered::default(),
                at => history[at - 1].1.clone(),
            };
            let image = tempfile::tempdir().expect("a directory");
            let unsynced = if random.random_bool(0.5) { Unsynced::Nothing } else { Unsynced::Some };
            rebuild(&events[..count], unsynced, &mut random, image.path());
            check(image.path(), &answered, &format!("seed {seed}, {count} of {} operations", events.len())).await;
        }
    }
}

#[actix::test]
async fn a_key_that_is_known_after_a_failed_sync_and_a_restart_is_known_after_a_power_failure() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = RecordingDisk::default();
    let publisher = start(Arc::new(disk.clone()), directory.path());
    disk.set_fault(Some(Fault { kind: FaultKind::LastSync, at: 3, error: EIO, for_good: true }));
    let mut answered = Answered::default();
    for number in 0..4 {
        if post(&publisher, key(number, 1), 500).await.is_ok() {
            answered.accepted.insert(number);
        }
    }
    assert!(disk.was_hit() && answered.accepted.len() < 4, "{:?}", answered.accepted);
    publisher.send(Drain).await.expect("it stops");
    drop(publisher);
    disk.set_fault(None);

    let publisher = start(Arc::new(disk.clone()), directory.path());
    let mut replayed = 0;
    for number in 0..4 {
        let retried = post(&publisher, key(number, 1), 500).await.expect("a sound disk");
        replayed += usize::from(matches!(retried, Accepted::Replayed { .. }));
        answered.accepted.insert(number);
        let image = tempfile::tempdir().expect("a directory");
        rebuild(&disk.events(), Unsynced::Nothing, &mut StdRng::seed_from_u64(1), image.path());
        check(image.path(), &answered, &format!("a retry of message {number}")).await;
    }
    assert!(replayed > 0, "the page cache has what was refused");
}
