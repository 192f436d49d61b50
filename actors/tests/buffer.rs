//! The buffer actor: messages are added, leased, delivered, offered again, and forgotten in time.

use crate::support::log;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use user_http_actors::broker::Fingerprint;
use user_http_actors::codec::BufferMsg;
use user_http_actors::lease::LeasedBufferMsg;
use user_http_actors::messages::{
    AddBufferMsg, BrokerDelivery, BufferState, Drain, GetBufferState, LeaseBufferMsg, PeekBufferMsg,
};
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, Put, Store, StoreError};
use user_http_actors::system::OpenStore;
use user_http_actors::{BufferActor, Error};

use log::open;

const DAY: Duration = Duration::from_secs(86_400);

/// Room for whatever these tests leave.
const ROOM: u64 = 1 << 20;

fn start(max_bytes: u64, ttl: Duration) -> Addr<BufferActor> {
    start_on(OpenStore::new("test", Box::new(MemoryStore)), max_bytes, ttl)
}

fn start_on(store: OpenStore, max_bytes: u64, ttl: Duration) -> Addr<BufferActor> {
    store.start(|_| {}, |store, found, _| BufferActor::new(store, found, max_bytes, ttl)).expect("a sound store")
}

/// An actor on the log in `directory`.
async fn reopen(directory: &Path) -> Addr<BufferActor> {
    let (store, recovered) = open(directory).await;
    start_on(OpenStore::of_log("test", directory, store, recovered), ROOM, DAY)
}

fn message(body: &[u8]) -> BufferMsg {
    BufferMsg { pickle: Payload::from_parts(vec![Bytes::copy_from_slice(body)]), blend: None, sha256: None }
}

async fn add(buffer: &Addr<BufferActor>, uuid: &str, body: &[u8]) -> Result<(), Error> {
    buffer.send(AddBufferMsg { buffer_uuid: uuid.into(), message: message(body), delivery: None }).await.expect("alive")
}

async fn lease(buffer: &Addr<BufferActor>, uuid: &str) -> Result<LeasedBufferMsg, Error> {
    buffer
        .send(LeaseBufferMsg { buffer_uuid: uuid.into(), max_single_write: 0, wait: Duration::ZERO, seen: None })
        .await
        .expect("alive")
}

async fn state(buffer: &Addr<BufferActor>) -> BufferState {
    buffer.send(GetBufferState).await.expect("alive")
}

fn body(leased: &LeasedBufferMsg) -> Vec<u8> {
    leased.view.payload.read_all().expect("readable").to_vec()
}

#[actix::test]
async fn a_delivered_message_is_not_there_again() {
    let buffer = start(ROOM, DAY);
    add(&buffer, "a", b"message").await.expect("accepted");
    let leased = lease(&buffer, "a").await.expect("it is there");
    assert_eq!(body(&leased), b"message");
    leased.lease.delivered();
    assert!(matches!(lease(&buffer, "a").await, Err(Error::NoBufferMsg)));
    let state = state(&buffer).await;
    assert_eq!((state.messages, state.bytes, state.in_delivery, state.delivered_total), (0, 0, 0, 1));
}

#[actix::test]
async fn a_lease_that_is_dropped_offers_the_message_again_at_once() {
    let buffer = start(ROOM, DAY);
    add(&buffer, "a", b"message").await.expect("accepted");
    for _ in 0..3 {
        drop(lease(&buffer, "a").await.expect("it is there again"));
    }
    assert_eq!(state(&buffer).await.in_delivery, 0);
}

#[actix::test]
async fn a_lease_whose_requester_has_hung_up_does_not_keep_the_message() {
    let buffer = start(ROOM, DAY);
    add(&buffer, "a", b"message").await.expect("accepted");
    // asked for, and not waited for
    drop(buffer.send(LeaseBufferMsg {
        buffer_uuid: "a".into(),
        max_single_write: 0,
        wait: Duration::ZERO,
        seen: None,
    }));
    assert!(lease(&buffer, "a").await.is_ok());
}

