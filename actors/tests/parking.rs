//! Parked messages: found, kept through restarts, and published or deleted on request.

use crate::support::log;
use crate::support::publisher;
use std::path::Path;

use actix::Addr;
use bytes::Bytes;
use user_http_actors::broker::{Outcome, Publication, PublisherEvent};
use user_http_actors::codec::{Format, ForwardedType, OutgoingMessage};
use user_http_actors::messages::{
    DeleteParkedMessage, Drain, GetOutboxState, GetParkedMessages, ParkedMessage, PublishParkedMessage,
    SendMessageToUserManager,
};
use user_http_actors::payload::Payload;
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::{Change, Durable, Put, Store};
use user_http_actors::system::OpenStore;
use user_http_actors::{Error, UserManagerPublisher};
use uuid::Uuid;

use crate::support::publisher::Broker;

use log::open;

/// A publisher on a log, with a broker whose every move the test makes.
struct Service {
    publisher: Addr<UserManagerPublisher>,
    broker: Broker,
    epoch: u64,
}

impl Service {
    async fn start(directory: &Path) -> Self {
        let (store, recovered) = open(directory).await;
        let store = OpenStore::of_log("test", directory, store, recovered);
        let (publisher, broker) = publisher::start_with_broker(store, 1 << 20, FrameAck::Stored);
        Self { publisher, broker, epoch: 0 }
    }

    fn connect(&mut self) {
        self.epoch += 1;
        (self.broker.events)(PublisherEvent::Connected { epoch: self.epoch });
    }

    fn disconnect(&self) {
        (self.broker.events)(PublisherEvent::Disconnected { reason: "406".into(), lost: false });
    }

    async fn post(&self, body: &str) {
        let message = OutgoingMessage {
            kind: ForwardedType::FrameRendered,
            user_id: "a user".into(),
            format: Format::Pickle,
            body: Payload::from_parts(vec![Bytes::copy_from_slice(body.as_bytes())]),
        };
        // answered by the store, or by the broker's confirm
        drop(actix::spawn(self.publisher.send(SendMessageToUserManager::from(message))));
    }

    /// What is published until the actor has nothing more to do.
    async fn published(&self) -> Vec<(u64, String)> {
        self.publisher.send(GetOutboxState).await.expect("alive");
        let text = |publication: &Publication| {
            String::from_utf8(publication.body.read_all().expect("readable").to_vec()).expect("text")
        };
        self.broker.published().iter().map(|publication| (publication.seq, text(publication))).collect()
    }

    fn outcome(&self, seq: u64, outcome: Outcome) {
        self.broker.outcome(seq, outcome);
    }

    async fn parked(&self) -> Vec<ParkedMessage> {
        self.publisher.send(GetParkedMessages).await.expect("alive").0
    }

    async fn stop(self) {
        // Nothing is being published, or nobody waits for it.
        self.disconnect();
        self.publisher.send(Drain).await.expect("alive");
    }
}

fn texts(published: &[(u64, String)]) -> Vec<&str> {
    published.iter().map(|(_, text)| text.as_str()).collect()
}

/// A service whose message "2" of three is parked, and whose others have arrived.
async fn with_a_parked_message(directory: &Path) -> Service {
    let mut service = Service::start(directory).await;
    service.connect();
    for body in ["1", "2", "3"] {
        service.post(body).await;
    }
    let published = service.published().await;
    assert_eq!(texts(&published), ["1", "2", "3"]);
    service.outcome(published[0].0, Outcome::Confirmed);
    service.outcome(published[2].0, Outcome::Confirmed);
    service.outcome(published[1].0, Outcome::Refused("406 too large".into()));
    service.disconnect();
    service.connect();
    assert!(service.published().await.is_empty());
    service
}

#[actix::test]
async fn a_parked_message_is_listed_with_all_that_is_known_of_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = with_a_parked_message(directory.path()).await;
    let parked = service.parked().await;
    let [ParkedMessage { user_id, kind: ForwardedType::FrameRendered, size: 1, reason, since_ms, .. }] = &parked[..]
    else {
        panic!("{parked:?}")
    };
    assert_eq!((user_id.as_str(), reason.as_str()), ("a user", "406 too large"));
    assert!(*since_ms > 1_600_000_000_000, "{since_ms}");
}

