//! Removals from the outbox that the store refuses: the message is where it was before, whatever was asked meanwhile.

use crate::support::publisher;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use actix::Addr;
use bytes::Bytes;
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::codec::{Format, ForwardedType, OutgoingMessage};
use user_http_actors::lease::NextMessage;
use user_http_actors::messages::{
    DeleteMessage, DeleteParkedMessage, GetOutboxState, GetParkedMessages, OutboxState, PublishParkedMessage,
    SendMessageToUserManager, TakeNextMessage,
};
use user_http_actors::payload::Payload;
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, Store, StoreError};
use user_http_actors::system::OpenStore;
use user_http_actors::{Error, UserManagerPublisher};
use uuid::Uuid;

use crate::support::publisher::Broker;

/// A store that asks the test about each removal.
struct Asking {
    reached: SyncSender<()>,
    refuse: Receiver<bool>,
}

impl Store for Asking {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let removes = changes.iter().any(|change| matches!(change, Change::Remove(seq) if *seq == 1));
        if removes {
            let _ = self.reached.send(());
            if self.refuse.recv().unwrap_or(false) {
                return Err(StoreError::NoSpace("full".into()));
            }
        }
        MemoryStore.commit(changes, durable)
    }
}

struct Service {
    publisher: Addr<UserManagerPublisher>,
    broker: Broker,
    reached: Receiver<()>,
    refuse: SyncSender<bool>,
}

/// A store, what it asks, and the answers to that.
fn asking() -> (OpenStore, Receiver<()>, SyncSender<bool>) {
    let (reached, has_reached) = mpsc::sync_channel(16);
    let (refuse, refused) = mpsc::sync_channel(16);
    (OpenStore::new("test", Box::new(Asking { reached, refuse: refused })), has_reached, refuse)
}

fn message(size: usize) -> SendMessageToUserManager {
    SendMessageToUserManager::from(OutgoingMessage {
        kind: ForwardedType::FrameRendered,
        user_id: "a user".into(),
        format: Format::Pickle,
        body: Payload::from_parts(vec![Bytes::from(vec![0; size])]),
    })
}

impl Service {
    async fn start() -> Self {
        let (store, reached, refuse) = asking();
        let (publisher, broker) = publisher::start_with_broker(store, 1 << 30, FrameAck::Stored);
        (broker.events)(PublisherEvent::Connected { epoch: 1 });
        Self { publisher, broker, reached, refuse }
    }

    async fn post(&self, size: usize) {
        // answered by the store, or by the broker's confirm
        drop(actix::spawn(self.publisher.send(message(size))));
    }

    async fn state(&self) -> OutboxState {
        self.publisher.send(GetOutboxState).await.expect("alive")
    }

    async fn published(&self) -> Vec<u64> {
        self.state().await;
        self.broker.published().iter().map(|publication| publication.seq).collect()
    }

    async fn parked(&self) -> Vec<Uuid> {
        let parked = self.publisher.send(GetParkedMessages).await.expect("alive").0;
        parked.iter().map(|parked| parked.message_id).collect()
    }
}

/// Two of these fit into the window of 32 MiB, and no third.
const LARGE: usize = 15 << 20;

#[actix::test]
async fn a_parked_message_whose_removal_is_refused_while_it_is_published_is_published_once() {
    let service = Service::start().await;
    service.post(LARGE).await;
    assert_eq!(service.published().await, [1]);
    service.broker.outcome(1, Outcome::Refused("406".into()));
    let message_id = service.parked().await[0];

    let deletion = service.publisher.send(DeleteParkedMessage { message_id });
    let asked = async {
        while service.reached.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        let publish = service.publisher.send(PublishParkedMessage { message_id }).await.expect("alive");
        service.refuse.send(true).expect("the store asks");
        publish
    };
    let (deleted, publish) = futures::join!(deletion, asked);
    let refused = deleted.expect("alive").expect_err("the disk is full");
    assert!(matches!(refused, Error::Store(StoreError::NoSpace(_))), "{refused}");
    if publish.is_err() {
        // it was being deleted; now it is parked again
        service.publisher.send(PublishParkedMessage { message_id }).await.expect("alive").expect("it is parked");
    }
    assert_eq!(service.published().await, [1], "one publication without an outcome");
    service.broker.outcome(1, Outcome::Confirmed);
    // its removal, this time of what the broker has
    service.refuse.send(false).expect("the store asks");
    // all of the window is free again
    for _ in 0..3 {
        service.post(LARGE).await;
    }
    assert_eq!(service.published().await.len(), 2);
}

