//! The database is away, slow, restarted, failed over or unfit; a gateway freezes.

use std::time::{Duration, Instant};

use user_http_actors::messages::GetBufferState;
use user_http_actors::postgres::{Claim, Put};
use user_http_actors::store::StoreError;

use super::harness::{
    CAPACITY, DAY, Gateway, NOW, SOON, database_at, deliver, eventually, is_database_error, long_body, message,
};
use crate::postgres::server::Postgres;

/// Within which time a request is answered, whatever the database does.
const ANSWERED: Duration = Duration::from_secs(10);

async fn refused(gateway: &Gateway) {
    let begun = Instant::now();
    let put = gateway.put("refused", message("b"), None).await.expect_err("no database");
    let fetched = gateway.lease("refused", SOON).await.expect_err("no database");
    assert!(is_database_error(&put) && is_database_error(&fetched), "{put:?} {fetched:?}");
    assert!(begun.elapsed() < 2 * ANSWERED, "{:?}", begun.elapsed());
}

#[actix::test]
async fn a_gateway_starts_without_its_database_and_works_when_that_is_there() {
    let mut server = Postgres::prepare();
    let gateway = Gateway::start(&server.url());
    refused(&gateway).await;
    let failure = gateway.buffer.send(GetBufferState).await.expect("alive").store_failure;
    assert!(matches!(failure, Some(StoreError::Database(_))), "{failure:?}");
    server.launch();
    eventually("it takes messages", async || gateway.put("a", message("b"), None).await.ok()).await;
    eventually("it says so", async || gateway.database.health().failure.is_none().then_some(())).await;
}

#[actix::test]
async fn a_database_that_is_killed_loses_nothing_and_is_used_again_when_it_is_back() {
    let mut server = Postgres::start();
    let gateway = Gateway::start(&server.url());
    gateway.add("a", long_body(2 << 20)).await;
    let leased = gateway.lease("a", NOW).await.expect("there");
    server.kill();
    refused(&gateway).await;
    eventually("it says so", async || gateway.database.health().failure.map(drop)).await;
    // delivered while the database is away: removed as soon as it is back
    deliver(leased.lease, &leased.view);
    server.launch();
    eventually("it is removed", async || gateway.is_absent("a").await.then_some(())).await;
    gateway.add("a", "b").await;
    assert_eq!(gateway.fetch("a").await.expect("there"), b"b");
}

#[actix::test]
async fn a_database_that_does_not_answer_delays_no_request_for_long() {
    let server = Postgres::start();
    let gateway = Gateway::start(&server.url());
    gateway.add("a", "b").await;
    server.freeze();
    refused(&gateway).await;
    server.thaw();
    eventually("it answers again", async || gateway.fetch("a").await.ok()).await;
}

#[actix::test]
async fn a_frozen_gateway_that_wakes_up_never_completes_a_delivery_that_another_has_taken_over() {
    let server = Postgres::start();
    let [frozen, other] = [(); 2].map(|()| database_at(&server.url(), 0, CAPACITY, DAY));
    let stored = frozen.put("a".into(), message(long_body(200_000)), None).await.expect("a database");
    assert_eq!(stored, Put::Stored { replaced: false });
    let Ok(Claim::Claimed(claimed)) = frozen.claim(&"a".into()).await else { panic!("it is there") };
    assert!(matches!(other.claim(&"a".into()).await, Ok(Claim::InDelivery)));
    // 30 s later by the clock of the database
    server.ask("UPDATE user_http_server.messages SET lease_until = clock_timestamp()");
    let Ok(Claim::Claimed(taken)) = other.claim(&"a".into()).await else { panic!("its lease is over") };
    assert_eq!(frozen.renew(claimed.id.clone(), true).await.expect("a database"), None);
    assert!(!frozen.deliver(claimed.id).await.expect("a database"));
    assert!(other.renew(taken.id.clone(), true).await.expect("a database").is_some());
    assert!(other.deliver(taken.id).await.expect("a database"));
    assert!(matches!(frozen.claim(&"a".into()).await, Ok(Claim::Absent)));
}

#[actix::test]
async fn a_lease_whose_time_is_over_is_renewed_if_nobody_has_taken_the_message() {
    let server = Postgres::start();
    let database = database_at(&server.url(), 0, CAPACITY, DAY);
    database.put("a".into(), message("b"), None).await.expect("a database");
    let Ok(Claim::Claimed(claimed)) = database.claim(&"a".into()).await else { panic!("it is there") };
    server.ask("UPDATE user_http_server.messages SET lease_until = clock_timestamp()");
    assert!(database.renew(claimed.id, true).await.expect("a database").is_some());
    assert!(matches!(database.claim(&"a".into()).await, Ok(Claim::InDelivery)));
}

