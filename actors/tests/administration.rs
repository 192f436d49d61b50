//! Operators list what the actors hold, page by page while it changes, and discard single messages.

use crate::support::publisher;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use proptest::prelude::*;
use user_http_actors::administration::{
    BufferEntry, DiscardBufferMsg, DiscardOutboxMessage, ListBufferMsgs, ListOutboxMessages, OutboxEntry,
    OutboxEntryState, Page, PageRequest, Requester,
};
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::codec::{BlendPlaceholder, BufferMsg, Format, ForwardedType, OutgoingMessage};
use user_http_actors::messages::{
    AddBufferMsg, DeleteMessage, GetBufferState, GetOutboxState, LeaseBufferMsg, OutboxState, PeekBufferMsg,
    SendMessageToUserManager, TakeNextMessage,
};
use user_http_actors::payload::Payload;
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, Store, StoreError};
use user_http_actors::system::OpenStore;
use user_http_actors::{BufferActor, Error, UserManagerPublisher};
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(86_400);
const CAPACITY: u64 = 1 << 30;

fn requester() -> Requester {
    Requester { name: "a test".into(), request_id: "1".into() }
}

fn payload(len: usize) -> Payload {
    Payload::from_parts(vec![Bytes::from(vec![0; len])])
}

fn start_buffer(store: impl Store + 'static, ttl: Duration) -> Addr<BufferActor> {
    let store = OpenStore::new("test", Box::new(store));
    store.start(|_| {}, |store, found, _| BufferActor::new(store, found, CAPACITY, ttl)).expect("a sound store")
}

async fn add(buffer: &Addr<BufferActor>, uuid: &str, blend: Option<BlendPlaceholder>) {
    let message = BufferMsg { pickle: payload(uuid.len()), blend, sha256: None };
    let message = AddBufferMsg { buffer_uuid: uuid.into(), message, delivery: None };
    buffer.send(message).await.expect("alive").expect("there is space");
}

async fn page(buffer: &Addr<BufferActor>, after: u64, limit: usize) -> Page<BufferEntry> {
    buffer.send(ListBufferMsgs(PageRequest { after, limit })).await.expect("alive").expect("a page")
}

async fn discard(buffer: &Addr<BufferActor>, uuid: &str) -> Result<(), Error> {
    let discard = DiscardBufferMsg { buffer_uuid: uuid.into(), requester: requester() };
    buffer.send(discard).await.expect("alive")
}

fn lease_for(uuid: &str, wait: Duration) -> LeaseBufferMsg {
    LeaseBufferMsg { buffer_uuid: uuid.into(), max_single_write: 0, wait, seen: None }
}

fn outgoing(user: &str) -> SendMessageToUserManager {
    SendMessageToUserManager::from(OutgoingMessage {
        kind: ForwardedType::FrameRendered,
        user_id: user.into(),
        format: Format::Pickle,
        body: payload(7),
    })
}

async fn outbox(publisher: &Addr<UserManagerPublisher>) -> Vec<OutboxEntry> {
    let page = publisher.send(ListOutboxMessages(PageRequest { after: 0, limit: 1_000 })).await.expect("alive");
    assert_eq!(page.next, None);
    page.messages
}

async fn discard_outbox(publisher: &Addr<UserManagerPublisher>, message_id: Uuid) -> Result<(), Error> {
    publisher.send(DiscardOutboxMessage { message_id, requester: requester() }).await.expect("alive")
}

async fn outbox_state(publisher: &Addr<UserManagerPublisher>) -> OutboxState {
    publisher.send(GetOutboxState).await.expect("alive")
}

/// What happens between two pages.
#[derive(Clone, Debug)]
enum Happening {
    Add(u8),
    Remove(u8),
}

fn changes() -> impl Strategy<Value = Vec<Happening>> {
    let change = prop_oneof![(0..40_u8).prop_map(Happening::Add), (0..40_u8).prop_map(Happening::Remove)];
    prop::collection::vec(change, 0..12)
}

