//! What the contract promises, with two gateways on one database.

use std::time::Duration;

use user_http_actors::Error;
use user_http_actors::administration::{DiscardBufferMsg, ListBufferMsgs, PageRequest, Requester};
use user_http_actors::codec::BufferMsg;
use user_http_actors::lease::LeasedBufferMsg;
use user_http_actors::messages::{Drain, GetBufferState};

use super::harness::{
    CAPACITY, DAY, Gateway, NOW, SOON, blend, deliver, eventually, from_broker, long_body, message, payload, read,
};
use crate::postgres::server::Postgres;

#[actix::test]
async fn a_message_left_at_one_gateway_is_fetched_once_at_any() {
    let server = Postgres::start();
    let (one, other) = (Gateway::start(&server.url()), Gateway::start(&server.url()));
    for (uuid, len) in [("empty", 0), ("short", 7), ("inline", 64 << 10), ("large", (64 << 10) + 1), ("huge", 3 << 20)]
    {
        let body = long_body(len);
        one.add(uuid, body.clone()).await;
        let [seen, there] = [one.peek(uuid, NOW).await.expect("there"), other.peek(uuid, NOW).await.expect("there")];
        assert_eq!(seen.version, there.version, "{uuid}");
        assert_eq!(other.fetch(uuid).await.expect("there"), body, "{uuid}");
        eventually("it is gone", async || (one.is_absent(uuid).await && other.is_absent(uuid).await).then_some(()))
            .await;
    }
    let chunks = "SELECT count(*) FROM user_http_server.chunks";
    eventually("their chunks are removed", async || (server.ask(chunks) == "0").then_some(())).await;
    let totals = server.ask("SELECT sum(messages), sum(bytes) FROM user_http_server.totals");
    assert_eq!(totals, "0|0");
}

#[actix::test]
async fn nobody_else_gets_a_message_in_delivery_and_one_that_breaks_off_gives_it_back_with_its_progress() {
    let server = Postgres::start();
    let (one, other) = (Gateway::start(&server.url()), Gateway::start(&server.url()));
    one.add("a", long_body(200_000)).await;
    let LeasedBufferMsg { view, mut lease } = one.lease("a", NOW).await.expect("there");
    for gateway in [&one, &other] {
        assert!(matches!(gateway.lease("a", NOW).await, Err(Error::InDelivery)));
        assert!(gateway.peek("a", NOW).await.is_ok());
    }
    assert_eq!((one.in_delivery().await, other.in_delivery().await), (1, 0));
    lease.begin(&view.version, 200_000, 0, false);
    lease.handed_over(150_000);
    let waiting = other.lease("a", SOON);
    drop(lease);
    let LeasedBufferMsg { view: again, mut lease } = waiting.await.expect("it is given back");
    assert_eq!(again.version, view.version);
    // what the other gateway has sent counts
    lease.begin(&again.version, 200_000, 150_000, false);
    lease.handed_over(50_000);
    assert!(lease.completes());
    lease.delivered();
    eventually("it is gone", async || one.is_absent("a").await.then_some(())).await;
}

#[actix::test]
async fn a_request_that_waits_gets_a_message_that_comes_to_another_gateway() {
    let server = Postgres::start();
    let (one, other) = (Gateway::start(&server.url()), Gateway::start(&server.url()));
    let coming = async {
        eventually("somebody waits", async || {
            (one.buffer.send(GetBufferState).await.expect("alive").waiting == 2).then_some(())
        })
        .await;
        other.add("a", "b").await;
    };
    let (leased, seen, ()) = futures::join!(one.lease("a", SOON), one.peek("a", SOON), coming);
    assert_eq!(read(&leased.expect("it has come").view).await, b"b");
    assert!(seen.is_ok());
    assert!(matches!(one.lease("never", Duration::from_millis(300)).await, Err(Error::NoBufferMsg)));
}

#[actix::test]
async fn a_later_message_takes_the_place_of_an_earlier_one_whose_delivery_goes_on() {
    let server = Postgres::start();
    let (one, other) = (Gateway::start(&server.url()), Gateway::start(&server.url()));
    let (first, second) = (long_body(2 << 20), long_body(1 << 20));
    one.add("a", first.clone()).await;
    let LeasedBufferMsg { view, lease } = one.lease("a", NOW).await.expect("there");
    other.add("a", second.clone()).await;
    // the new one can be had at once, and the old one is still sent
    let LeasedBufferMsg { view: new, lease: new_lease } = other.lease("a", NOW).await.expect("there");
    assert!(new.version != view.version && lease.term().expect("it is shared").confirm().await);
    assert_eq!((read(&view).await, read(&new).await), (first, second));
    deliver(lease, &view);
    deliver(new_lease, &new);
    eventually("both are gone", async || {
        (server.ask("SELECT count(*) FROM user_http_server.chunks") == "0" && other.is_absent("a").await).then_some(())
    })
    .await;
    assert_eq!(server.ask("SELECT sum(messages), sum(bytes) FROM user_http_server.totals"), "0|0");
}