#[actix::test]
async fn two_deletions_of_one_message_have_the_same_outcome() {
    let service = Service::start().await;
    service.post(1).await;
    assert_eq!(service.published().await, [1]);
    service.broker.outcome(1, Outcome::Refused("406".into()));
    let message_id = service.parked().await[0];
    for refuse in [true, false] {
        let first = service.publisher.send(DeleteParkedMessage { message_id });
        let second = service.publisher.send(DeleteParkedMessage { message_id });
        let parked = async {
            while service.reached.try_recv().is_err() {
                tokio::task::yield_now().await;
            }
            // both have been asked by now
            let parked = service.state().await.parked;
            service.refuse.send(refuse).expect("the store asks");
            parked
        };
        let (first, second, parked) = futures::join!(first, second, parked);
        let is_refused = |outcome| matches!(outcome, Ok(Err(Error::Store(StoreError::NoSpace(_)))));
        assert_eq!((is_refused(first), is_refused(second)), (refuse, refuse));
        assert_eq!(parked, 1);
    }
    let state = service.state().await;
    assert_eq!((state.messages, state.parked, state.bytes), (0, 0, 0));
}

/// Leases the next message for so long.
async fn next(publisher: &Addr<UserManagerPublisher>, lease: Duration, wait: bool) -> Option<NextMessage> {
    publisher.send(TakeNextMessage { lease, wait }).await.expect("alive").expect("there is no broker")
}

#[actix::test]
async fn a_leased_message_whose_removal_is_refused_stays_leased_until_the_visibility_timeout() {
    const LEASE: Duration = Duration::from_secs(3);
    let (store, reached, refuse) = asking();
    let publisher = publisher::start(store, 1 << 30, None);
    publisher.send(message(1)).await.expect("alive").expect("room");
    let started = Instant::now();
    let leased = next(&publisher, LEASE, false).await.expect("it waits");
    let message_id = leased.message_id;
    leased.lease.delivered();
    refuse.send(true).expect("the store asks");
    let deleted = publisher.send(DeleteMessage { message_id }).await.expect("alive");
    assert!(matches!(deleted, Err(Error::Store(StoreError::NoSpace(_)))), "{deleted:?}");
    assert_eq!(reached.try_recv(), Ok(()));
    let again = next(&publisher, LEASE, true).await.expect("its lease ends");
    assert!(started.elapsed() >= LEASE, "another user manager has it after {:?}", started.elapsed());
    assert_eq!((again.message_id, again.delivery_count), (message_id, 2));
    again.lease.delivered();
    refuse.send(false).expect("the store asks");
    publisher.send(DeleteMessage { message_id }).await.expect("alive").expect("the disk has space");
    assert_eq!(publisher.send(GetOutboxState).await.expect("alive").messages, 0);
}

#[actix::test]
async fn a_lease_that_is_dropped_while_the_removal_of_its_message_is_refused_leaves_it_to_the_next_user_manager() {
    const LEASE: Duration = Duration::from_secs(3_600);
    let (store, reached, refuse) = asking();
    let publisher = publisher::start(store, 1 << 30, None);
    publisher.send(message(1)).await.expect("alive").expect("room");
    let leased = next(&publisher, LEASE, false).await.expect("it waits");
    let message_id = leased.message_id;
    let deletion = publisher.send(DeleteMessage { message_id });
    let dropped = async {
        while reached.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        drop(leased);
        // the actor knows of the drop before it knows of the refusal
        publisher.send(GetOutboxState).await.expect("alive");
        refuse.send(true).expect("the store asks");
    };
    let (deleted, ()) = futures::join!(deletion, dropped);
    deleted.expect("alive").expect_err("the disk is full");
    assert!(next(&publisher, LEASE, false).await.is_some_and(|again| again.message_id == message_id));
}
