//! The consumer actor: what is stored is acknowledged, and what there is no room for goes back to the broker, once.

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use actix::{Actor, Addr};
use bytes::Bytes;
use user_http_actors::broker::{ConsumerEvent, ConsumerLink, Delivery, Fingerprint, Settlement, Settler};
use user_http_actors::codec::Format;
use user_http_actors::decoder::Decoder;
use user_http_actors::messages::{BufferState, GetBufferState, GetConsumerState, LeaseBufferMsg};
use user_http_actors::store::StoreHandle;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::{BufferActor, CommunicationInterfaceConsumer};

/// What the actor tells the broker, in order.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Consume(u16),
    Settled(u64, Settlement),
}
use Told::{Consume, Settled};

struct Link(Sender<Told>);

impl ConsumerLink for Link {
    fn consume(&self, prefetch: u16) {
        let _ = self.0.send(Consume(prefetch));
    }

    fn stop(self: Box<Self>, _: Duration) -> bool {
        true
    }
}

/// A consumer in front of a buffer, with a broker whose every move the test makes.
struct Consuming {
    consumer: Addr<CommunicationInterfaceConsumer>,
    buffer: Addr<BufferActor>,
    events: Box<dyn Fn(ConsumerEvent) + Send>,
    tell: Sender<Told>,
    told: Receiver<Told>,
}

impl Consuming {
    async fn start(max_bytes: u64) -> Self {
        let store = StoreHandle::start("test", Box::new(MemoryStore), 1, |_| {}).expect("a thread");
        let buffer = BufferActor::new(store, Vec::new(), max_bytes, Duration::from_secs(3_600)).expect("empty").start();
        let (tell, told) = mpsc::channel();
        let (start, started) = mpsc::channel();
        let link = Link(tell.clone());
        let consumer = CommunicationInterfaceConsumer::new(
            Decoder::start(),
            buffer.clone(),
            Box::new(move |events| {
                start.send(events).expect("the test waits");
                Box::new(link)
            }),
        )
        .start();
        consumer.send(GetConsumerState).await.expect("alive");
        let events = started.recv().expect("it has started");
        events(ConsumerEvent::Connected);
        Self { consumer, buffer, events, tell, told }
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
        let tell = self.tell.clone();
        (self.events)(ConsumerEvent::Delivered(Delivery {
            fingerprint: Fingerprint::new(number.to_string().as_bytes(), None),
            body: Bytes::from(body),
            message_id: None,
            format: Format::Json,
            data_format: "not given".into(),
            redelivered,
            settler: Settler::new(move |settlement| drop(tell.send(Settled(number, settlement)))),
        }));
    }

    /// The next thing that the broker is told.
    async fn told(&self) -> Told {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            match self.told.try_recv() {
                Ok(told) => return told,
                Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(_) => panic!("the broker is told nothing more"),
            }
        }
    }

    async fn tell(&self, count: usize) -> Vec<Told> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(self.told().await);
        }
        all
    }

    async fn state(&self) -> BufferState {
        self.buffer.send(GetBufferState).await.expect("alive")
    }

    /// A worker fetches a message, and its beginning is returned.
    async fn fetch(&self, uuid: &str) -> String {
        let lease = LeaseBufferMsg { buffer_uuid: uuid.into(), max_single_write: 0 };
        let leased = self.buffer.send(lease).await.expect("alive").expect("it is buffered");
        let pickle = leased.view.payload.read_all().expect("readable");
        leased.lease.delivered();
        String::from_utf8_lossy(&pickle).chars().filter(char::is_ascii_digit).take(1).collect()
    }
}

