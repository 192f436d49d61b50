//! What the buffer counts, path by path, and that its books balance.

use crate::support::books;
use crate::support::log;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use user_http_actors::administration::{DiscardBufferMsg, Requester};
use user_http_actors::broker::Fingerprint;
use user_http_actors::codec::BufferMsg;
use user_http_actors::lease::BufferLease;
use user_http_actors::messages::{AddBufferMsg, BrokerDelivery, Drain, GetBufferState, LeaseBufferMsg};
use user_http_actors::payload::Payload;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, NO_RECORD, Put, Recovered, Store, StoreError};
use user_http_actors::system::OpenStore;
use user_http_actors::{BufferActor, Error};

use books::Books;

const DAY: Duration = Duration::from_secs(86_400);

/// Longer messages wait for a permit.
const LARGE: usize = 200;

/// A store whose commits of large messages, and of durable removals, the test decides on.
struct Asking {
    reached: SyncSender<()>,
    refuse: Receiver<bool>,
}

impl Store for Asking {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let is_asked = |change: &Change| match change {
            Change::Put(put) => put.body.len() > LARGE as u64,
            Change::Remove(seq) => durable == Durable::Now && *seq != NO_RECORD,
        };
        if changes.iter().any(is_asked) {
            let _ = self.reached.send(());
            if self.refuse.recv().unwrap_or(false) {
                return Err(StoreError::NoSpace("full".into()));
            }
        }
        MemoryStore.commit(changes, durable)
    }
}

struct Gateway {
    buffer: Addr<BufferActor>,
    books: Books,
    reached: Receiver<()>,
    refuse: SyncSender<bool>,
}

impl Gateway {
    fn start(ttl: Duration, max_bytes: u64) -> Self {
        let (reached, has_reached) = mpsc::sync_channel(64);
        let (refuse, refused) = mpsc::sync_channel(64);
        let store = OpenStore::new("test", Box::new(Asking { reached, refuse: refused }));
        Self::on(store, ttl, max_bytes, has_reached, refuse)
    }

    async fn on_disk(directory: &Path) -> Self {
        let (store, recovered) = log::open(directory).await;
        let (refuse, _) = mpsc::sync_channel(1);
        let (_, reached) = mpsc::sync_channel(1);
        Self::on(OpenStore::of_log("test", directory, store, recovered), DAY, 1 << 20, reached, refuse)
    }

    fn on(store: OpenStore, ttl: Duration, max: u64, reached: Receiver<()>, refuse: SyncSender<bool>) -> Self {
        let books = Books::new();
        let start = || store.start(|_| {}, |store, found, _| BufferActor::new(store, found, max, ttl));
        let buffer = books.start(start).expect("a sound store");
        Self { buffer, books, reached, refuse }
    }

    async fn add(&self, uuid: &str, len: usize, delivery: Option<BrokerDelivery>) -> Result<(), Error> {
        let pickle = Payload::from_parts(vec![Bytes::from(vec![7; len])]);
        let message = BufferMsg { pickle, blend: None, sha256: None };
        self.buffer.send(AddBufferMsg { buffer_uuid: uuid.into(), message, delivery }).await.expect("alive")
    }

    async fn lease(&self, uuid: &str) -> Result<BufferLease, Error> {
        let lease = LeaseBufferMsg { buffer_uuid: uuid.into(), max_single_write: 0, wait: Duration::ZERO, seen: None };
        self.buffer.send(lease).await.expect("alive").map(|leased| leased.lease)
    }

    async fn discard(&self, uuid: &str) -> Result<(), Error> {
        let requester = Requester { name: "a test".into(), request_id: String::new() };
        self.buffer.send(DiscardBufferMsg { buffer_uuid: uuid.into(), requester }).await.expect("alive")
    }

    /// Waits until the store asks.
    async fn asked(&self) {
        while self.reached.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
    }

    fn answer(&self, refuse: bool) {
        self.refuse.send(refuse).expect("the store waits");
    }

    /// Accepted from HTTP and from AMQP, delivered, replaced, expired, discarded, held; the books balance.
    async fn counts(&self) -> [f64; 7] {
        // what was sent to the actor before has been handled
        self.buffer.send(GetBufferState).await.expect("alive");
        let scrape = self.books.scrape();
        assert_eq!(scrape.unbalanced(0), Vec::<String>::new());
        let accepted = ["http", "amqp"].map(|source| scrape.sum("buffer_accepted_total", &[("source", source)]));
        let left =
            ["delivered", "replaced", "expired", "discarded"].map(|how| scrape.value(&format!("buffer_{how}_total")));
        [&accepted[..], &left, &[scrape.value("buffer_messages")]].concat().try_into().expect("seven")
    }
}

fn delivery(redelivered: bool) -> Option<BrokerDelivery> {
    Some(BrokerDelivery { fingerprint: Fingerprint::new(b"message", None), redelivered })
}

