//! The consumer actor: it acknowledges stored messages, and requeues each message that does not fit once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::time::{Duration, Instant};

use actix::{Addr, AsyncContext, Context};
use bytes::Bytes;
use user_http_actors::broker::{ConsumerEvent, ConsumerLink, Delivery, Fingerprint, Settlement, Settler};
use user_http_actors::codec::Format;
use user_http_actors::consumer::StartConsuming;
use user_http_actors::decoder::Decoder;
use user_http_actors::messages::{BufferState, Drain, GetBufferState, GetConsumerState, LeaseBufferMsg};
use user_http_actors::payload::Payload;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::store::{Change, Durable, Store, StoreError};
use user_http_actors::system::OpenStore;
use user_http_actors::{BufferActor, CommunicationInterfaceConsumer};

/// What the actor sends to the broker, in order.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Consume(u16),
    Settled(u64, Settlement),
    Stopped,
}
use Command::{Consume, Settled, Stopped};

struct Link(Sender<Command>);

impl ConsumerLink for Link {
    fn consume(&self, prefetch: u16) {
        let _ = self.0.send(Consume(prefetch));
    }

    fn stop(self: Box<Self>, _: Duration) -> bool {
        let _ = self.0.send(Stopped);
        true
    }
}

/// A consumer in front of a buffer, with a broker whose every move the test makes.
struct Consuming {
    consumer: Addr<CommunicationInterfaceConsumer>,
    buffer: Addr<BufferActor>,
    events: Box<dyn Fn(ConsumerEvent) + Send>,
    sender: Sender<Command>,
    receiver: Receiver<Command>,
}

impl Consuming {
    async fn start(max_bytes: u64) -> Self {
        Self::start_on(MemoryStore, max_bytes).await
    }

    async fn start_on(store: impl Store + 'static, max_bytes: u64) -> Self {
        let actor = move |store, found, _| BufferActor::new(store, found, max_bytes, Duration::from_secs(3_600));
        let buffer = OpenStore::new("test", Box::new(store)).start(|_| {}, actor).expect("an empty store");
        let (sender, receiver) = mpsc::channel();
        let (start, started) = mpsc::channel();
        let link = Link(sender.clone());
        let ctx = Context::new();
        let start: StartConsuming = Box::new(move |events| {
            start.send(events).expect("the test waits");
            Box::new(link)
        });
        let address = ctx.address();
        let consumer =
            ctx.run(CommunicationInterfaceConsumer::new(Decoder::start(), None, buffer.clone(), start, address));
        let events = started.recv().expect("it has started");
        events(ConsumerEvent::Connected);
        Self { consumer, buffer, events, sender, receiver }
    }