/// Pages through a buffer that changes between the pages.
async fn page_through(limit: usize, before: Vec<Happening>, between: Vec<Vec<Happening>>) {
    let buffer = start_buffer(MemoryStore, DAY);
    let mut held = BTreeMap::new();
    let mut version = 0;
    let mut apply = async |held: &mut BTreeMap<String, u32>, change: Happening| match change {
        Happening::Add(number) => {
            version += 1;
            add(&buffer, &number.to_string(), None).await;
            held.insert(number.to_string(), version);
        }
        Happening::Remove(number) => {
            let uuid = number.to_string();
            assert_eq!(discard(&buffer, &uuid).await.is_ok(), held.remove(&uuid).is_some());
        }
    };
    for change in before {
        apply(&mut held, change).await;
    }
    let mut throughout: BTreeSet<(String, u32)> = held.clone().into_iter().collect();
    let (mut listed, mut after, mut between) = (BTreeMap::<String, u32>::new(), 0, between.into_iter());
    loop {
        let Page { messages, next } = page(&buffer, after, limit).await;
        assert!(messages.len() <= limit);
        assert!(next.is_none_or(|next| next > after), "the cursor {after} leads to {next:?}");
        for entry in messages {
            let uuid = entry.buffer_uuid.as_str();
            assert!(held.contains_key(uuid), "{uuid} is listed and not there");
            *listed.entry(uuid.to_owned()).or_default() += 1;
        }
        match next {
            Some(next) => after = next,
            None => break,
        }
        for change in between.next().unwrap_or_default() {
            apply(&mut held, change).await;
        }
        throughout.retain(|(uuid, version)| held.get(uuid) == Some(version));
    }
    for (uuid, _) in throughout {
        assert_eq!(listed.get(&uuid), Some(&1), "{uuid} was there throughout; {listed:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_message_that_is_there_throughout_is_on_exactly_one_page_whatever_comes_and_goes(
        limit in 1..8_usize,
        before in changes(),
        between in prop::collection::vec(changes(), 0..20),
    ) {
        actix::System::new().block_on(page_through(limit, before, between));
    }
}

#[actix::test]
async fn a_buffered_message_is_listed_with_its_length_age_blend_file_and_delivery() {
    let buffer = start_buffer(MemoryStore, DAY);
    let path = Some("scene.blend".to_owned());
    add(&buffer, "a", None).await;
    add(&buffer, "bb", Some(BlendPlaceholder { offset: 0, path })).await;
    let leased = buffer.send(lease_for("a", Duration::ZERO)).await.expect("alive").expect("it is there");
    let Page { messages, next } = page(&buffer, 0, 10).await;
    let shown = |entry: &BufferEntry| {
        assert!(entry.age < Duration::from_secs(60), "{entry:?}");
        (entry.buffer_uuid.as_str().to_owned(), entry.bytes, entry.blend.clone(), entry.in_delivery)
    };
    let shown: Vec<_> = messages.iter().map(shown).collect();
    assert_eq!(shown, [("a".into(), 1, None, true), ("bb".into(), 2, Some("scene.blend".into()), false)]);
    assert_eq!(next, None);
    assert!(matches!(discard(&buffer, "a").await, Err(Error::InDelivery)));
    drop(leased);
    discard(&buffer, "a").await.expect("nobody delivers it any more");
    assert!(matches!(discard(&buffer, "a").await, Err(Error::NoBufferMsg)));
    let state = buffer.send(GetBufferState).await.expect("alive");
    assert_eq!((state.messages, state.delivered_total, state.discarded_total), (1, 0, 1));
}

#[actix::test]
async fn an_expired_message_is_neither_listed_nor_discarded() {
    let buffer = start_buffer(MemoryStore, Duration::ZERO);
    add(&buffer, "a", None).await;
    assert!(page(&buffer, 0, 10).await.messages.is_empty());
    assert!(matches!(discard(&buffer, "a").await, Err(Error::NoBufferMsg)));
}

/// A store that asks the test about each removal of record 1.
struct Asking {
    reached: SyncSender<()>,
    refuse: Receiver<Option<StoreError>>,
}

impl Store for Asking {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        if changes.iter().any(|change| matches!(change, Change::Remove(1))) {
            let _ = self.reached.send(());
            if let Ok(Some(error)) = self.refuse.recv() {
                return Err(error);
            }
        }
        MemoryStore.commit(changes, durable)
    }
}

fn asking() -> (Asking, Receiver<()>, SyncSender<Option<StoreError>>) {
    let (reached, has_reached) = mpsc::sync_channel(16);
    let (answer, refuse) = mpsc::sync_channel(16);
    (Asking { reached, refuse }, has_reached, answer)
}

/// Waits until the store has been asked, while the actor goes on.
async fn asked(reached: &Receiver<()>) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while reached.try_recv().is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the store was not asked");
        tokio::task::yield_now().await;
    }
}

fn full() -> Option<StoreError> {
    Some(StoreError::NoSpace("full".into()))
}

