//! A publisher actor whose broker, disk and clock the test moves.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use actix::{Addr, AsyncContext, Context};
use bytes::Bytes;
use tokio::task::JoinHandle;
use user_http_actors::broker::{Outcome, PublisherEvent};
use user_http_actors::codec::{Format, ForwardedType, OutgoingMessage};
use user_http_actors::messages::{
    FromStore, GetOutboxState, GetParkedMessages, OutboxState, ParkedMessage, SendMessageToUserManager,
};
use user_http_actors::payload::Payload;
use user_http_actors::publisher::FrameAck;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, NO_RECORD, Put, Recovered, Seq, Store, StoreError, StoreHandle};
use user_http_actors::{Accepted, Error, IdempotencyKey, UserManagerPublisher};
use uuid::Uuid;

use crate::support::books::Books;
use crate::support::scripted_broker::{Broker, start_route};

/// In real time.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `test` with a clock that only [`Gateway::advance`] moves.
pub fn in_paused_time(test: impl Future<Output = ()>) {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    actix::System::with_tokio_rt(|| runtime().expect("a runtime")).block_on(test);
}

/// Waits without being idle: the clock would move by itself.
async fn busily<F: Future>(what: &str, future: F) -> F::Output {
    let (start, mut future) = (Instant::now(), Box::pin(future));
    loop {
        if let Poll::Ready(output) = futures::poll!(&mut future) {
            return output;
        }
        assert!(start.elapsed() < DEADLINE, "{what}");
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
}

/// What the disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    Writes,
    Full,
    Hangs,
}

struct Scripted {
    disk: Disk,
    records: BTreeMap<Seq, Put>,
    puts: usize,
    /// Whether each record that was removed was a message, in their order.
    removed_messages: Vec<bool>,
}

/// The other end of the store.
#[derive(Clone)]
pub struct ScriptedDisk(Arc<(Mutex<Scripted>, Condvar)>);

impl ScriptedDisk {
    fn lock(&self) -> MutexGuard<'_, Scripted> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, disk: Disk) {
        self.lock().disk = disk;
        self.0.1.notify_all();
    }

    pub fn is(&self, disk: Disk) -> bool {
        self.lock().disk == disk
    }

    /// How many messages were written.
    pub fn puts(&self) -> usize {
        self.lock().puts
    }

    /// Whether each record that was removed was a message, in their order.
    pub fn removed_messages(&self) -> Vec<bool> {
        self.lock().removed_messages.clone()
    }

    /// The messages that are stored.
    pub fn records(&self) -> Vec<u64> {
        // a marker has no body, and neither has a key
        let scripted = self.lock();
        let messages = scripted.records.values().filter(|put| !put.body.is_empty());
        messages.map(|put| number_of(&put.body.read_all().expect("readable"))).collect()
    }

    pub fn holds(&self, number: u64) -> bool {
        self.records().contains(&number)
    }

    /// A disk that has what this one has.
    fn copy(&self) -> Self {
        let records = self.lock().records.clone();
        Self(Arc::new((
            Mutex::new(Scripted { disk: Disk::Writes, records, puts: 0, removed_messages: Vec::new() }),
            Condvar::new(),
        )))
    }

    /// What is stored, and the number of the next record.
    fn recovered(&self) -> (Vec<Recovered>, Seq) {
        let scripted = self.lock();
        let recovered = |put: &Put| Recovered { seq: put.seq, meta: put.meta.clone(), body: put.body.clone() };
        let next = scripted.records.last_key_value().map_or(1, |(seq, _)| seq + 1);
        (scripted.records.values().map(recovered).collect(), next)
    }
}

impl Store for ScriptedDisk {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let guard = self.0.1.wait_while(self.lock(), |scripted| scripted.disk == Disk::Hangs);
        let mut scripted = guard.unwrap_or_else(PoisonError::into_inner);
        let needs_space = |change: &Change| matches!(change, Change::Put(_) | Change::Remove(NO_RECORD));
        if changes.iter().any(needs_space) && scripted.disk == Disk::Full {
            return Err(StoreError::NoSpace("full".into()));
        }
        for change in changes {
            match change {
                Change::Put(put) => {
                    scripted.puts += usize::from(!put.body.is_empty());
                    scripted.records.insert(put.seq, put.clone());
                }
                Change::Remove(seq) => {
                    let removed = scripted.records.remove(seq);
                    scripted.removed_messages.extend(removed.map(|put| !put.body.is_empty()));
                }
            }
        }
        MemoryStore.commit(changes, durable)
    }
}