/// Sends a part of a message of 100 bytes; whether that delivers it.
async fn send_part(buffer: &Addr<BufferActor>, version: &str, part: Range<u64>, proven: bool) -> bool {
    let mut lease = lease(buffer, "a").await.expect("it is there").lease;
    lease.begin(version, 100, part.start, proven);
    lease.handed_over(part.end - part.start);
    lease.completes()
}

#[actix::test]
async fn parts_that_follow_one_another_complete_a_delivery_and_others_do_not_count() {
    let buffer = start(1_000, DAY);
    add(&buffer, "a", &[0; 100]).await.expect("accepted");
    for (version, part, proven, completes) in [
        ("1", 0..0, false, false),
        ("1", 90..100, false, false),
        ("1", 0..40, false, false),
        ("1", 10..20, false, false),
        ("1", 41..100, false, false),
        ("1", 40..80, false, false),
        // another version of the file: nobody has any of it yet
        ("2", 80..100, false, false),
        ("1", 80..100, false, true),
        ("2", 80..90, true, false),
        ("2", 90..99, false, false),
        ("2", 99..100, false, true),
        // what was covered of the first version is forgotten by now
        ("1", 80..100, false, false),
        ("3", 50..100, true, true),
    ] {
        assert_eq!(send_part(&buffer, version, part.clone(), proven).await, completes, "{part:?} of version {version}");
    }
    add(&buffer, "a", &[1; 100]).await.expect("accepted");
    assert!(!send_part(&buffer, "3", 50..100, false).await, "it is another message");
}

#[actix::test]
async fn of_two_requests_one_gets_the_message_and_the_other_the_reason_why_not() {
    let buffer = start(ROOM, DAY);
    add(&buffer, "a", b"message").await.expect("accepted");
    let first = lease(&buffer, "a").await.expect("it is there");
    assert!(matches!(lease(&buffer, "a").await, Err(Error::InDelivery)));
    assert!(buffer.send(PeekBufferMsg { buffer_uuid: "a".into(), wait: Duration::ZERO }).await.expect("alive").is_ok());
    drop(first);
}

#[actix::test]
async fn who_asks_before_the_last_chunk_is_told_so_although_the_delivery_breaks_off_right_after() {
    let buffer = start(ROOM, DAY);
    add(&buffer, "a", b"message").await.expect("accepted");
    let first = lease(&buffer, "a").await.expect("it is there");
    let second =
        buffer.send(LeaseBufferMsg { buffer_uuid: "a".into(), max_single_write: 0, wait: Duration::ZERO, seen: None });
    // behind the request in the mailbox
    drop(first);
    assert!(matches!(second.await.expect("alive"), Err(Error::InDelivery)));
    assert!(lease(&buffer, "a").await.is_ok());
}

#[actix::test]
async fn who_asks_during_the_last_chunk_waits_for_the_outcome() {
    for delivered in [true, false] {
        let buffer = start(ROOM, DAY);
        add(&buffer, "a", b"message").await.expect("accepted");
        let first = lease(&buffer, "a").await.expect("it is there");
        first.lease.finishing();
        let second = buffer.send(LeaseBufferMsg {
            buffer_uuid: "a".into(),
            max_single_write: 0,
            wait: Duration::ZERO,
            seen: None,
        });
        let mut peek = Box::pin(buffer.send(PeekBufferMsg { buffer_uuid: "a".into(), wait: Duration::ZERO }));
        assert!(futures::poll!(&mut peek).is_pending());
        // in the mailbox by the time that this is answered
        assert_eq!(state(&buffer).await.in_delivery, 1);
        if delivered {
            first.lease.delivered();
            assert!(matches!(second.await.expect("alive"), Err(Error::NoBufferMsg)));
            assert!(matches!(peek.await.expect("alive"), Err(Error::NoBufferMsg)));
        } else {
            drop(first);
            assert_eq!(peek.await.expect("alive").expect("it is offered again").payload.len(), 7);
            assert_eq!(body(&second.await.expect("alive").expect("it is offered again")), b"message");
        }
    }
}

