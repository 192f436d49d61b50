//! A worker that comes back with the ETag of its message to another gateway goes on there.

use std::sync::Arc;

use user_http_actors::Error;
use user_http_actors::lease::LeasedBufferMsg;
use user_http_actors::messages::GetBufferState;

use super::harness::{Gateway, NOW, SOON, assert_books_balance, deliver, eventually, long_body, message, read};
use super::proxy::Proxy;
use crate::postgres::server::Postgres;

/// More than what is sent at once.
const LEN: usize = 200_000;

/// Gateways on one database, and a message at the first that this delivers.
async fn in_delivery(server: &Postgres) -> ([Gateway; 2], LeasedBufferMsg) {
    let gateways = [(); 2].map(|()| Gateway::start(&server.url()));
    gateways[0].add("a", long_body(LEN)).await;
    let leased = gateways[0].lease("a", NOW).await.expect("there");
    (gateways, leased)
}

fn is_in_delivery(leased: &Result<LeasedBufferMsg, Error>) -> bool {
    matches!(leased, Err(Error::InDelivery))
}

#[actix::test]
async fn a_worker_goes_on_at_another_gateway_at_once_and_the_first_delivery_cannot_complete() {
    let server = Postgres::start();
    let ([one, other], LeasedBufferMsg { view, lease }) = in_delivery(&server).await;
    let version = Some(view.version.clone());
    let taken = other.resume("a", version.clone(), NOW).await.expect("its worker has come");
    assert_eq!((taken.view.version.as_str(), read(&taken.view).await), (view.version.as_str(), long_body(LEN)));
    let term = lease.term().expect("it is shared");
    assert!(!term.confirm().await && !term.holds(), "what is held back is not sent");
    // even if it were
    deliver(lease, &view);
    eventually("the first gateway knows", async || (one.in_delivery().await == 0).then_some(())).await;
    assert!(taken.lease.term().expect("it is shared").confirm().await);
    assert!(is_in_delivery(&one.lease("a", NOW).await), "its end is not that of the other delivery");
    deliver(taken.lease, &taken.view);
    eventually("it is gone", async || one.is_absent("a").await.then_some(())).await;
    assert!(matches!(one.resume("a", version, NOW).await, Err(Error::NoBufferMsg)));
    let delivered = async |gateway: &Gateway| gateway.buffer.send(GetBufferState).await.expect("alive").delivered_total;
    assert_eq!((delivered(&one).await, delivered(&other).await), (0, 1));
    assert_books_balance(&server);
}

#[actix::test]
async fn nobody_takes_over_a_delivery_whose_end_is_being_sent() {
    let server = Postgres::start();
    let ([one, other], LeasedBufferMsg { view, lease }) = in_delivery(&server).await;
    let version = Some(view.version.clone());
    assert!(lease.term().expect("it is shared").confirm().await);
    assert!(is_in_delivery(&other.resume("a", version.clone(), NOW).await));
    let waiting = other.resume("a", version.clone(), SOON);
    let (waited, ()) = futures::join!(waiting, async {
        eventually("it waits", async || {
            (other.buffer.send(GetBufferState).await.expect("alive").waiting == 1).then_some(())
        })
        .await;
        drop(lease);
    });
    // it has broken off nevertheless: the next delivery may be taken over again
    let waited = waited.expect("it is free");
    let taken = one.resume("a", version, NOW).await.expect("its worker has come");
    drop(waited);
    assert!(taken.lease.term().expect("it is shared").confirm().await);
    deliver(taken.lease, &taken.view);
    eventually("it is gone", async || other.is_absent("a").await.then_some(())).await;
}

#[actix::test]
async fn a_renewal_that_arrives_after_the_delivery_has_broken_off_claims_nothing() {
    let server = Postgres::start();
    let ([_one, other], LeasedBufferMsg { lease, .. }) = in_delivery(&server).await;
    let term = Arc::clone(lease.term().expect("it is shared"));
    drop(lease);
    let is_free = "SELECT lease_until = '-infinity' FROM user_http_server.messages";
    eventually("it is released", async || (server.ask(is_free) == "t").then_some(())).await;
    assert!(!term.confirm().await && !term.holds());
    assert!(other.lease("a", NOW).await.is_ok());
}