fn start_on(disk: &ScriptedDisk, frame_ack: FrameAck, books: &Books) -> (Addr<UserManagerPublisher>, Broker) {
    let (recovered, next_seq) = disk.recovered();
    let store: Box<dyn Store> = Box::new(disk.clone());
    start_route(frame_ack, |route| {
        let ctx = Context::new();
        let (address, owner) = (ctx.address(), ctx.address());
        let store = StoreHandle::start("test", store, next_seq, move |event| owner.do_send(FromStore(event)));
        let store = store.expect("a thread");
        let actor = books.start(|| UserManagerPublisher::new(store, recovered, 1 << 30, Some(route), address));
        ctx.run(actor.expect("sound records"))
    })
}

fn number_of(body: &[u8]) -> u64 {
    std::str::from_utf8(body).ok().and_then(|text| text.trim_end().parse().ok()).expect("a number")
}

enum Answer {
    Awaited(JoinHandle<Result<Accepted, Error>>),
    Given(Result<Accepted, Error>),
    HungUp,
}

/// A publisher with what the test knows of it. Messages are numbered, and a message's body is its number.
pub struct Gateway {
    pub publisher: Addr<UserManagerPublisher>,
    pub disk: ScriptedDisk,
    broker: Broker,
    epoch: u64,
    answers: BTreeMap<u64, Answer>,
    /// What is published on this connection and has no outcome, with the sequence numbers.
    outstanding: Vec<(u64, Seq)>,
    first_published: Vec<u64>,
    frame_ack: FrameAck,
    /// Each message that was published, with each id that it had.
    ids: BTreeSet<(u64, Uuid)>,
    pub books: Books,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // its thread has to end
        self.disk.set(Disk::Writes);
    }
}

impl Gateway {
    pub fn start(frame_ack: FrameAck) -> Self {
        let scripted = Scripted { disk: Disk::Writes, records: BTreeMap::new(), puts: 0, removed_messages: Vec::new() };
        let disk = ScriptedDisk(Arc::new((Mutex::new(scripted), Condvar::new())));
        let books = Books::new();
        let (publisher, broker) = start_on(&disk, frame_ack, &books);
        let (answers, outstanding, first_published) = (BTreeMap::new(), Vec::new(), Vec::new());
        let ids = BTreeSet::new();
        Self { publisher, disk, broker, epoch: 0, answers, outstanding, first_published, frame_ack, ids, books }
    }

    /// Another process with what the disk has at the moment. The clients of this one get no answer any more.
    pub fn kill_and_start_again(&mut self) {
        let disk = self.disk.copy();
        self.disk.set(Disk::Writes);
        self.books = Books::new();
        (self.publisher, self.broker) = start_on(&disk, self.frame_ack, &self.books);
        self.disk = disk;
        self.outstanding.clear();
        for answer in self.answers.values_mut() {
            if let Answer::Awaited(handle) = answer {
                handle.abort();
                *answer = Answer::HungUp;
            }
        }
    }

    pub async fn connected(frame_ack: FrameAck) -> Self {
        let mut gateway = Self::start(frame_ack);
        gateway.connect().await;
        gateway
    }

    pub async fn connect(&mut self) {
        self.epoch += 1;
        self.event(PublisherEvent::Connected { epoch: self.epoch });
        self.settle().await;
    }

    pub fn event(&mut self, event: PublisherEvent) {
        if let PublisherEvent::Disconnected { .. } = &event {
            self.outstanding.clear();
        }
        (self.broker.events)(event);
    }

    /// What becomes of a message that is [outstanding](Self::outstanding).
    pub fn outcome(&mut self, number: u64, outcome: Outcome) {
        let at = self.outstanding.iter().position(|(outstanding, _)| *outstanding == number);
        let (_, seq) = self.outstanding.remove(at.expect("it is outstanding"));
        self.broker.outcome(seq, outcome);
    }

    /// A worker sends the next message.
    pub fn post(&mut self) -> u64 {
        self.post_of(0)
    }

    /// A worker sends the next message, of at least `size` bytes.
    pub fn post_of(&mut self, size: usize) -> u64 {
        self.send(size, None)
    }

    /// A worker sends the next message, in a request with a key.
    pub fn post_with(&mut self, key: Option<IdempotencyKey>) -> u64 {
        self.send(0, key)
    }