    /// Delivers a message that takes about so many bytes in the buffer.
    fn deliver(&self, number: u64, uuid: &str, size: usize, redelivered: bool) {
        let filling = "x".repeat(size);
        let message = format!(r#""BUFFER_UUID": "{uuid}", "BUFFER_MSG": "{number} {filling}""#);
        self.deliver_body(number, message, redelivered);
    }

    /// Delivers a message whose body has about so many bytes; in the buffer it has few.
    fn deliver_padded(&self, number: u64, size: usize, redelivered: bool) {
        let padding = " ".repeat(size);
        self.deliver_body(number, format!(r#""BUFFER_UUID": "{number}", "BUFFER_MSG": 1{padding}"#), redelivered);
    }

    fn deliver_body(&self, number: u64, message: String, redelivered: bool) {
        let body = format!(r#"{{"TYPE": "ADD_BUFFER_MSG", "DATA": {{{message}}}}}"#);
        let sender = self.sender.clone();
        (self.events)(ConsumerEvent::Delivered(Delivery {
            fingerprint: Fingerprint::new(number.to_string().as_bytes(), None),
            body: Bytes::from(body),
            message_id: None,
            format: Format::Json,
            data_format: "not given".into(),
            redelivered,
            settler: Settler::new(move |settlement| drop(sender.send(Settled(number, settlement)))),
        }));
    }

    /// The next command to the broker.
    async fn command(&self) -> Command {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            match self.receiver.try_recv() {
                Ok(command) => {
                    if command == Consume(0) {
                        (self.events)(ConsumerEvent::Cancelled);
                    }
                    return command;
                }
                Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(_) => panic!("the broker gets no further command"),
            }
        }
    }

    async fn commands(&self, count: usize) -> Vec<Command> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(self.command().await);
        }
        all
    }

    /// The prefetch doubles up to 32 while small messages are stored, and fetched.
    async fn grows_with_small_ones(&self, first: u64) {
        let mut prefetch = 1;
        for number in first.. {
            self.deliver(number, &number.to_string(), 10, true);
            while let Consume(more) = self.command().await {
                assert_eq!(more, 2 * prefetch);
                prefetch = more;
            }
            if prefetch == 32 {
                return;
            }
            self.fetch(&number.to_string()).await;
        }
    }

    async fn state(&self) -> BufferState {
        self.buffer.send(GetBufferState).await.expect("alive")
    }

    /// A worker fetches a message, and its beginning is returned.
    async fn fetch(&self, uuid: &str) -> String {
        let lease = LeaseBufferMsg { buffer_uuid: uuid.into(), max_single_write: 0, wait: Duration::ZERO, seen: None };
        let leased = self.buffer.send(lease).await.expect("alive").expect("it is buffered");
        let pickle = leased.view.payload.read_all().expect("readable");
        leased.lease.delivered();
        String::from_utf8_lossy(&pickle).chars().filter(char::is_ascii_digit).take(1).collect()
    }

    /// A worker fetches a message if there is one, and its number is returned.
    async fn fetch_if_there(&self, uuid: &str) -> Option<u64> {
        let lease = LeaseBufferMsg { buffer_uuid: uuid.into(), max_single_write: 0, wait: Duration::ZERO, seen: None };
        let leased = self.buffer.send(lease).await.expect("alive").ok()?;
        let pickle = String::from_utf8_lossy(&leased.view.payload.read_all().expect("readable")).into_owned();
        leased.lease.delivered();
        let (before, _) = pickle.split_once(" x").expect("the number and the filling");
        let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        before[before.len() - digits..].parse().ok()
    }
}

#[actix::test]
async fn while_the_buffer_is_full_nothing_is_consumed_and_pending_deliveries_are_requeued_once() {
    let consuming = Consuming::start(130_000).await;
    for number in 1..=6 {
        consuming.deliver(number, &number.to_string(), 40_000, false);
    }
    let mut commands = consuming.commands(7).await;
    // acknowledgements and the end of consuming may cross
    commands.sort_by_key(|command| match command {
        Settled(number, _) => *number,
        _ => 0,
    });
    let requeued = |number| Settled(number, Settlement::Requeue);
    let acknowledged = |number| Settled(number, Settlement::Ack);
    assert_eq!(commands[..4], [Consume(0), acknowledged(1), acknowledged(2), acknowledged(3)]);
    assert_eq!(commands[4..], [requeued(4), requeued(5), requeued(6)]);
    assert!(consuming.consumer.send(GetConsumerState).await.expect("alive").paused);

    // One at a time while there is little capacity: the next message that does not fit is requeued alone.
    assert_eq!(consuming.fetch("1").await, "1");
    assert_eq!(consuming.command().await, Consume(1));
    consuming.deliver(4, "4", 40_000, true);
    assert_eq!(consuming.command().await, acknowledged(4));
    consuming.deliver(5, "5", 40_000, true);
    assert_eq!(consuming.commands(2).await, [Consume(0), requeued(5)]);
    for uuid in ["2", "3", "4"] {
        consuming.fetch(uuid).await;
    }
    assert_eq!(consuming.command().await, Consume(1));
    assert!(!consuming.consumer.send(GetConsumerState).await.expect("alive").paused);
    consuming.grows_with_small_ones(5).await;
}

#[actix::test]
async fn deliveries_beyond_the_limit_are_requeued_and_large_ones_are_consumed_one_by_one() {
    const LARGE: usize = 33 << 20;
    let consuming = Consuming::start(1 << 30).await;
    consuming.deliver_padded(1, LARGE, false);
    consuming.deliver_padded(2, LARGE, false);
    assert_eq!(consuming.commands(2).await, [Consume(0), Settled(1, Settlement::Ack)]);
    assert_eq!(consuming.command().await, Settled(2, Settlement::Requeue));
    assert_eq!(consuming.command().await, Consume(1));
    consuming.deliver_padded(2, LARGE, true);
    assert_eq!(consuming.command().await, Settled(2, Settlement::Ack));
    consuming.grows_with_small_ones(3).await;
}

#[actix::test]
async fn what_follows_a_requeued_delivery_is_requeued_too_however_small() {
    const LARGE: usize = 33 << 20;
    let consuming = Consuming::start(1 << 30).await;
    consuming.deliver_padded(1, LARGE, false);
    consuming.deliver_body(2, format!(r#""BUFFER_UUID": "id", "BUFFER_MSG": 2{}"#, " ".repeat(LARGE)), false);
    consuming.deliver(3, "id", 100, false);
    let commands = consuming.commands(4).await;
    assert_eq!(
        commands,
        [Consume(0), Settled(1, Settlement::Ack), Settled(2, Settlement::Requeue), Settled(3, Settlement::Requeue)]
    );
    assert_eq!(consuming.command().await, Consume(1));
    consuming.deliver_body(2, format!(r#""BUFFER_UUID": "id", "BUFFER_MSG": 2{}"#, " ".repeat(LARGE)), true);
    assert_eq!(consuming.command().await, Settled(2, Settlement::Ack));
    consuming.deliver(3, "id", 100, true);
    assert_eq!(consuming.command().await, Settled(3, Settlement::Ack));
    assert_eq!(consuming.fetch("id").await, "3");
}

#[actix::test]
async fn nothing_is_consumed_again_before_the_broker_has_ended_the_deliveries_of_before() {
    let consuming = Consuming::start(100_000).await;
    consuming.deliver(1, "full", 60_000, false);
    assert_eq!(consuming.command().await, Settled(1, Settlement::Ack));
    consuming.deliver(2, "id", 60_000, false);
    // Not by `command`, which would report to the actor that it has been carried out.
    let next = async || loop {
        match consuming.receiver.try_recv() {
            Ok(command) => return command,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!((next().await, next().await), (Consume(0), Settled(2, Settlement::Requeue)));
    assert_eq!(consuming.fetch("full").await, "1");
    // longer than it takes to see that there is space
    tokio::time::sleep(Duration::from_millis(600)).await;
    consuming.deliver(3, "id", 100, false);
    assert_eq!(next().await, Settled(3, Settlement::Requeue), "it was delivered after the requeued one");
    (consuming.events)(ConsumerEvent::Cancelled);
    assert_eq!(next().await, Consume(1));
}

/// A quorum queue: what goes back is delivered first, in the order in which it went back.
struct Queue {
    /// Number, UUID, size, and how often it has been delivered.
    ready: VecDeque<(u64, String, usize, u32)>,
    unsettled: BTreeMap<u64, (u64, String, usize, u32)>,
    returned: VecDeque<(u64, String, usize, u32)>,
    prefetch: u16,
    most_deliveries: u32,
}

impl Queue {
    fn deliver(&mut self, consuming: &Consuming) {
        while self.unsettled.len() < usize::from(self.prefetch) {
            let Some(mut message) = self.returned.pop_front().or_else(|| self.ready.pop_front()) else { return };
            message.3 += 1;
            self.most_deliveries = self.most_deliveries.max(message.3);
            consuming.deliver(message.0, &message.1, message.2, message.3 > 1);
            self.unsettled.insert(message.0, message);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Consume(prefetch) => self.prefetch = prefetch,
            Stopped => panic!("nobody stops the consumer"),
            Settled(number, settlement) => {
                let message = self.unsettled.remove(&number).expect("it was delivered");
                match settlement {
                    Settlement::Ack => {}
                    Settlement::Requeue => self.returned.push_back(message),
                    Settlement::Reject => panic!("{message:?} is sound"),
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.unsettled.is_empty() && self.returned.is_empty()
    }
}

/// Has a queue of so many messages emptied through a buffer of so many bytes, by a worker that comes only when it is
/// full. Returns how often a message was delivered at the most.
async fn empty_through(max_bytes: u64, messages: u64, names: u64, size: fn(u64) -> usize) -> u32 {
    let consuming = Consuming::start(max_bytes).await;
    let ready = (1..=messages).map(|number| (number, (number % names).to_string(), size(number), 0)).collect();
    let mut queue =
        Queue { ready, unsettled: BTreeMap::new(), returned: VecDeque::new(), prefetch: 1, most_deliveries: 0 };
    let mut fetched = BTreeMap::new();
    loop {
        queue.deliver(&consuming);
        let is_paused = consuming.consumer.send(GetConsumerState).await.expect("alive").paused;
        let is_empty = queue.is_empty();
        if is_paused || is_empty {
            for name in 0..names {
                let Some(number) = consuming.fetch_if_there(&name.to_string()).await else { continue };
                let earlier = fetched.insert(name, number);
                assert!(earlier < Some(number), "{number} of UUID {name} comes after {earlier:?}");
            }
        }
        if is_empty && consuming.state().await.messages == 0 {
            break;
        }
        while let Ok(command) = consuming.receiver.try_recv() {
            if command == Consume(0) {
                (consuming.events)(ConsumerEvent::Cancelled);
            }
            queue.take(command);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let last: BTreeMap<u64, u64> = (1..=messages).map(|number| (number % names, number)).collect();
    assert_eq!(fetched, last, "the last message of each UUID was fetched last");
    queue.most_deliveries
}

#[actix::test]
async fn a_queue_that_drops_what_is_delivered_often_is_emptied_through_a_small_buffer() {
    let deliveries = empty_through(100_000, 60, 60, |number| 20_000 + (number as usize * 7_919) % 10_000).await;
    assert!(deliveries <= 2, "one message was delivered {deliveries} times");
}

#[actix::test]
async fn messages_of_one_uuid_stay_in_order_through_a_buffer_that_is_full_again_and_again() {
    let deliveries = empty_through(1_000_000, 600, 50, |number| 1_000 + (number as usize * 7_919) % 50_000).await;
    assert!(deliveries <= 2, "one message was delivered {deliveries} times");
}

/// The later message waits while the earlier one is being stored, or does not fit.
#[actix::test]
async fn a_later_message_of_a_uuid_is_stored_only_after_the_earlier_one() {
    let consuming = Consuming::start(100_000).await;
    consuming.deliver(1, "full", 60_000, false);
    assert_eq!(consuming.command().await, Settled(1, Settlement::Ack));
    consuming.deliver(2, "id", 60_000, false);
    consuming.deliver(3, "id", 100, false);
    let requeued = |number| Settled(number, Settlement::Requeue);
    assert_eq!(consuming.commands(3).await, [Consume(0), requeued(2), requeued(3)]);
    (consuming.events)(ConsumerEvent::Disconnected { reason: "lost".into() });
    assert_eq!(consuming.fetch("full").await, "1");
    assert_eq!(consuming.command().await, Consume(1));
    (consuming.events)(ConsumerEvent::Connected);
    consuming.deliver(2, "id", 60_000, true);
    consuming.deliver(3, "id", 100, true);
    assert_eq!(consuming.commands(2).await, [Settled(2, Settlement::Ack), Settled(3, Settlement::Ack)]);
    assert_eq!(consuming.state().await.messages, 1);
    // both acknowledgements are lost with the connection, and the broker delivers them again in either order
    for redelivered in [[2, 3], [3, 2]] {
        (consuming.events)(ConsumerEvent::Disconnected { reason: "lost".into() });
        (consuming.events)(ConsumerEvent::Connected);
        for number in redelivered {
            consuming.deliver(number, "id", if number == 2 { 60_000 } else { 100 }, true);
            assert_eq!(consuming.command().await, Settled(number, Settlement::Ack));
        }
    }
    assert_eq!(consuming.state().await.messages, 1);
    assert_eq!(consuming.fetch("id").await, "3");
}

/// A disk that asks the test about each commit of a message: whether it is full.
struct Asking {
    reached: SyncSender<()>,
    is_full: Receiver<bool>,
}

impl Store for Asking {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        if changes.iter().any(|change| matches!(change, Change::Put(_))) {
            let _ = self.reached.send(());
            if self.is_full.recv().unwrap_or(false) {
                return Err(StoreError::NoSpace("full".into()));
            }
        }
        MemoryStore.commit(changes, durable)
    }
}

/// A consumer whose first delivery, a message of UUID "id", is being committed; and the answers of its disk.
async fn committing() -> (Consuming, SyncSender<bool>) {
    let ((reached, is_reached), (answers, is_full)) = (mpsc::sync_channel(16), mpsc::sync_channel(16));
    let consuming = Consuming::start_on(Asking { reached, is_full }, 1 << 30).await;
    consuming.deliver(1, "id", 100, false);
    let deadline = Instant::now() + Duration::from_secs(15);
    while is_reached.try_recv().is_err() {
        assert!(Instant::now() < deadline, "nothing is committed");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (consuming, answers)
}

#[actix::test]
async fn a_message_that_is_decoded_while_an_earlier_one_of_its_uuid_is_refused_does_not_overtake_it() {
    let (consuming, disk) = committing().await;
    let large = format!(r#""BUFFER_UUID": "id", "BUFFER_MSG": ["2"{}]"#, ", 0".repeat(1 << 20));
    consuming.deliver_body(2, large.clone(), false);
    consuming.consumer.send(GetConsumerState).await.expect("alive");
    // While the second one is being decoded. The disk has space again right after.
    disk.send(true).expect("it was asked");
    (0..8).for_each(|_| disk.send(false).expect("it will be asked"));
    let requeued = |number| Settled(number, Settlement::Requeue);
    assert_eq!(consuming.commands(3).await, [Consume(0), requeued(1), requeued(2)]);
    assert_eq!(consuming.command().await, Consume(1));
    consuming.deliver(1, "id", 100, true);
    assert_eq!(consuming.command().await, Settled(1, Settlement::Ack));
    consuming.deliver_body(2, large, true);
    while let Consume(_) = consuming.command().await {}
    assert_eq!(consuming.fetch("id").await, "2");
}

/// What is unsettled goes back with the end of the connection. What was requeued before that would be delivered again
/// before an earlier one, if the commit of that fails.
#[actix::test]
async fn a_stop_requeues_nothing_before_the_connection_has_ended() {
    for is_full in [true, false] {
        let (consuming, disk) = committing().await;
        consuming.deliver(2, "id", 100, false);
        consuming.deliver(3, "other", 100, false);
        let drained = actix::spawn(consuming.consumer.send(Drain));
        consuming.consumer.send(GetConsumerState).await.expect("alive");
        disk.send(is_full).expect("it was asked");
        drained.await.expect("no panic").expect("it stops");
        let settled: Vec<Command> = consuming.receiver.try_iter().collect();
        let first = if is_full { Consume(0) } else { Settled(1, Settlement::Ack) };
        assert_eq!(settled[..2], [first, Stopped], "{settled:?}");
    }
}