#[actix::test]
async fn a_parked_message_stays_parked_through_restarts() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = with_a_parked_message(directory.path()).await;
    let before = service.parked().await;
    service.stop().await;
    for _ in 0..2 {
        let mut service = Service::start(directory.path()).await;
        service.connect();
        service.post("later").await;
        let published = service.published().await;
        assert_eq!(texts(&published), ["later"]);
        service.outcome(published[0].0, Outcome::Confirmed);
        let after = service.parked().await;
        assert_eq!(format!("{after:?}"), format!("{before:?}"));
        service.stop().await;
    }
}

#[actix::test]
async fn a_parked_message_that_is_published_goes_out_under_its_id_and_is_parked_no_more() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = with_a_parked_message(directory.path()).await;
    let message_id = service.parked().await[0].message_id;
    service.publisher.send(PublishParkedMessage { message_id }).await.expect("alive").expect("it is parked");
    assert!(service.parked().await.is_empty());
    let again = service.publisher.send(PublishParkedMessage { message_id }).await.expect("alive");
    assert!(matches!(again, Err(Error::NoSuchMessage)));
    let published = service.published().await;
    assert_eq!(texts(&published), ["2"]);
    service.stop().await;
    // it has no outcome, so it is sent after a restart, too
    let mut service = Service::start(directory.path()).await;
    service.connect();
    let published = service.published().await;
    assert_eq!(texts(&published), ["2"]);
    service.outcome(published[0].0, Outcome::Confirmed);
    assert_eq!(service.publisher.send(GetOutboxState).await.expect("alive").messages, 0);
}

#[actix::test]
async fn a_message_that_a_kill_has_left_with_two_markers_is_parked_no_more_once_it_is_published() {
    let directory = tempfile::tempdir().expect("a directory");
    with_a_parked_message(directory.path()).await.stop().await;
    let (mut store, found) = open(directory.path()).await;
    let marker = found.last().expect("the marker is behind its message").meta.clone();
    let put = Put { seq: store.next_seq(), meta: marker, body: Payload::empty() };
    store.commit(&[Change::Put(put)], Durable::Now).expect("space");
    drop(store);
    let service = Service::start(directory.path()).await;
    let parked = service.parked().await;
    let [ParkedMessage { message_id, .. }] = parked[..] else { panic!("{parked:?}") };
    service.publisher.send(PublishParkedMessage { message_id }).await.expect("alive").expect("it is parked");
    service.stop().await;
    let mut service = Service::start(directory.path()).await;
    assert!(service.parked().await.is_empty());
    service.connect();
    assert_eq!(texts(&service.published().await), ["2"]);
}

#[actix::test]
async fn a_parked_message_that_is_deleted_does_not_come_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = with_a_parked_message(directory.path()).await;
    let message_id = service.parked().await[0].message_id;
    let unknown = DeleteParkedMessage { message_id: Uuid::nil() };
    assert!(matches!(service.publisher.send(unknown).await.expect("alive"), Err(Error::NoSuchMessage)));
    service.publisher.send(DeleteParkedMessage { message_id }).await.expect("alive").expect("it is parked");
    let state = service.publisher.send(GetOutboxState).await.expect("alive");
    assert_eq!((state.messages, state.bytes, state.parked), (0, 0, 0));
    service.stop().await;
    let (_, left) = open(directory.path()).await;
    assert!(left.is_empty(), "{left:?}");
}

#[actix::test]
async fn of_many_suspects_the_one_that_the_broker_refuses_alone_is_parked() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut service = Service::start(directory.path()).await;
    service.connect();
    for body in ["1", "2", "bad", "4", "5"] {
        service.post(body).await;
    }
    assert_eq!(texts(&service.published().await), ["1", "2", "bad", "4", "5"]);
    let refuse = |service: &mut Service| {
        (service.broker.events)(PublisherEvent::Suspected { reason: "406 for a reason of its own".into() });
        service.disconnect();
        service.connect();
    };
    refuse(&mut service);
    let mut arrived = Vec::new();
    // One is published at a time, until all five have an outcome.
    while arrived.len() < 4 {
        let published = service.published().await;
        let [(seq, text)] = &published[..] else { panic!("{published:?}") };
        if text == "bad" {
            refuse(&mut service);
        } else {
            service.outcome(*seq, Outcome::Confirmed);
            arrived.push(text.clone());
        }
    }
    assert_eq!(arrived, ["1", "2", "4", "5"]);
    assert_eq!(service.parked().await[0].reason, "406 for a reason of its own");
    // and the window is open again
    for body in ["6", "7"] {
        service.post(body).await;
    }
    assert_eq!(texts(&service.published().await), ["6", "7"]);
}