#[actix::test]
async fn only_its_own_etag_takes_a_message_over_only_from_another_gateway_and_never_one_that_is_sent_at_once() {
    let server = Postgres::start();
    let ([one, other], LeasedBufferMsg { view, lease }) = in_delivery(&server).await;
    other.add("small", long_body(100)).await;
    let small = one.lease("small", NOW).await.expect("there");
    let [id, stored_at] = [0, 1].map(|part| view.version.split('-').nth(part).expect("two parts").to_owned());
    for etag in ["", "x", "ff-1", &small.view.version, &id, &format!("{id}-1"), &format!("ff-{stored_at}")] {
        assert!(is_in_delivery(&other.resume("a", Some(etag.to_owned()), NOW).await), "{etag}");
    }
    assert!(
        is_in_delivery(&one.resume("a", Some(view.version.clone()), NOW).await),
        "the gateway sees the other worker"
    );
    assert!(is_in_delivery(&other.resume("small", Some(small.view.version.clone()), NOW).await));
    // the version of a .blend file follows that of the message
    let taken = other.resume("a", Some(format!("{}-00ff", view.version)), NOW).await.expect("its worker has come");
    // back to the first one, which still has its lease
    let back = one.resume("a", Some(view.version.clone()), NOW).await.expect("its worker has come");
    drop((lease, taken));
    eventually("the others have ended", async || {
        ((one.in_delivery().await, other.in_delivery().await) == (2, 0)).then_some(())
    })
    .await;
    assert!(is_in_delivery(&other.lease("a", NOW).await), "it is still delivered");
    deliver(back.lease, &back.view);
    eventually("it is gone", async || other.is_absent("a").await.then_some(())).await;
}

#[actix::test]
async fn the_etag_of_a_message_that_was_replaced_takes_nothing_over() {
    let server = Postgres::start();
    let ([one, other], LeasedBufferMsg { view, lease }) = in_delivery(&server).await;
    one.put("a", message(long_body(2 * LEN)), None).await.expect("stored");
    let new = other.resume("a", Some(view.version.clone()), NOW).await.expect("the later one is free");
    assert_ne!(new.view.version, view.version);
    assert!(lease.term().expect("it is shared").confirm().await, "the earlier one is still sent");
    assert!(is_in_delivery(&one.resume("a", Some(view.version.clone()), NOW).await));
    deliver(lease, &view);
    deliver(new.lease, &new.view);
    eventually("it is gone", async || one.is_absent("a").await.then_some(())).await;
}

/// A message that was sent to its end as an outage began which has lasted for longer than a lease; and how to reach the
/// database from the gateway that has sent it.
async fn delivered_before_an_outage() -> (Postgres, Proxy, [Gateway; 2]) {
    let mut server = Postgres::start();
    let proxy = Proxy::start(server.port).await;
    let gateways = [Gateway::start(&proxy.url()), Gateway::start(&server.url())];
    gateways[0].add("a", "b").await;
    let LeasedBufferMsg { view, lease } = gateways[0].lease("a", NOW).await.expect("there");
    server.kill();
    for gateway in &gateways {
        let is_away = async || gateway.database.health().failure.map(drop);
        eventually("it is missed", is_away).await;
    }
    proxy.cut_after(0);
    deliver(lease, &view);
    server.launch();
    server.ask("UPDATE user_http_server.messages SET lease_until = clock_timestamp()");
    eventually("it is back", async || gateways[1].database.health().failure.is_none().then_some(())).await;
    (server, proxy, gateways)
}

#[actix::test]
async fn what_was_delivered_as_a_long_outage_began_is_removed_before_anybody_else_gets_it() {
    let (server, proxy, [one, other]) = delivered_before_an_outage().await;
    assert!(is_in_delivery(&other.lease("a", NOW).await));
    proxy.cut_after(usize::MAX);
    eventually("it is removed", async || other.is_absent("a").await.then_some(())).await;
    let delivered = async || one.buffer.send(GetBufferState).await.expect("alive").delivered_total;
    eventually("it is counted", async || (delivered().await == 1).then_some(())).await;
    assert_books_balance(&server);
}

#[actix::test]
async fn after_a_long_outage_a_message_whose_gateway_does_not_come_back_is_delivered_by_another() {
    let (_server, _proxy, [_one, other]) = delivered_before_an_outage().await;
    let leased = other.lease("a", 2 * SOON).await.expect("its gateway does not come back");
    assert_eq!(read(&leased.view).await, b"b");
}

#[actix::test]
async fn a_gateway_that_does_not_reach_its_database_stops_before_its_lease_is_over() {
    let server = Postgres::start();
    let proxy = Proxy::start(server.port).await;
    let one = Gateway::start(&proxy.url());
    one.add("a", long_body(LEN)).await;
    let LeasedBufferMsg { lease, .. } = one.lease("a", NOW).await.expect("there");
    assert!(lease.term().expect("it is shared").confirm().await);
    // each new connection is cut, and so is each answer that comes late
    proxy.cut_after(0);
    server.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'user-http-server'");
    assert!(lease.term().expect("it is shared").holds(), "its time is not over yet");
    eventually("it stops", async || (!lease.term().expect("it is shared").holds()).then_some(())).await;
    let is_claimed = "SELECT lease_until > clock_timestamp() FROM user_http_server.messages";
    assert_eq!(server.ask(is_claimed), "t", "somebody else may have it");
}