#[actix::test]
async fn the_message_is_in_delivery_for_a_waiter_whose_last_chunk_does_not_end() {
    let buffer = start(ROOM, DAY);
    add(&buffer, "a", b"message").await.expect("accepted");
    let stalled = lease(&buffer, "a").await.expect("it is there");
    stalled.lease.finishing();
    assert!(matches!(lease(&buffer, "a").await, Err(Error::InDelivery)));
    assert!(buffer.send(PeekBufferMsg { buffer_uuid: "a".into(), wait: Duration::ZERO }).await.expect("alive").is_ok());
    stalled.lease.delivered();
    assert!(matches!(lease(&buffer, "a").await, Err(Error::NoBufferMsg)));
}

#[actix::test]
async fn a_later_message_replaces_the_earlier_one_even_during_its_delivery() {
    let buffer = start(ROOM, DAY);
    add(&buffer, "a", b"earlier").await.expect("accepted");
    let earlier = lease(&buffer, "a").await.expect("it is there");
    add(&buffer, "a", b"later").await.expect("accepted");
    assert_eq!(body(&earlier), b"earlier");
    earlier.lease.delivered();
    let later = lease(&buffer, "a").await.expect("the later one is there");
    assert_eq!(body(&later), b"later");
    assert_ne!(later.view.version, earlier.view.version);
    later.lease.delivered();
    assert_eq!(state(&buffer).await.messages, 0);
}

fn delivery(redelivered: bool, uuid: &str, body: &[u8]) -> AddBufferMsg {
    let delivery = BrokerDelivery { fingerprint: Fingerprint::new(body, None), redelivered };
    AddBufferMsg { buffer_uuid: uuid.into(), message: message(body), delivery: Some(delivery) }
}

#[actix::test]
async fn a_redelivery_does_not_restore_a_delivered_message_even_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    for round in 0..3 {
        let buffer = reopen(directory.path()).await;
        if round == 0 {
            buffer.send(delivery(false, "a", b"message")).await.expect("alive").expect("accepted");
            // while it is held, too
            buffer.send(delivery(true, "a", b"message")).await.expect("alive").expect("it is known");
            lease(&buffer, "a").await.expect("it is there").lease.delivered();
        }
        buffer.send(delivery(true, "a", b"message")).await.expect("alive").expect("it is known");
        assert!(matches!(lease(&buffer, "a").await, Err(Error::NoBufferMsg)), "round {round}");
        // what the broker brings for the first time is another matter, and so is another content
        let another = format!("another {round}");
        buffer.send(delivery(true, "a", another.as_bytes())).await.expect("alive").expect("accepted");
        lease(&buffer, "a").await.expect("it is there").lease.delivered();
        if round == 2 {
            buffer.send(delivery(false, "a", b"message")).await.expect("alive").expect("accepted");
            assert_eq!(body(&lease(&buffer, "a").await.expect("it is there")), b"message");
        }
        buffer.send(Drain).await.expect("alive");
    }
}

#[actix::test]
async fn a_redelivery_of_an_older_message_does_not_replace_the_later() {
    let buffer = start(ROOM, DAY);
    buffer.send(delivery(false, "a", b"older")).await.expect("alive").expect("accepted");
    add(&buffer, "a", b"later").await.expect("accepted");
    buffer.send(delivery(true, "a", b"older")).await.expect("alive").expect("it is known");
    assert_eq!(body(&lease(&buffer, "a").await.expect("it is there")), b"later");
}