#[actix::test]
async fn requests_for_a_message_that_is_being_discarded_wait_for_the_outcome() {
    for refused in [false, true] {
        let (store, reached, answer) = asking();
        let buffer = start_buffer(store, DAY);
        add(&buffer, "a", None).await;
        let first = actix::spawn(buffer.send(DiscardBufferMsg { buffer_uuid: "a".into(), requester: requester() }));
        asked(&reached).await;
        let second = actix::spawn(buffer.send(DiscardBufferMsg { buffer_uuid: "a".into(), requester: requester() }));
        let lease = actix::spawn(buffer.send(lease_for("a", Duration::ZERO)));
        let peek = actix::spawn(buffer.send(PeekBufferMsg { buffer_uuid: "a".into(), wait: Duration::ZERO }));
        let state = buffer.send(GetBufferState).await.expect("alive");
        assert_eq!((state.messages, state.in_delivery), (1, 0), "no worker gets it");
        assert!(!page(&buffer, 0, 10).await.messages[0].in_delivery);
        assert!(!first.is_finished() && !second.is_finished() && !lease.is_finished() && !peek.is_finished());
        answer.send(if refused { full() } else { None }).expect("the store waits");
        if refused {
            // the other one of the group's two attempts
            answer.send(full()).expect("the store waits");
        }
        let outcomes = [first.await, second.await].map(|outcome| outcome.expect("no panic").expect("alive"));
        let lease = lease.await.expect("no panic").expect("alive");
        let peek = peek.await.expect("no panic").expect("alive");
        let state = buffer.send(GetBufferState).await.expect("alive");
        if refused {
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::Store(_)))), "{outcomes:?}");
            assert!(lease.is_ok() && peek.is_ok(), "{lease:?}, {peek:?}");
            assert_eq!((state.messages, state.discarded_total), (1, 0));
        } else {
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            assert!(matches!(lease, Err(Error::NoBufferMsg)), "{lease:?}");
            assert!(matches!(peek, Err(Error::NoBufferMsg)), "{peek:?}");
            assert_eq!((state.messages, state.discarded_total), (0, 1), "counted once");
        }
        drop(answer);
    }
}

#[actix::test]
async fn a_message_that_replaces_one_that_is_being_discarded_stays() {
    let (store, reached, answer) = asking();
    let buffer = start_buffer(store, DAY);
    add(&buffer, "a", None).await;
    let discarding = actix::spawn(buffer.send(DiscardBufferMsg { buffer_uuid: "a".into(), requester: requester() }));
    asked(&reached).await;
    let adding = AddBufferMsg {
        buffer_uuid: "a".into(),
        message: BufferMsg { pickle: payload(9), blend: None, sha256: None },
        delivery: None,
    };
    let adding = actix::spawn(buffer.send(adding));
    buffer.send(GetBufferState).await.expect("alive");
    drop(answer);
    discarding.await.expect("no panic").expect("alive").expect("it is removed");
    adding.await.expect("no panic").expect("alive").expect("it is stored");
    let Page { messages, .. } = page(&buffer, 0, 10).await;
    assert_eq!(messages.iter().map(|entry| entry.bytes).collect::<Vec<_>>(), [9]);
    let state = buffer.send(GetBufferState).await.expect("alive");
    assert_eq!((state.messages, state.in_delivery), (1, 0));
}

#[actix::test]
async fn a_discard_is_answered_although_the_disk_fails() {
    let (store, reached, answer) = asking();
    let buffer = start_buffer(store, DAY);
    add(&buffer, "a", None).await;
    let discarding = actix::spawn(buffer.send(DiscardBufferMsg { buffer_uuid: "a".into(), requester: requester() }));
    asked(&reached).await;
    answer.send(Some(StoreError::Failed("broken".into()))).expect("the store waits");
    let outcome = discarding.await.expect("no panic").expect("alive");
    assert!(matches!(outcome, Err(Error::Store(StoreError::Failed(_)))), "{outcome:?}");
    let outcome = discard(&buffer, "a").await;
    assert!(matches!(outcome, Err(Error::Store(StoreError::Failed(_)))), "{outcome:?}");
}

