//! The publisher actor: what it has accepted reaches the broker in order, or the user manager who asks for it.

use crate::support::publisher;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use tokio::task::JoinHandle;
use user_http_actors::broker::{Outcome, Publication, PublisherEvent};
use user_http_actors::codec::{Format, ForwardedType, OutgoingMessage};
use user_http_actors::lease::NextMessage;
use user_http_actors::messages::{
    BrokerState, DeleteMessage, GetOutboxState, GetParkedMessages, OutboxState, ParkedMessage, PublishParkedMessage,
    SendMessageToUserManager, TakeNextMessage,
};
use user_http_actors::payload::Payload;
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, NO_RECORD, Store, StoreError};
use user_http_actors::system::OpenStore;
use user_http_actors::{Error, UserManagerPublisher};

use crate::support::publisher::Broker;

/// Waits for the next publication.
async fn next(broker: &Broker) -> Publication {
    loop {
        match broker.publications.try_recv() {
            Ok(publication) => return publication,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn memory() -> OpenStore {
    OpenStore::new("test", Box::new(MemoryStore))
}

fn start(max_bytes: u64) -> Addr<UserManagerPublisher> {
    publisher::start(memory(), max_bytes, None)
}

async fn with_broker() -> (Addr<UserManagerPublisher>, Broker) {
    publisher::start_with_broker(memory(), 1 << 30, FrameAck::Stored)
}

fn frame(body: &[u8]) -> SendMessageToUserManager {
    SendMessageToUserManager::from(OutgoingMessage {
        kind: ForwardedType::FrameRendered,
        user_id: "worker".into(),
        format: Format::Pickle,
        body: Payload::from_parts(vec![Bytes::copy_from_slice(body)]),
    })
}

async fn send(publisher: &Addr<UserManagerPublisher>, body: &[u8]) -> Result<(), Error> {
    publisher.send(frame(body)).await.expect("alive").map(drop)
}

/// Sends a message. Its answer comes with the broker's confirm, or when it is stored.
fn post(publisher: &Addr<UserManagerPublisher>, body: &[u8]) -> JoinHandle<Result<(), Error>> {
    // a clone may send one message, however full the mailbox is
    let answer = publisher.clone().send(frame(body));
    actix::spawn(async { answer.await.expect("alive").map(drop) })
}

async fn state(publisher: &Addr<UserManagerPublisher>) -> OutboxState {
    publisher.send(GetOutboxState).await.expect("alive")
}

async fn parked(publisher: &Addr<UserManagerPublisher>) -> Vec<ParkedMessage> {
    publisher.send(GetParkedMessages).await.expect("alive").0
}

fn seqs(publications: &[Publication]) -> Vec<u64> {
    publications.iter().map(|publication| publication.seq).collect()
}

#[actix::test]
async fn messages_wait_for_the_broker_and_go_out_in_order() {
    let (publisher, broker) = with_broker().await;
    for body in [b"1", b"2", b"3"] {
        send(&publisher, body).await.expect("accepted without a broker");
    }
    assert_eq!(state(&publisher).await.broker, BrokerState::Disconnected);
    assert!(broker.published().is_empty());
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    assert_eq!(state(&publisher).await.broker, BrokerState::Connected);
    let published = broker.published();
    assert_eq!(seqs(&published), [1, 2, 3]);
    assert!(published.iter().all(|publication| publication.epoch == 1));
    for seq in 1..=3 {
        broker.outcome(seq, Outcome::Confirmed);
    }
    let state = state(&publisher).await;
    assert_eq!((state.messages, state.bytes, state.forwarded_total), (0, 0, 3));
}

#[actix::test]
async fn what_has_no_outcome_when_the_connection_ends_is_sent_again_under_its_id() {
    let (publisher, broker) = with_broker().await;
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    for body in [b"1", b"2", b"3"] {
        post(&publisher, body);
    }
    state(&publisher).await;
    let first = broker.published();
    broker.outcome(1, Outcome::Confirmed);
    (broker.events)(PublisherEvent::Disconnected { reason: "lost".into(), lost: false });
    (broker.events)(PublisherEvent::Connected { epoch: 2 });
    state(&publisher).await;
    let second = broker.published();
    assert_eq!(seqs(&second), [2, 3]);
    assert!(second.iter().all(|publication| publication.epoch == 2));
    assert_eq!(second[0].message_id, first[1].message_id);
    assert_eq!(second[1].message_id, first[2].message_id);
}

#[actix::test]
async fn a_returned_message_is_tried_alone_until_the_broker_takes_it_and_order_is_kept() {
    let (publisher, broker) = with_broker().await;
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    for body in [b"1", b"2", b"3"] {
        post(&publisher, body);
    }
    state(&publisher).await;
    let first = broker.published();
    for seq in 1..=3 {
        broker.outcome(seq, Outcome::Returned("312 NO_ROUTE".into()));
    }
    for _ in 0..2 {
        let again = next(&broker).await;
        assert_eq!((again.seq, again.message_id), (1, first[0].message_id));
        assert_eq!(state(&publisher).await.messages, 3);
        assert!(broker.published().is_empty(), "the others wait for the first");
        broker.outcome(1, Outcome::Returned("312 NO_ROUTE".into()));
    }
    assert_eq!(next(&broker).await.seq, 1);
    broker.outcome(1, Outcome::Confirmed);
    state(&publisher).await;
    assert_eq!(seqs(&broker.published()), [2, 3]);
}

#[actix::test]
async fn nothing_is_sent_while_the_broker_blocks_and_everything_after() {
    let (publisher, broker) = with_broker().await;
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    (broker.events)(PublisherEvent::Blocked(true));
    send(&publisher, b"1").await.expect("accepted all the same");
    assert_eq!(state(&publisher).await.broker, BrokerState::Blocked);
    assert!(broker.published().is_empty());
    (broker.events)(PublisherEvent::Blocked(false));
    state(&publisher).await;
    assert_eq!(seqs(&broker.published()), [1]);
}

#[actix::test]
async fn a_message_that_the_broker_will_never_take_is_set_aside_and_the_others_flow() {
    let (publisher, broker) = with_broker().await;
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    for body in [b"1", b"2"] {
        post(&publisher, body);
    }
    broker.outcome(1, Outcome::Refused("406 PRECONDITION_FAILED".into()));
    (broker.events)(PublisherEvent::Disconnected { reason: "406".into(), lost: false });
    (broker.events)(PublisherEvent::Connected { epoch: 2 });
    let state = state(&publisher).await;
    assert_eq!((state.messages, state.parked), (2, 1));
    let published = broker.published();
    assert_eq!(seqs(&published[2..]), [2]);
}

#[actix::test]
async fn a_stored_message_that_cannot_be_read_is_set_aside_and_the_others_flow() {
    let (publisher, broker) = with_broker().await;
    for body in [b"1", b"2"] {
        send(&publisher, body).await.expect("stored, because there is no connection");
    }
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    next(&broker).await;
    broker.outcome(1, Outcome::Unreadable("the file is too short".into()));
    broker.outcome(2, Outcome::Confirmed);
    let state = state(&publisher).await;
    assert_eq!((state.messages, state.parked, state.forwarded_total), (1, 1, 1));
    assert_eq!(parked(&publisher).await[0].reason, "the file is too short");
}

#[actix::test]
async fn nothing_is_sent_while_the_downstream_queue_is_not_ready() {
    let (publisher, broker) = with_broker().await;
    (broker.events)(PublisherEvent::WaitingFor(Some("queue UM".into())));
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    send(&publisher, b"1").await.expect("accepted all the same");
    let waits = state(&publisher).await;
    assert_eq!((waits.broker, waits.waiting_for.as_deref()), (BrokerState::Connected, Some("queue UM")));
    assert!(broker.published().is_empty());
    (broker.events)(PublisherEvent::WaitingFor(None));
    assert_eq!(state(&publisher).await.waiting_for, None);
    assert_eq!(seqs(&broker.published()), [1]);
    (broker.events)(PublisherEvent::WaitingFor(Some("queue UM".into())));
    send(&publisher, b"2").await.expect("accepted all the same");
    assert!(broker.published().is_empty());
}

#[actix::test]
async fn messages_larger_than_the_broker_takes_are_not_accepted_once_it_has_refused_one() {
    let (publisher, broker) = with_broker().await;
    for body in [&b"large"[..], b"larger", b"ok"] {
        send(&publisher, body).await.expect("accepted without a broker");
    }
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    state(&publisher).await;
    broker.published();
    (broker.events)(PublisherEvent::SizeLimit(4));
    broker.outcome(1, Outcome::Refused("406".into()));
    (broker.events)(PublisherEvent::Disconnected { reason: "406".into(), lost: false });
    let refused = send(&publisher, b"5 byt").await.expect_err("larger than 4 bytes");
    assert!(matches!(refused, Error::TooLargeForBroker { size: 5, limit: 4 }), "{refused}");
    (broker.events)(PublisherEvent::Connected { epoch: 2 });
    let waits = state(&publisher).await;
    assert_eq!((waits.messages, waits.parked), (3, 2), "the second one is parked without being sent");
    assert_eq!(seqs(&broker.published()), [3]);
    let parked = parked(&publisher).await;
    assert!(parked[1].reason.contains("4 bytes"), "{parked:?}");

    // somebody says that the broker takes it by now
    let message_id = parked[1].message_id;
    publisher.send(PublishParkedMessage { message_id }).await.expect("alive").expect("it is parked");
    assert_eq!(seqs(&broker.published()), [2]);
    broker.outcome(2, Outcome::Confirmed);
    let taken = post(&publisher, b"larger");
    broker.outcome(next(&broker).await.seq, Outcome::Confirmed);
    taken.await.expect("no panic").expect("the broker takes so much");

    // and one that comes back after a lost connection may be another
    (broker.events)(PublisherEvent::SizeLimit(4));
    (broker.events)(PublisherEvent::Disconnected { reason: "lost".into(), lost: true });
    send(&publisher, b"larger").await.expect_err("as far as is known");
    (broker.events)(PublisherEvent::Connected { epoch: 3 });
    state(&publisher).await;
    let taken = post(&publisher, b"larger");
    broker.outcome(next(&broker).await.seq, Outcome::Confirmed);
    taken.await.expect("no panic").expect("nothing is known of this broker");
}

/// A queue that holds one message and refuses the others, and whose reader is slow.
#[actix::test]
async fn a_queue_that_takes_few_messages_is_not_offered_many() {
    const MESSAGES: usize = 30;
    let (publisher, broker) = with_broker().await;
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    (0..1_200).for_each(|_| drop(post(&publisher, b"x")));
    let mut offered = 0;
    for _ in 0..MESSAGES {
        // of what comes at once, the queue takes the first
        let first = next(&broker).await;
        state(&publisher).await;
        let others = broker.published();
        offered += 1 + others.len();
        broker.outcome(first.seq, Outcome::Confirmed);
        others.iter().for_each(|publication| broker.outcome(publication.seq, Outcome::Nacked));
        state(&publisher).await;
    }
    assert_eq!(state(&publisher).await.forwarded_total, MESSAGES as u64);
    assert!(offered <= 1_000 + 4 * MESSAGES, "{offered} publications for {MESSAGES} messages");
}

#[actix::test]
async fn the_window_opens_again_when_the_broker_takes_what_it_is_offered() {
    let (publisher, broker) = with_broker().await;
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    (0..2_000).for_each(|_| drop(post(&publisher, b"x")));
    state(&publisher).await;
    broker.published().iter().for_each(|publication| broker.outcome(publication.seq, Outcome::Nacked));
    let mut windows = Vec::new();
    let first = next(&broker).await;
    let mut window = vec![first];
    while windows.iter().sum::<usize>() + window.len() < 2_000 {
        windows.push(window.len());
        window.iter().for_each(|publication| broker.outcome(publication.seq, Outcome::Confirmed));
        state(&publisher).await;
        window = broker.published();
    }
    assert_eq!(windows[..9], [1, 2, 4, 8, 16, 32, 64, 128, 256], "doubled by each that is taken");
}

#[actix::test]
async fn the_window_bounds_what_is_unconfirmed() {
    let (publisher, broker) = with_broker().await;
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    (0..1_500).for_each(|_| drop(post(&publisher, b"x")));
    state(&publisher).await;
    assert_eq!(broker.published().len(), 1_000);
    broker.outcome(1, Outcome::Confirmed);
    state(&publisher).await;
    assert_eq!(seqs(&broker.published()), [1_001]);
}

#[actix::test]
async fn the_outbox_takes_bytes_up_to_its_limit() {
    let publisher = start(1_000);
    send(&publisher, &[0; 60]).await.expect("accepted");
    let taken = state(&publisher).await.bytes;
    let error = send(&publisher, &[0; 60]).await.expect_err("no capacity");
    assert!(matches!(error, Error::NoCapacity { held, limit: 1_000, .. } if held == taken), "{error}");
}

#[actix::test]
async fn the_cost_of_a_message_includes_its_meta() {
    let publisher = start(1 << 20);
    let mut accepted = 0;
    while send(&publisher, b"").await.is_ok() {
        accepted += 1;
    }
    assert!(accepted < 2_048, "{accepted} empty messages within 1 MiB: each takes more than 512 bytes");
    let taken = take(&publisher, MINUTE).await.await.expect("leased");
    taken.lease.delivered();
    publisher.send(DeleteMessage { message_id: taken.message_id }).await.expect("alive").expect("it is there");
    send(&publisher, b"").await.expect("capacity again");
}

#[actix::test]
async fn a_deleted_message_counts_until_nobody_reads_it_any_more() {
    let publisher = start(ROOM);
    let large = vec![7; ROOM as usize / 2];
    send(&publisher, &large).await.expect("accepted");
    let shown = take(&publisher, Duration::ZERO).await.await.expect("shown");
    let leased = take(&publisher, MINUTE).await.await.expect("leased");
    publisher.send(DeleteMessage { message_id: leased.message_id }).await.expect("alive").expect("it is there");
    assert_eq!(state(&publisher).await.bytes, 0);
    for reader in [shown, leased] {
        let refused = send(&publisher, &large).await.expect_err("its body is still read");
        assert!(matches!(refused, Error::NoCapacity { .. }), "{refused}");
        assert!(state(&publisher).await.full);
        drop(reader);
    }
    assert!(!state(&publisher).await.full, "there is capacity again");
    send(&publisher, &large).await.expect("capacity again");
}

/// Asks for the next message. The first `await` ends when the publisher knows that; the second, with the message.
async fn take(
    publisher: &Addr<UserManagerPublisher>,
    lease: Duration,
) -> impl Future<Output = Option<NextMessage>> + Unpin + use<> {
    let next = publisher.send(TakeNextMessage { lease, wait: true });
    // behind it in the mailbox
    state(publisher).await;
    Box::pin(async { next.await.expect("alive").expect("no broker") })
}

/// Room for whatever these tests send.
const ROOM: u64 = 1 << 20;

const MINUTE: Duration = Duration::from_secs(60);

#[actix::test]
async fn messages_are_leased_in_order_and_deleted_when_done() {
    let publisher = start(ROOM);
    let mut early = take(&publisher, MINUTE).await;
    assert!(futures::poll!(&mut early).is_pending(), "there is nothing yet");
    for body in [b"1", b"2"] {
        send(&publisher, body).await.expect("accepted");
    }
    let first = early.await.expect("leased as soon as it arrived");
    let second = take(&publisher, MINUTE).await.await.expect("leased");
    assert_eq!(first.payload.read_all().expect("readable"), "1");
    assert_eq!(second.payload.read_all().expect("readable"), "2");
    assert_eq!((first.delivery_count, first.format), (1, Format::Pickle));
    let id = first.message_id;
    first.lease.delivered();
    publisher.send(DeleteMessage { message_id: id }).await.expect("alive").expect("it is there");
    let again = publisher.send(DeleteMessage { message_id: id }).await.expect("alive");
    assert!(matches!(again, Err(Error::NoSuchMessage)));
    assert_eq!(state(&publisher).await.messages, 1);
}

#[actix::test]
async fn a_waiting_look_is_answered_by_the_next_message_and_leaves_it_to_who_waits_behind() {
    let publisher = start(ROOM);
    let look = take(&publisher, Duration::ZERO).await;
    let lease = take(&publisher, MINUTE).await;
    send(&publisher, b"1").await.expect("accepted");
    let (seen, leased) = (look.await.expect("shown"), lease.await.expect("leased"));
    assert_eq!((seen.message_id, seen.delivery_count), (leased.message_id, 0));
    assert_eq!(leased.delivery_count, 1);
    drop(seen);
    let mut next = take(&publisher, MINUTE).await;
    assert!(futures::poll!(&mut next).is_pending(), "who has only seen it does not put it back");
}

#[actix::test]
async fn a_message_that_has_reached_its_reader_is_for_nobody_else_during_its_lease() {
    let publisher = start(ROOM);
    send(&publisher, b"1").await.expect("accepted");
    take(&publisher, MINUTE).await.await.expect("leased").lease.delivered();
    let mut next = take(&publisher, MINUTE).await;
    assert!(futures::poll!(&mut next).is_pending(), "it has not come back");
}

#[actix::test]
async fn a_message_that_does_not_reach_its_reader_is_leased_to_the_next() {
    let publisher = start(ROOM);
    drop(take(&publisher, MINUTE).await);
    send(&publisher, b"1").await.expect("accepted");
    let first = take(&publisher, MINUTE).await.await.expect("the request that has hung up does not get it");
    let id = first.message_id;
    drop(first);
    let second = take(&publisher, MINUTE).await.await.expect("put back at once");
    assert_eq!((second.message_id, second.delivery_count), (id, 2));
}

#[actix::test]
async fn a_leased_message_that_cannot_be_read_is_set_aside_and_the_others_flow() {
    let publisher = start(ROOM);
    for body in [b"1", b"2"] {
        send(&publisher, body).await.expect("accepted");
    }
    let first = take(&publisher, MINUTE).await.await.expect("leased");
    let id = first.message_id;
    // one that may be readable later is leased again
    first.lease.unreadable(&io::ErrorKind::WouldBlock.into());
    let again = take(&publisher, MINUTE).await.await.expect("leased");
    assert_eq!(again.message_id, id);
    again.lease.unreadable(&io::ErrorKind::UnexpectedEof.into());
    let second = take(&publisher, MINUTE).await.await.expect("not waiting behind the first");
    assert_eq!(second.payload.read_all().expect("readable"), "2");
    let parked = parked(&publisher).await;
    assert_eq!(parked.iter().map(|message| message.message_id).collect::<Vec<_>>(), [id]);
    assert!(parked[0].reason.contains("cannot be read"), "{}", parked[0].reason);
}

#[actix::test]
async fn a_message_that_is_only_shown_and_cannot_be_read_is_set_aside_once() {
    let publisher = start(ROOM);
    send(&publisher, b"1").await.expect("accepted");
    let shown = take(&publisher, Duration::ZERO).await.await.expect("shown");
    let leased = take(&publisher, MINUTE).await.await.expect("leased");
    shown.lease.unreadable(&io::ErrorKind::UnexpectedEof.into());
    leased.lease.unreadable(&io::ErrorKind::UnexpectedEof.into());
    assert_eq!(parked(&publisher).await.len(), 1);
    assert!(futures::poll!(take(&publisher, MINUTE).await).is_pending(), "nobody can lease a parked message");
}

#[actix::test]
async fn a_message_that_is_not_deleted_in_time_is_leased_again() {
    let publisher = start(ROOM);
    send(&publisher, b"1").await.expect("accepted");
    let first = take(&publisher, Duration::from_millis(50)).await.await.expect("leased");
    let id = first.message_id;
    first.lease.delivered();
    let second = take(&publisher, MINUTE).await.await.expect("leased when the first lease is over");
    assert_eq!((second.message_id, second.delivery_count), (id, 2));
    publisher.send(DeleteMessage { message_id: id }).await.expect("alive").expect("done with");
    drop(second);
    assert_eq!(state(&publisher).await.messages, 0, "a lease that ends late restores nothing");
}

#[actix::test]
async fn with_a_broker_nobody_takes_messages_here() {
    let (publisher, _broker) = with_broker().await;
    let taken = publisher.send(TakeNextMessage { lease: MINUTE, wait: true }).await.expect("alive");
    assert!(matches!(taken, Err(Error::BrokerIsConfigured)));
}

/// A store whose disk is full for removals while the flag is set.
struct FullForRemovals(Arc<AtomicBool>);

impl Store for FullForRemovals {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let removes = changes.iter().any(|change| matches!(change, Change::Remove(seq) if *seq != NO_RECORD));
        if removes && self.0.load(Ordering::SeqCst) {
            return Err(StoreError::NoSpace("full".into()));
        }
        MemoryStore.commit(changes, durable)
    }
}

#[actix::test]
async fn a_message_whose_removal_is_refused_is_offered_again_until_it_is_removed() {
    let full = Arc::new(AtomicBool::new(true));
    let store = OpenStore::new("test", Box::new(FullForRemovals(Arc::clone(&full))));
    let publisher = publisher::start(store, 1 << 30, None);
    send(&publisher, b"message").await.expect("accepted");
    for _ in 0..2 {
        // the refused deletion leaves it leased
        let taken = take(&publisher, Duration::from_millis(50)).await.await.expect("a message");
        assert_eq!(taken.payload.read_all().expect("readable"), &b"message"[..]);
        let message_id = taken.message_id;
        taken.lease.delivered();
        let refused = publisher.send(DeleteMessage { message_id }).await.expect("alive").expect_err("full");
        assert!(matches!(refused, Error::Store(StoreError::NoSpace(_))), "{refused}");
        let state = state(&publisher).await;
        assert_eq!((state.messages, state.forwarded_total), (1, 0));
    }
    full.store(false, Ordering::SeqCst);
    let message_id = take(&publisher, Duration::from_secs(60)).await.await.expect("a message").message_id;
    publisher.send(DeleteMessage { message_id }).await.expect("alive").expect("accepted");
    let error = publisher.send(DeleteMessage { message_id }).await.expect("alive").expect_err("it is deleted");
    assert!(matches!(error, Error::NoSuchMessage), "{error}");
    let state = state(&publisher).await;
    assert_eq!((state.messages, state.forwarded_total), (0, 1));
}

#[actix::test]
async fn the_state_has_the_oldest_age_what_has_arrived_and_how_long_the_broker_is_away() {
    let (publisher, broker) = with_broker().await;
    send(&publisher, b"12345").await.expect("accepted without a broker");
    let long = Duration::from_millis(50);
    loop {
        let state = state(&publisher).await;
        assert_eq!((state.arrived_total, state.arrived_bytes_total, state.broker), (1, 5, BrokerState::Disconnected));
        if state.oldest >= Some(long) && state.broker_for >= long {
            break;
        }
        tokio::task::yield_now().await;
    }
    let away = state(&publisher).await.broker_for;
    // another failed attempt changes nothing
    (broker.events)(PublisherEvent::Disconnected { reason: "refused".into(), lost: true });
    assert!(state(&publisher).await.broker_for >= away);
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    assert!(state(&publisher).await.broker_for < away, "connected only now");
    broker.outcome(1, Outcome::Confirmed);
    assert_eq!(state(&publisher).await.oldest, None);
}