#[actix::test]
async fn the_buffer_takes_bytes_up_to_its_limit_and_again_after_a_delivery() {
    let buffer = start(1_000, DAY);
    add(&buffer, "a", &[0; 60]).await.expect("accepted");
    let taken = state(&buffer).await.bytes;
    let error = add(&buffer, "b", &[0; 60]).await.expect_err("no capacity");
    assert!(
        matches!(error, Error::NoCapacity { held, limit: 1_000, .. } if held == taken) && !error.never_fits(),
        "{error}"
    );
    assert!(add(&buffer, "c", &[0; 1_000]).await.expect_err("never").never_fits());
    add(&buffer, "a", &[0; 100]).await.expect("the earlier one frees capacity");
    lease(&buffer, "a").await.expect("it is there").lease.delivered();
    add(&buffer, "b", &[0; 60]).await.expect("capacity again");
}

#[actix::test]
async fn the_cost_of_a_message_includes_its_name_and_its_meta() {
    let buffer = start(ROOM, DAY);
    let mut accepted = 0;
    while add(&buffer, &format!("{accepted:01000}"), b"").await.is_ok() {
        accepted += 1;
    }
    assert!(accepted < ROOM / 1_512, "{accepted} messages with names of 1,000 bytes within 1 MiB");
    lease(&buffer, &format!("{:01000}", 0)).await.expect("it is there").lease.delivered();
    add(&buffer, &format!("{accepted:01000}"), b"").await.expect("capacity again");
    assert_eq!(state(&buffer).await.messages as u64, accepted);
}

#[actix::test]
async fn a_replaced_message_counts_until_its_delivery_is_over() {
    let buffer = start(ROOM, DAY);
    let large = vec![0; ROOM as usize / 2 - 1_000];
    add(&buffer, "a", &large).await.expect("accepted");
    let earlier = lease(&buffer, "a").await.expect("it is there");
    add(&buffer, "a", &large).await.expect("capacity for both");
    let later = lease(&buffer, "a").await.expect("it is there");
    assert!(matches!(add(&buffer, "a", &large).await, Err(Error::NoCapacity { .. })), "two are being delivered");
    drop(earlier);
    add(&buffer, "a", &large).await.expect("one of the deliveries is over");
    drop(later);
    add(&buffer, "b", &large).await.expect("and so is the other");
}

#[actix::test]
async fn replaced_messages_of_different_sizes_each_count_until_their_own_delivery_is_over() {
    let buffer = start(ROOM, DAY);
    let large = vec![0; ROOM as usize / 2];
    add(&buffer, "a", &[0; 1_000]).await.expect("accepted");
    add(&buffer, "b", &large).await.expect("accepted");
    let [of_small, of_large] = [lease(&buffer, "a").await, lease(&buffer, "b").await];
    for uuid in ["a", "b"] {
        add(&buffer, uuid, b"later").await.expect("accepted");
    }
    drop(of_small);
    assert!(matches!(add(&buffer, "c", &large).await, Err(Error::NoCapacity { .. })), "the large one is delivered");
    drop(of_large);
    add(&buffer, "c", &large).await.expect("both deliveries are over");
}

/// A store that reports each commit with a put of more than 100 bytes, and waits for a permit.
struct Permitted {
    reached: SyncSender<()>,
    permits: Receiver<()>,
}

impl Store for Permitted {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let is_large = |change: &Change| matches!(change, Change::Put(put) if put.body.len() > 100);
        if changes.iter().any(is_large) {
            let _ = self.reached.send(());
            let _ = self.permits.recv();
        }
        MemoryStore.commit(changes, durable)
    }
}