#[actix::test]
async fn the_tables_are_made_once_by_gateways_that_start_together_and_newer_ones_are_refused() {
    let server = Postgres::start();
    let databases: Vec<_> = (0..8).map(|_| database_at(&server.url(), 0, CAPACITY, DAY)).collect();
    let puts = databases.iter().enumerate().map(|(number, database)| {
        let uuid = number.to_string();
        async move { database.put(uuid.as_str().into(), message("b"), None).await }
    });
    for put in futures::future::join_all(puts).await {
        assert_eq!(put.expect("tables"), Put::Stored { replaced: false });
    }
    server.ask("INSERT INTO user_http_server.schema_version VALUES (1000)");
    let newer = database_at(&server.url(), 0, CAPACITY, DAY);
    let refused = newer.put("a".into(), message("b"), None).await.expect_err("unknown tables").to_string();
    assert!(refused.contains("version 1000") && refused.contains("or a newer one"), "{refused}");
}

#[actix::test]
async fn a_standby_is_not_used_and_the_primary_among_several_hosts_is_found_after_a_failover() {
    let mut primary = Postgres::start();
    let gateway = Gateway::start(&primary.url());
    gateway.add("a", "b").await;
    let mut standby = primary.standby("one");
    standby.launch();
    let alone = Gateway::start(&standby.url());
    let error = alone.put("a", message("b"), None).await.expect_err("a standby");
    assert!(is_database_error(&error), "{error:?}");
    let both = format!("postgres://farm@127.0.0.1:{},127.0.0.1:{}/farm", standby.port, primary.port);
    let both = Gateway::start(&both);
    both.add("b", "c").await;
    let caught_up = "SELECT count(*) FROM user_http_server.messages WHERE uuid = 'b'";
    eventually("the standby has it", async || (standby.ask(caught_up) == "1").then_some(())).await;
    primary.kill();
    refused(&both).await;
    standby.promote();
    eventually("the new primary is used", async || both.fetch("b").await.ok()).await;
    alone.add("c", "d").await;
}

#[actix::test]
async fn without_the_demanded_synchronous_standbys_nothing_is_accepted_and_the_reason_is_known() {
    let mut primary = Postgres::start();
    primary.kill();
    primary.set("synchronous_standby_names=*");
    primary.launch();
    let gateway = database_at(&primary.url(), 1, CAPACITY, DAY);
    let standby = {
        let mut standby = primary.standby("one");
        standby.launch();
        standby
    };
    eventually("the standby is synchronous", async || gateway.put("a".into(), message("b"), None).await.ok()).await;
    drop(standby);
    let refused = eventually("it is missed", async || gateway.put("b".into(), message("c"), None).await.err()).await;
    assert!(refused.to_string().contains("takes no messages"), "{refused}");
    let reason = eventually("the reason is known", async || {
        gateway.health().failure.filter(|failure| failure.to_string().contains("0 synchronous standbys"))
    })
    .await;
    assert!(reason.to_string().contains("--postgres-require-sync"), "{reason}");
}

#[actix::test]
async fn a_commit_that_stops_waiting_for_a_standby_is_not_acknowledged() {
    let mut primary = Postgres::start();
    let gateway = database_at(&primary.url(), 0, CAPACITY, DAY);
    gateway.put("a".into(), message("b"), None).await.expect("no standby is needed yet");
    primary.kill();
    primary.set("synchronous_standby_names=nobody");
    primary.launch();
    let putting = gateway.put("b".into(), message("c"), None);
    let cancelling = async {
        let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        eventually("a commit waits, and no longer", async || (primary.psql("postgres", cancel) == "1").then_some(()))
            .await;
    };
    let (put, ()) = futures::join!(putting, cancelling);
    let error = put.expect_err("it may be lost with the primary").to_string();
    assert!(error.contains("standbys"), "{error}");
}

#[actix::test]
async fn a_database_without_connections_for_the_gateway_is_refused_until_it_has_some() {
    let mut server = Postgres::prepare();
    for setting in ["max_connections=4", "superuser_reserved_connections=0", "max_wal_senders=0", "wal_level=minimal"] {
        server.set(setting);
    }
    server.launch();
    let gateway = Gateway::start(&server.url());
    // all of them are in use at the same time, and those that get none are told so
    let puts = (0..12).map(|number| {
        let uuid = number.to_string();
        let gateway = &gateway;
        async move { gateway.put(&uuid, message(long_body(3 << 20)), None).await }
    });
    let outcomes = futures::future::join_all(puts).await;
    assert!(
        outcomes.iter().all(|put| put.as_ref().is_ok() || put.as_ref().is_err_and(is_database_error)),
        "{outcomes:?}"
    );
    eventually("it takes messages", async || gateway.put("a", message("b"), None).await.ok()).await;
}