#[actix::test]
async fn a_message_that_was_replaced_during_its_delivery_is_replaced_and_not_delivered() {
    let gateway = Gateway::start(DAY, 1 << 20);
    gateway.add("a", 1, None).await.expect("accepted");
    let earlier = gateway.lease("a").await.expect("it is there");
    gateway.add("a", 1, None).await.expect("accepted");
    earlier.delivered();
    assert_eq!(gateway.counts().await, [2.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    gateway.lease("a").await.expect("it is there").delivered();
    assert_eq!(gateway.counts().await, [2.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
}

#[actix::test]
async fn what_the_broker_delivers_again_is_not_accepted_again_before_or_while_it_is_stored() {
    let gateway = Gateway::start(DAY, 1 << 20);
    let first = gateway.add("a", LARGE + 1, delivery(false));
    let again = async {
        gateway.asked().await;
        let again = gateway.add("a", LARGE + 1, delivery(true));
        let answers = async {
            // the second one is admitted, because the first one is not stored yet
            gateway.buffer.send(GetBufferState).await.expect("alive");
            gateway.answer(false);
            gateway.asked().await;
            gateway.answer(false);
        };
        futures::join!(again, answers).0
    };
    let (first, again) = futures::join!(first, again);
    assert!(first.is_ok() && again.is_ok());
    gateway.add("a", 1, delivery(true)).await.expect("it is known");
    assert_eq!(gateway.counts().await, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
}

#[actix::test]
async fn a_put_that_is_refused_after_it_was_admitted_is_not_accepted() {
    let gateway = Gateway::start(DAY, 1 << 20);
    let refused = async {
        gateway.asked().await;
        gateway.answer(true);
    };
    let (added, ()) = futures::join!(gateway.add("a", LARGE + 1, None), refused);
    assert!(added.is_err());
    assert_eq!(gateway.counts().await, [0.0; 7]);
}

#[actix::test]
async fn a_replacement_without_space_for_both_is_not_accepted_and_the_earlier_one_stays() {
    let gateway = Gateway::start(DAY, 1_500);
    gateway.add("a", 100, None).await.expect("space");
    let replacing = gateway.add("a", 800, None);
    let leasing = async {
        gateway.asked().await;
        let earlier = gateway.lease("a").await.expect("it is there");
        gateway.answer(false);
        // the removal
        gateway.asked().await;
        gateway.answer(false);
        earlier
    };
    let (replaced, earlier) = futures::join!(replacing, leasing);
    assert!(replaced.is_err());
    assert_eq!(gateway.counts().await, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!(gateway.books.scrape().value("buffer_in_delivery"), 1.0);
    drop(earlier);
    assert_eq!(gateway.counts().await[6], 1.0);
    assert_eq!(gateway.books.scrape().value("buffer_in_delivery"), 0.0);
}

#[actix::test]
async fn a_message_is_discarded_when_the_store_has_removed_it_and_not_if_it_refuses() {
    let gateway = Gateway::start(DAY, 1 << 20);
    gateway.add("a", 1, None).await.expect("accepted");
    for refuse in [true, false] {
        let answered = async {
            gateway.asked().await;
            gateway.answer(refuse);
        };
        let (discarded, ()) = futures::join!(gateway.discard("a"), answered);
        assert_eq!(discarded.is_err(), refuse, "{discarded:?}");
        let counts = if refuse { [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0] } else { [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0] };
        assert_eq!(gateway.counts().await, counts);
    }
    assert!(matches!(gateway.discard("a").await, Err(Error::NoBufferMsg)));
    assert_eq!(gateway.counts().await, [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
}

#[actix::test]
async fn a_message_that_gets_too_old_is_expired_once_also_during_its_delivery() {
    let gateway = Gateway::start(Duration::from_millis(1), 1 << 20);
    gateway.add("a", 1, None).await.expect("accepted");
    while gateway.counts().await[4] < 1.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(gateway.counts().await, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);

    let gateway = Gateway::start(Duration::from_millis(500), 1 << 20);
    gateway.add("a", 1, None).await.expect("accepted");
    let leased = gateway.lease("a").await.expect("it is not that old");
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(gateway.counts().await, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    drop(leased);
    assert_eq!(gateway.counts().await, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
}

#[actix::test]
async fn what_a_kill_leaves_of_a_replaced_message_is_not_recovered() {
    let directory = tempfile::tempdir().expect("a directory");
    let gateway = Gateway::on_disk(directory.path()).await;
    gateway.add("a", 1, None).await.expect("accepted");
    gateway.add("b", 1, None).await.expect("accepted");
    gateway.buffer.send(Drain).await.expect("alive");
    drop(gateway);
    let (mut store, recovered) = log::open(directory.path()).await;
    // a kill between the commit of a message and the removal of the one that it replaces leaves both
    let Recovered { seq, meta, body } = recovered[0].clone();
    assert_eq!(seq, 1);
    store.commit(&[Change::Put(Put { seq: store.next_seq(), meta, body })], Durable::Now).expect("space");
    drop(store);
    let gateway = Gateway::on_disk(directory.path()).await;
    assert_eq!(gateway.books.scrape().value("buffer_recovered_messages"), 2.0);
    assert_eq!(gateway.counts().await, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
    gateway.buffer.send(Drain).await.expect("alive");
}