#[actix::test]
async fn a_message_that_a_broker_delivers_again_is_stored_once_whichever_gateway_gets_it() {
    let server = Postgres::start();
    let (one, other) = (Gateway::start(&server.url()), Gateway::start(&server.url()));
    one.put("a", message("b"), from_broker("x", false)).await.expect("stored");
    other.put("a", message("b"), from_broker("x", true)).await.expect("known");
    other.fetch("a").await.expect("there");
    eventually("it is gone", async || one.is_absent("a").await.then_some(())).await;
    for gateway in [&one, &other] {
        gateway.put("a", message("b"), from_broker("x", true)).await.expect("known");
        assert!(gateway.is_absent("a").await);
    }
    // without the flag it is a message of its own
    one.put("a", message("b"), from_broker("x", false)).await.expect("stored");
    assert!(other.fetch("a").await.is_ok());
}

#[actix::test]
async fn messages_expire_by_the_clock_of_the_database() {
    let server = Postgres::start();
    let gateway = Gateway::with(&server.url(), CAPACITY, Duration::from_secs(3_600));
    for uuid in ["old", "held", "young"] {
        gateway.put(uuid, message(long_body(100_000)), None).await.expect("stored");
    }
    let held = gateway.lease("held", NOW).await.expect("there");
    let age =
        "UPDATE user_http_server.messages SET stored_at = stored_at - interval '2 h' WHERE uuid IN ('old', 'held')";
    server.ask(age);
    assert!(gateway.is_absent("old").await && matches!(gateway.lease("held", NOW).await, Err(Error::InDelivery)));
    eventually("it is removed", async || {
        (server.ask("SELECT count(*) FROM user_http_server.messages") == "2").then_some(())
    })
    .await;
    drop(held);
    eventually("the other one is, too, when its delivery has ended", async || {
        (server.ask("SELECT string_agg(uuid, ',') = 'young' FROM user_http_server.messages") == "t").then_some(())
    })
    .await;
    eventually("both are counted", async || {
        let state = gateway.buffer.send(GetBufferState).await.expect("alive");
        ((state.expired_total, state.delivered_total) == (2, 0)).then_some(())
    })
    .await;
}

#[actix::test]
async fn the_capacity_counts_what_all_gateways_hold() {
    let server = Postgres::start();
    let [one, other] = [(); 2].map(|()| Gateway::with(&server.url(), 300_000, DAY));
    one.add("a", long_body(200_000)).await;
    for body in [message(long_body(200_000)), message(long_body(400_000))] {
        let refused = other.put("b", body, None).await;
        assert!(matches!(&refused, Err(Error::NoCapacity { limit: 300_000, .. })), "{refused:?}");
    }
    // one that takes the place of another needs the difference only
    other.add("a", long_body(250_000)).await;
    one.fetch("a").await.expect("there");
    eventually("there is space", async || other.put("b", message(long_body(200_000)), None).await.ok()).await;
}

#[actix::test]
async fn operators_list_and_discard_what_all_gateways_hold() {
    let server = Postgres::start();
    let (one, other) = (Gateway::start(&server.url()), Gateway::start(&server.url()));
    let of_blend = BufferMsg { pickle: payload("{}"), blend: Some(blend("scene.blend")), sha256: None };
    one.put("a\0b", of_blend, None).await.expect("stored");
    one.add("c", "d").await;
    let page = async |after, limit| {
        let page = other.buffer.send(ListBufferMsgs(PageRequest { after, limit })).await.expect("alive");
        page.expect("the database is there")
    };
    let first = page(0, 1).await;
    let entry = &first.messages[0];
    assert_eq!((entry.buffer_uuid.as_str(), entry.blend.as_deref(), entry.bytes), ("a\0b", Some("scene.blend"), 2));
    let last = page(first.next.expect("one more"), 10).await;
    assert_eq!((last.messages.len(), last.next), (1, None));
    let discard = async |uuid: &str| {
        let requester = Requester { name: "a test".into(), request_id: "1".into() };
        other.buffer.send(DiscardBufferMsg { buffer_uuid: uuid.into(), requester }).await.expect("alive")
    };
    let leased = one.lease("c", NOW).await.expect("there");
    assert!(matches!(discard("c").await, Err(Error::InDelivery)));
    assert!(page(0, 10).await.messages[1].in_delivery);
    drop(leased);
    eventually("it can be discarded", async || discard("c").await.ok()).await;
    assert!(matches!(discard("c").await, Err(Error::NoBufferMsg)) && one.is_absent("c").await);
}

#[actix::test]
async fn a_gateway_that_stops_gives_back_what_it_has_and_finishes_what_it_has_delivered() {
    let server = Postgres::start();
    let (one, other) = (Gateway::start(&server.url()), Gateway::start(&server.url()));
    one.add("broken off", "1").await;
    one.add("delivered", "2").await;
    let LeasedBufferMsg { lease: broken_off, .. } = one.lease("broken off", NOW).await.expect("there");
    let LeasedBufferMsg { view, lease } = one.lease("delivered", NOW).await.expect("there");
    drop(broken_off);
    deliver(lease, &view);
    one.buffer.send(Drain).await.expect("it answers");
    assert!(other.is_absent("delivered").await);
    assert!(other.fetch("broken off").await.is_ok());
}