#[actix::test]
async fn a_replacement_is_refused_if_what_it_replaces_is_leased_while_it_is_stored_and_there_is_no_space_for_both() {
    let (reached, has_reached) = mpsc::sync_channel(1);
    let (permit, permits) = mpsc::sync_channel(1);
    let limit = 1_500;
    let buffer = start_on(OpenStore::new("test", Box::new(Permitted { reached, permits })), limit, DAY);
    add(&buffer, "a", &[0; 100]).await.expect("space");
    let replacing = add(&buffer, "a", &[0; 800]);
    let leasing = async {
        while has_reached.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        let earlier = lease(&buffer, "a").await.expect("it is there");
        permit.send(()).expect("the store waits");
        earlier
    };
    let (replaced, earlier) = futures::join!(replacing, leasing);
    assert!(matches!(replaced, Err(Error::NoCapacity { limit: 1_500, .. })), "{replaced:?}");
    assert_eq!(body(&earlier), [0; 100]);
    drop(earlier);
    permit.send(()).expect("the store waits");
    add(&buffer, "a", &[1; 800]).await.expect("the earlier one is not leased");
    assert_eq!(body(&lease(&buffer, "a").await.expect("it is there")), [1; 800]);
    let state = state(&buffer).await;
    assert_eq!((state.messages, state.free_bytes), (1, limit - state.bytes));
}

#[actix::test]
async fn an_expired_message_is_not_offered_but_one_in_delivery_stays() {
    let buffer = start(ROOM, Duration::from_secs(1));
    add(&buffer, "fetched", b"message").await.expect("accepted");
    add(&buffer, "forgotten", b"message").await.expect("accepted");
    let leased = lease(&buffer, "fetched").await.expect("in time");
    // two rounds of the actor's timer can pass; what counts is the state
    while state(&buffer).await.expired_total == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(matches!(lease(&buffer, "forgotten").await, Err(Error::NoBufferMsg)));
    assert!(matches!(lease(&buffer, "fetched").await, Err(Error::InDelivery)));
    leased.lease.delivered();
    let state = state(&buffer).await;
    assert_eq!((state.messages, state.delivered_total, state.expired_total), (0, 1, 1));
}

#[actix::test]
async fn messages_that_expire_together_are_no_longer_offered_and_all_go() {
    let buffer = start(1 << 30, Duration::from_millis(50));
    for number in 0..5_000 {
        buffer.do_send(AddBufferMsg {
            buffer_uuid: number.to_string().as_str().into(),
            message: message(b"m"),
            delivery: None,
        });
    }
    while state(&buffer).await.expired_total < 5_000 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let state = state(&buffer).await;
    assert_eq!((state.messages, state.bytes), (0, 0));
}

#[actix::test]
async fn a_message_that_gets_too_old_during_a_broken_delivery_is_not_offered_again() {
    let buffer = start(ROOM, Duration::from_secs(1));
    add(&buffer, "leased", b"message").await.expect("accepted");
    let leased = lease(&buffer, "leased").await.expect("in time");
    add(&buffer, "forgotten", b"message").await.expect("accepted");
    while state(&buffer).await.expired_total == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(leased);
    assert!(matches!(lease(&buffer, "leased").await, Err(Error::NoBufferMsg)));
    let state = state(&buffer).await;
    assert_eq!((state.messages, state.expired_total), (0, 2));
}