    fn send(&mut self, size: usize, key: Option<IdempotencyKey>) -> u64 {
        let number = self.answers.len() as u64 + 1;
        let mut body = number.to_string().into_bytes();
        body.resize(body.len().max(size), b' ');
        let message = OutgoingMessage {
            kind: ForwardedType::FrameRendered,
            user_id: "worker".into(),
            format: Format::Pickle,
            body: Payload::from_parts(vec![Bytes::from(body)]),
        };
        // a clone may send one message, however full the mailbox is
        let answer = self.publisher.clone().send(SendMessageToUserManager { message, key });
        let answer = actix::spawn(async { answer.await.unwrap_or(Err(Error::Stopping)) });
        self.answers.insert(number, Answer::Awaited(answer));
        number
    }

    pub fn hang_up(&mut self, number: u64) {
        if let Some(Answer::Awaited(answer)) = self.answers.insert(number, Answer::HungUp) {
            answer.abort();
        }
    }

    /// The answer to a message, if there is one.
    pub fn answer(&self, number: u64) -> Option<Result<(), Error>> {
        self.accepted(number).map(|answer| answer.map(drop))
    }

    /// As [`Self::answer`], with what it says.
    pub fn accepted(&self, number: u64) -> Option<Result<Accepted, Error>> {
        match self.answers.get(&number)? {
            Answer::Given(answer) => Some(answer.clone()),
            Answer::Awaited(_) | Answer::HungUp => None,
        }
    }

    pub fn posted(&self) -> impl Iterator<Item = u64> {
        self.answers.keys().copied()
    }

    /// The messages that are published on this connection and have no outcome, in the order of publication.
    pub fn outstanding(&self) -> Vec<u64> {
        self.outstanding.iter().map(|(number, _)| *number).collect()
    }

    /// All messages that were published, in the order of their first publication.
    pub fn first_published(&self) -> &[u64] {
        &self.first_published
    }

    /// Each message that was published, with each id that it had.
    pub fn ids(&self) -> &BTreeSet<(u64, Uuid)> {
        &self.ids
    }

    pub async fn state(&self) -> OutboxState {
        busily("the actor is alive", self.publisher.send(GetOutboxState)).await.expect("alive")
    }

    pub async fn parked(&self) -> Vec<ParkedMessage> {
        busily("the store works", self.publisher.send(GetParkedMessages)).await.expect("alive").0
    }

    /// Waits until the actor has nothing more to do, and the store neither, unless the disk hangs. The books balance
    /// then.
    pub async fn settle(&mut self) {
        self.state().await;
        if !self.disk.is(Disk::Hangs) {
            // its reply comes when everything requested before has its outcome; twice, because outcomes lead to
            // requests
            self.parked().await;
            self.parked().await;
            self.check_books().await;
        }
        self.settle_answers().await;
    }

    /// Checks that the books balance, unless something happens meanwhile.
    async fn check_books(&self) {
        let before = self.state().await;
        let scrape = self.books.scrape();
        let after = self.state().await;
        let moves = |state: &OutboxState| [state.arrived_total, state.forwarded_total, state.messages as u64];
        if moves(&before) == moves(&after) {
            let unbalanced = scrape.unbalanced(before.unstored);
            assert_eq!(unbalanced, Vec::<String>::new(), "{before:?}");
        }
    }

    /// Takes in what was answered and published.
    pub async fn settle_answers(&mut self) {
        // whoever waits gets its answer within one turn
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        for answer in self.answers.values_mut() {
            if let Answer::Awaited(handle) = answer
                && handle.is_finished()
            {
                *answer = Answer::Given(handle.await.expect("no panic"));
            }
        }
        for publication in self.broker.published() {
            let number = number_of(&publication.body.read_all().expect("readable"));
            self.ids.insert((number, publication.message_id));
            if publication.epoch == self.epoch {
                self.outstanding.push((number, publication.seq));
            }
            if !self.first_published.contains(&number) {
                self.first_published.push(number);
            }
        }
    }

    pub async fn wait_for_answer(&mut self, number: u64) {
        let start = Instant::now();
        while self.answer(number).is_none() {
            assert!(start.elapsed() < DEADLINE, "message {number} has no answer");
            self.settle_answers().await;
            std::thread::yield_now();
        }
    }

    pub async fn advance(&mut self, time: Duration) {
        tokio::time::advance(time).await;
        self.settle().await;
    }
}
