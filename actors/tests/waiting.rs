//! The buffer actor: requests that wait for a message, or for its delivery to end.

use std::time::{Duration, Instant};

use actix::Addr;
use bytes::Bytes;
use futures::FutureExt;
use user_http_actors::codec::BufferMsg;
use user_http_actors::lease::LeasedBufferMsg;
use user_http_actors::messages::{AddBufferMsg, Drain, GetBufferState, LeaseBufferMsg, PeekBufferMsg, StopWaiting};
use user_http_actors::payload::Payload;
use user_http_actors::store::memory::MemoryStore;
use user_http_actors::system::OpenStore;
use user_http_actors::{BufferActor, Error};

const LONG: Duration = Duration::from_secs(60);

fn start(ttl: Duration) -> Addr<BufferActor> {
    OpenStore::new("test", Box::new(MemoryStore))
        .start(|_| {}, |store, found, _| BufferActor::new(store, found, 1 << 20, ttl))
        .expect("an empty store")
}

async fn add(buffer: &Addr<BufferActor>, body: &'static str) {
    let pickle = Payload::from_parts(vec![Bytes::from_static(body.as_bytes())]);
    let message = BufferMsg { pickle, blend: None, sha256: None };
    let add = AddBufferMsg { buffer_uuid: "a".into(), message, delivery: None };
    buffer.send(add).await.expect("alive").expect("accepted");
}

/// Requests the lease at once; the reply comes later.
fn lease(buffer: &Addr<BufferActor>, wait: Duration) -> impl Future<Output = Result<LeasedBufferMsg, Error>> + use<> {
    let reply = buffer.send(LeaseBufferMsg { buffer_uuid: "a".into(), max_single_write: 0, wait, seen: None });
    async { reply.await.expect("alive") }
}

fn peek(buffer: &Addr<BufferActor>, wait: Duration) -> impl Future<Output = Result<u64, Error>> + use<> {
    let reply = buffer.send(PeekBufferMsg { buffer_uuid: "a".into(), wait });
    async { reply.await.expect("alive").map(|view| view.payload.len()) }
}

fn body(leased: &LeasedBufferMsg) -> String {
    String::from_utf8(leased.view.payload.read_all().expect("readable").to_vec()).expect("text")
}

/// How many requests wait. The actor has handled all earlier messages by then.
async fn waiting(buffer: &Addr<BufferActor>) -> usize {
    buffer.send(GetBufferState).await.expect("alive").waiting
}

#[actix::test]
async fn waiting_requests_get_messages_in_the_order_in_which_they_came() {
    let buffer = start(LONG);
    let [first, second, third] = [0; 3].map(|_| lease(&buffer, LONG));
    assert_eq!(waiting(&buffer).await, 3);
    add(&buffer, "one").await;
    let first = first.await.expect("a message");
    assert_eq!((body(&first).as_str(), waiting(&buffer).await), ("one", 2));
    first.lease.delivered();
    assert_eq!(waiting(&buffer).await, 2, "a delivered message is for nobody else");
    add(&buffer, "two").await;
    let second = second.await.expect("a message");
    assert_eq!(body(&second), "two");
    // its delivery breaks off
    drop(second);
    assert_eq!(body(&third.await.expect("the message again")), "two");
}

#[actix::test]
async fn a_waiting_request_that_has_given_up_takes_no_message() {
    let buffer = start(LONG);
    drop((lease(&buffer, LONG), peek(&buffer, LONG)));
    let waits = lease(&buffer, LONG);
    add(&buffer, "one").await;
    assert_eq!(body(&waits.await.expect("a message")), "one");
}

#[actix::test]
async fn waiting_requests_that_have_given_up_do_not_pile_up() {
    let buffer = start(LONG);
    let (mut waits, mut given_up) = (Vec::new(), Vec::new());
    for number in 0..4_000 {
        let uuid = format!("{number}");
        let reply = buffer.send(LeaseBufferMsg {
            buffer_uuid: uuid.as_str().into(),
            max_single_write: 0,
            wait: LONG,
            seen: None,
        });
        // every hundredth keeps waiting
        if number % 100 == 0 {
            waits.push(reply);
        } else {
            given_up.push(reply);
        }
        if number % 50 == 0 {
            let most = 2 * (waits.len() + 50) + 16;
            // the actor has them by then
            assert!(waiting(&buffer).await <= most, "after {number}");
            given_up.clear();
        }
    }
    drop(given_up);
    buffer.send(StopWaiting).await.expect("alive");
    for reply in waits {
        assert!(matches!(reply.await.expect("alive"), Err(Error::NoBufferMsg)));
    }
    assert_eq!(waiting(&buffer).await, 0);
}