#[actix::test]
async fn a_message_from_a_clock_that_was_ahead_does_not_keep_others_from_expiring() {
    let directory = tempfile::tempdir().expect("a directory");
    {
        let (mut store, _) = LogStore::open(directory.path()).expect("an empty store");
        // the years 2096 and 2001
        for (seq, uuid, stored_at_ms) in [(1, "ahead", 4_000_000_000_000_u64), (2, "old", 1_000_000_000_000)] {
            let meta = format!(r#"{{"uuid": "{uuid}", "stored_at_ms": {stored_at_ms}}}"#).into();
            let put = Change::Put(Put { seq, meta, body: Payload::from_parts(vec![Bytes::from_static(b"message")]) });
            store.commit(&[put], Durable::Now).expect("committed");
        }
    }
    let buffer = reopen(directory.path()).await;
    while state(&buffer).await.expired_total == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(matches!(lease(&buffer, "old").await, Err(Error::NoBufferMsg)));
    let ahead = lease(&buffer, "ahead").await.expect("it is as old as this start");
    assert_eq!(state(&buffer).await.messages, 1);
    drop(ahead);
}

#[actix::test]
async fn a_step_of_the_wall_clock_between_two_starts_makes_no_message_older_or_younger() {
    let directory = tempfile::tempdir().expect("a directory");
    let buffer = reopen(directory.path()).await;
    add(&buffer, "a", b"message").await.expect("accepted");
    buffer.send(Drain).await.expect("alive");
    drop(buffer);
    let meta = open(directory.path()).await.1.remove(0).meta;
    let meta: serde_json::Value = serde_json::from_slice(&meta).expect("JSON");
    assert!(meta["boot"].is_array(), "{meta}");
    for clock in [0, 1_000_000_000_000_u64, 1_700_000_000_000, 4_000_000_000_000] {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut store, _) = LogStore::open(directory.path()).expect("an empty store");
        let put = |seq, uuid: &str, boot: &serde_json::Value| {
            let mut meta = meta.clone();
            (meta["uuid"], meta["stored_at_ms"], meta["boot"]) = (uuid.into(), clock.into(), boot.clone());
            let body = vec![Bytes::from_static(b"message")];
            Change::Put(Put { seq, meta: meta.to_string().into(), body: Payload::from_parts(body) })
        };
        let mut long_ago = meta["boot"].clone();
        long_ago[1] = (long_ago[1].as_i64().expect("milliseconds") - 172_800_000).into();
        store.commit(&[put(1, "young", &meta["boot"]), put(2, "old", &long_ago)], Durable::Now).expect("accepted");
        drop(store);
        let buffer = reopen(directory.path()).await;
        lease(&buffer, "young").await.expect("it was stored just now");
        assert!(matches!(lease(&buffer, "old").await, Err(Error::NoBufferMsg)), "stored two days ago, at {clock}");
    }
}

#[actix::test]
async fn messages_are_found_again_after_a_restart_and_the_last_of_a_name_counts() {
    let directory = tempfile::tempdir().expect("a directory");
    for round in 0..3 {
        let buffer = reopen(directory.path()).await;
        if round == 0 {
            add(&buffer, "a", b"earlier").await.expect("accepted");
            add(&buffer, "a", b"later").await.expect("accepted");
            add(&buffer, "b", b"other").await.expect("accepted");
        } else if round == 1 {
            let leased = lease(&buffer, "a").await.expect("it is there");
            assert_eq!(body(&leased), b"later");
            leased.lease.delivered();
        } else {
            assert!(matches!(lease(&buffer, "a").await, Err(Error::NoBufferMsg)));
            assert_eq!(body(&lease(&buffer, "b").await.expect("it is there")), b"other");
        }
        assert_eq!(state(&buffer).await.messages, [2, 1, 1][round]);
        buffer.send(Drain).await.expect("alive");
    }
}

#[actix::test]
async fn the_state_has_the_age_of_the_oldest_message_that_is_still_there() {
    let buffer = start(ROOM, DAY);
    assert_eq!(state(&buffer).await.oldest, None);
    add(&buffer, "a", b"message").await.expect("accepted");
    while state(&buffer).await.oldest < Some(Duration::from_millis(50)) {
        tokio::task::yield_now().await;
    }
    add(&buffer, "b", b"message").await.expect("accepted");
    let before = state(&buffer).await;
    assert!(before.oldest >= Some(Duration::from_millis(50)) && before.accepted_total == 2, "{before:?}");
    // replaced, it is as young as the message that replaces it
    add(&buffer, "a", b"message").await.expect("accepted");
    let replaced = state(&buffer).await;
    assert!(replaced.oldest < before.oldest && replaced.accepted_total == 3, "{replaced:?}");
    for uuid in ["a", "b"] {
        lease(&buffer, uuid).await.expect("it is there").lease.delivered();
    }
    assert_eq!(state(&buffer).await.oldest, None);
}