#[actix::test]
async fn while_there_is_no_room_nothing_is_consumed_and_what_is_in_hand_goes_back_once() {
    let consuming = Consuming::start(130_000).await;
    for number in 1..=6 {
        consuming.deliver(number, &number.to_string(), 40_000, false);
    }
    let mut told = consuming.tell(7).await;
    // acknowledgements and the end of consuming may cross
    told.sort_by_key(|told| match told {
        Consume(_) => 0,
        Settled(number, _) => *number,
    });
    let requeued = |number| Settled(number, Settlement::Requeue);
    let acknowledged = |number| Settled(number, Settlement::Ack);
    assert_eq!(told[..4], [Consume(0), acknowledged(1), acknowledged(2), acknowledged(3)]);
    assert_eq!(told[4..], [requeued(4), requeued(5), requeued(6)]);
    assert!(consuming.consumer.send(GetConsumerState).await.expect("alive").paused);

    // one at a time while there is little room: the next one that there is no room for goes back alone
    assert_eq!(consuming.fetch("1").await, "1");
    assert_eq!(consuming.told().await, Consume(1));
    consuming.deliver(4, "4", 40_000, true);
    assert_eq!(consuming.told().await, acknowledged(4));
    consuming.deliver(5, "5", 40_000, true);
    assert_eq!(consuming.tell(2).await, [Consume(0), requeued(5)]);
    // and all at once when there is plenty
    for uuid in ["2", "3", "4"] {
        consuming.fetch(uuid).await;
    }
    match consuming.told().await {
        Consume(32) => {}
        Consume(1) => assert_eq!(consuming.told().await, Consume(32), "between two fetches"),
        other => panic!("{other:?}"),
    }
    assert!(!consuming.consumer.send(GetConsumerState).await.expect("alive").paused);
}

#[actix::test]
async fn what_comes_while_too_much_is_in_hand_goes_back_and_large_ones_come_in_ones() {
    const LARGE: usize = 33 << 20;
    let consuming = Consuming::start(1 << 30).await;
    consuming.deliver_padded(1, LARGE, false);
    consuming.deliver_padded(2, LARGE, false);
    assert_eq!(consuming.tell(2).await, [Consume(0), Settled(2, Settlement::Requeue)]);
    assert_eq!(consuming.told().await, Settled(1, Settlement::Ack));
    assert_eq!(consuming.told().await, Consume(1));
    consuming.deliver_padded(2, LARGE, true);
    assert_eq!(consuming.told().await, Settled(2, Settlement::Ack));
    // small ones again: more of them at once
    for number in 3..35 {
        consuming.deliver(number, &number.to_string(), 10, false);
        assert_eq!(consuming.told().await, Settled(number, Settlement::Ack));
    }
    assert_eq!(consuming.told().await, Consume(32));
}

#[actix::test]
async fn an_earlier_message_does_not_come_back_over_a_later_one_of_its_uuid() {
    let consuming = Consuming::start(100_000).await;
    consuming.deliver(1, "full", 60_000, false);
    assert_eq!(consuming.told().await, Settled(1, Settlement::Ack));
    consuming.deliver(2, "id", 60_000, false);
    consuming.deliver(3, "id", 100, false);
    let mut told = consuming.tell(3).await;
    told.sort_by_key(|told| matches!(told, Settled(2, _)));
    assert!(told.contains(&Consume(0)) && told.contains(&Settled(3, Settlement::Ack)), "{told:?}");
    assert_eq!(told[2], Settled(2, Settlement::Ack), "the later one has taken its place");
    // both acknowledgements are lost with the connection
    (consuming.events)(ConsumerEvent::Disconnected { reason: "gone".into() });
    assert_eq!(consuming.fetch("full").await, "1");
    assert_eq!(consuming.told().await, Consume(32));
    (consuming.events)(ConsumerEvent::Connected);
    consuming.deliver(2, "id", 60_000, true);
    consuming.deliver(3, "id", 100, true);
    assert_eq!(consuming.tell(2).await, [Settled(2, Settlement::Ack), Settled(3, Settlement::Ack)]);
    assert_eq!(consuming.state().await.messages, 1);
    assert_eq!(consuming.fetch("id").await, "3");
}

#[actix::test]
async fn an_earlier_message_does_not_come_back_where_the_connection_ends_before_the_later_one_is_stored() {
    let consuming = Consuming::start(100_000).await;
    consuming.deliver(1, "full", 60_000, false);
    assert_eq!(consuming.told().await, Settled(1, Settlement::Ack));
    consuming.deliver(2, "id", 60_000, false);
    consuming.deliver(3, "id", 100, false);
    // the earlier one has been refused
    assert_eq!(consuming.told().await, Consume(0));
    (consuming.events)(ConsumerEvent::Disconnected { reason: "gone".into() });
    consuming.tell(2).await;
    assert_eq!(consuming.fetch("full").await, "1");
    assert_eq!(consuming.told().await, Consume(32));
    (consuming.events)(ConsumerEvent::Connected);
    consuming.deliver(2, "id", 60_000, true);
    consuming.deliver(3, "id", 100, true);
    assert_eq!(consuming.tell(2).await, [Settled(2, Settlement::Ack), Settled(3, Settlement::Ack)]);
    assert_eq!(consuming.fetch("id").await, "3");
}