#[actix::test]
async fn a_request_whose_wait_is_over_gets_the_reply_of_one_without_a_wait() {
    let buffer = start(LONG);
    let wait = Duration::from_millis(100);
    let start = Instant::now();
    assert!(matches!(lease(&buffer, wait).await, Err(Error::NoBufferMsg)));
    assert!(matches!(peek(&buffer, wait).await, Err(Error::NoBufferMsg)));
    assert!(start.elapsed() >= 2 * wait, "after {:?}", start.elapsed());
    add(&buffer, "one").await;
    let leased = lease(&buffer, LONG).await.expect("a message");
    let start = Instant::now();
    assert!(matches!(lease(&buffer, wait).await, Err(Error::InDelivery)));
    assert!(start.elapsed() >= wait, "after {:?}", start.elapsed());
    // the last chunk: the outcome is waited for, as without a wait
    leased.lease.finishing();
    let late = lease(&buffer, Duration::from_millis(1));
    tokio::time::sleep(Duration::from_millis(20)).await;
    leased.lease.delivered();
    assert!(matches!(late.await, Err(Error::NoBufferMsg)));
}

#[actix::test]
async fn who_looks_waits_for_a_message_but_not_for_the_end_of_its_delivery() {
    let buffer = start(LONG);
    let [looks, leases, looks_too] = [true, false, true].map(|looks| match looks {
        true => peek(&buffer, LONG).map(drop).left_future(),
        false => lease(&buffer, LONG).map(|leased| drop(leased.map(|leased| leased.lease.delivered()))).right_future(),
    });
    assert_eq!(waiting(&buffer).await, 3);
    add(&buffer, "one").await;
    futures::join!(looks, leases, looks_too);
    add(&buffer, "two").await;
    let leased = lease(&buffer, LONG).await.expect("a message");
    assert_eq!(peek(&buffer, LONG).await.expect("it is there"), 3);
    leased.lease.finishing();
    let looks = peek(&buffer, LONG);
    assert_eq!(waiting(&buffer).await, 1, "for the outcome");
    drop(leased);
    assert_eq!(looks.await.expect("it is offered again"), 3);
}

#[actix::test]
async fn whoever_waits_for_a_delivery_gets_the_message_that_replaces_it() {
    let buffer = start(LONG);
    add(&buffer, "earlier").await;
    let earlier = lease(&buffer, LONG).await.expect("a message");
    let waits = lease(&buffer, LONG);
    assert_eq!(waiting(&buffer).await, 1);
    add(&buffer, "later").await;
    let later = waits.await.expect("a message");
    assert_eq!(body(&later), "later");
    // the end of the earlier delivery does not end the later one
    let waits = lease(&buffer, LONG);
    earlier.lease.delivered();
    assert_eq!(waiting(&buffer).await, 1);
    drop(later);
    assert_eq!(body(&waits.await.expect("a message")), "later");
}

#[actix::test]
async fn the_first_of_two_gets_a_message_even_if_only_the_second_waits_for_the_last_chunk() {
    let buffer = start(LONG);
    add(&buffer, "one").await;
    let leased = lease(&buffer, LONG).await.expect("a message");
    let first = lease(&buffer, LONG);
    assert_eq!(waiting(&buffer).await, 1);
    leased.lease.finishing();
    let second = lease(&buffer, Duration::ZERO);
    assert_eq!(waiting(&buffer).await, 2);
    drop(leased);
    let (first, second) = futures::join!(first, second);
    assert_eq!(body(&first.expect("a message")), "one");
    assert!(matches!(second, Err(Error::InDelivery)));
}

#[actix::test]
async fn a_message_that_expires_during_its_delivery_is_not_for_the_next_in_the_queue() {
    let buffer = start(Duration::from_millis(50));
    add(&buffer, "old").await;
    let leased = lease(&buffer, LONG).await.expect("in time");
    let waits = lease(&buffer, LONG);
    tokio::time::sleep(Duration::from_millis(60)).await;
    drop(leased);
    assert_eq!(waiting(&buffer).await, 1);
    add(&buffer, "new").await;
    assert_eq!(body(&waits.await.expect("a message")), "new");
}

#[actix::test]
async fn a_stop_ends_all_waiting_and_lets_nobody_wait() {
    for drain in [false, true] {
        let buffer = start(LONG);
        let (leases, looks) = (lease(&buffer, LONG), peek(&buffer, LONG));
        assert_eq!(waiting(&buffer).await, 2);
        if drain {
            buffer.send(Drain).await.expect("alive");
        } else {
            buffer.send(StopWaiting).await.expect("alive");
            assert!(matches!(lease(&buffer, LONG).await, Err(Error::NoBufferMsg)));
            // messages are still delivered
            add(&buffer, "one").await;
            assert_eq!(body(&lease(&buffer, LONG).await.expect("a message")), "one");
        }
        assert!(matches!(leases.await, Err(Error::NoBufferMsg)), "drain: {drain}");
        assert!(matches!(looks.await, Err(Error::NoBufferMsg)), "drain: {drain}");
    }
}