#[actix::test]
async fn an_outbox_message_is_listed_with_its_state_and_discarded_unless_it_is_in_flight_or_its_sender_waits() {
    let store = OpenStore::new("test", Box::new(MemoryStore));
    let (publisher, broker) = publisher::start_with_broker(store, CAPACITY, FrameAck::Stored);
    // stored, because there is no connection
    for user in ["first", "second"] {
        publisher.send(outgoing(user)).await.expect("alive").expect("there is space");
    }
    let states =
        |entries: &[OutboxEntry]| entries.iter().map(|entry| (entry.user_id.clone(), entry.state)).collect::<Vec<_>>();
    let listed = outbox(&publisher).await;
    assert_eq!(
        states(&listed),
        [("first".to_owned(), OutboxEntryState::Waiting), ("second".to_owned(), OutboxEntryState::Waiting)]
    );
    assert!(listed.iter().all(|entry| entry.bytes == 7 && entry.age < Duration::from_secs(60)), "{listed:?}");
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    let third = actix::spawn(publisher.send(outgoing("third")));
    let listed = outbox(&publisher).await;
    assert_eq!(listed.iter().filter(|entry| entry.state == OutboxEntryState::InFlight).count(), 3, "{listed:?}");
    for entry in &listed {
        let outcome = discard_outbox(&publisher, entry.message_id).await;
        assert!(matches!(outcome, Err(Error::InFlight)), "{outcome:?}");
    }
    let published = broker.published();
    broker.outcome(published[0].seq, Outcome::Refused("406".into()));
    let listed = outbox(&publisher).await;
    assert_eq!(listed[0].state, OutboxEntryState::Parked);
    discard_outbox(&publisher, listed[0].message_id).await.expect("it is parked");
    (broker.events)(PublisherEvent::Disconnected { reason: "away".into(), lost: true });
    third.await.expect("no panic").expect("alive").expect("stored instead");
    let listed = outbox(&publisher).await;
    assert_eq!(states(&listed).len(), 2);
    for entry in &listed {
        discard_outbox(&publisher, entry.message_id).await.expect("it waits");
    }
    assert!(matches!(discard_outbox(&publisher, listed[0].message_id).await, Err(Error::NoSuchMessage)));
    let state = outbox_state(&publisher).await;
    assert_eq!((state.messages, state.parked, state.forwarded_total, state.discarded_total), (0, 0, 0, 3));
    (broker.events)(PublisherEvent::Connected { epoch: 2 });
    outbox_state(&publisher).await;
    assert!(broker.published().is_empty(), "nothing of it is published");
}

#[actix::test]
async fn a_message_whose_sender_waits_for_its_answer_is_not_discarded() {
    let store = OpenStore::new("test", Box::new(MemoryStore));
    let (publisher, broker) = publisher::start_with_broker(store, CAPACITY, FrameAck::Broker);
    (broker.events)(PublisherEvent::Connected { epoch: 1 });
    // fills the window of 32 MiB, so that the second one waits although the broker is connected
    let mut large = outgoing("large");
    large.message.body = payload(40 << 20);
    let [large, small] = [large, outgoing("small")].map(|message| actix::spawn(publisher.send(message)));
    let listed = outbox(&publisher).await;
    assert_eq!(listed[1].state, OutboxEntryState::Waiting, "{listed:?}");
    let outcome = discard_outbox(&publisher, listed[1].message_id).await;
    assert!(matches!(outcome, Err(Error::SenderWaits)), "{outcome:?}");
    for sender in [large, small] {
        let state = outbox_state(&publisher).await;
        let published = broker.published();
        assert_eq!(published.len(), 1, "{state:?}");
        broker.outcome(published[0].seq, Outcome::Confirmed);
        sender.await.expect("no panic").expect("alive").expect("confirmed");
    }
}

#[actix::test]
async fn a_leased_message_can_be_discarded_and_the_user_manager_can_delete_it_no_more() {
    let publisher = publisher::start(OpenStore::new("test", Box::new(MemoryStore)), CAPACITY, None);
    publisher.send(outgoing("me")).await.expect("alive").expect("stored");
    let take = TakeNextMessage { lease: DAY, wait: false };
    let next = publisher.send(take).await.expect("alive").expect("no broker").expect("a message");
    let message_id = next.message_id;
    next.lease.delivered();
    assert_eq!(outbox(&publisher).await[0].state, OutboxEntryState::Leased);
    discard_outbox(&publisher, message_id).await.expect("it is there");
    let outcome = publisher.send(DeleteMessage { message_id }).await.expect("alive");
    assert!(matches!(outcome, Err(Error::NoSuchMessage)), "{outcome:?}");
    let state = outbox_state(&publisher).await;
    assert_eq!((state.messages, state.bytes, state.forwarded_total, state.discarded_total), (0, 0, 0, 1));
}

#[actix::test]
async fn an_outbox_message_whose_removal_is_refused_is_where_it_was() {
    let (store, _reached, answer) = asking();
    let publisher = publisher::start(OpenStore::new("test", Box::new(store)), CAPACITY, None);
    publisher.send(outgoing("me")).await.expect("alive").expect("stored");
    let message_id = outbox(&publisher).await[0].message_id;
    (0..2).for_each(|_| answer.send(full()).expect("the store lives"));
    let outcome = discard_outbox(&publisher, message_id).await;
    assert!(matches!(outcome, Err(Error::Store(_))), "{outcome:?}");
    let listed = outbox(&publisher).await;
    assert_eq!((listed.len(), listed[0].state), (1, OutboxEntryState::Waiting));
    assert_eq!(outbox_state(&publisher).await.discarded_total, 0);
}
