//! Connections break, the database is slow, its disk is full, or one of its hosts does not answer.

use std::time::{Duration, Instant};

use user_http_actors::postgres::{Claim, PostgresBuffer, Put};

use super::harness::{CAPACITY, DAY, assert_books_balance, database_at, eventually, long_body, message};
use super::proxy::Proxy;
use crate::postgres::server::Postgres;

/// Within which time a request is answered, whatever the database does.
const ANSWERED: Duration = Duration::from_secs(10);

/// Up to where connections are cut: that is longer than what each of these operations needs.
const LONGEST: usize = 6_000;

/// A prime number, so that the cuts are at all places of messages and statements.
const STEP: usize = 149;

fn is_there(server: &Postgres, uuid: &str) -> bool {
    server.ask(&format!("SELECT count(*) FROM user_http_server.messages WHERE uuid = '{uuid}'")) == "1"
}

/// Whether it was claimed by this gateway, which then delivers it.
async fn take(gateway: &PostgresBuffer, uuid: &str) -> bool {
    match gateway.claim(&uuid.into()).await.expect("a database") {
        Claim::Claimed(claimed) => gateway.deliver(claimed.id).await.expect("a database"),
        _ => false,
    }
}

#[actix::test]
async fn a_connection_that_is_cut_at_any_byte_leaves_what_was_acknowledged_and_nothing_by_halves() {
    let server = Postgres::start();
    let direct = database_at(&server.url(), 0, CAPACITY, DAY);
    direct.put("a".into(), message("b"), None).await.expect("tables");
    let proxy = Proxy::start(server.port).await;
    let (mut acknowledged, mut refused) = (0, 0);
    for cut_after in (0..LONGEST).step_by(STEP) {
        proxy.cut_after(cut_after);
        let gateway = database_at(&proxy.url(), 0, CAPACITY, DAY);
        let uuid = format!("at {cut_after}");
        let put = gateway.put(uuid.as_str().into(), message(long_body(100)), None).await;
        match put {
            Ok(put) => {
                assert!(put == Put::Stored { replaced: false } && is_there(&server, &uuid), "{cut_after}: {put:?}");
                acknowledged += 1;
            }
            Err(_) => refused += 1,
        }
        // the sender leaves it again, and whoever asks gets it once
        direct.put(uuid.as_str().into(), message(long_body(100)), None).await.expect("a database");
        let gateway = database_at(&proxy.url(), 0, CAPACITY, DAY);
        if let Ok(Claim::Claimed(claimed)) = gateway.claim(&uuid.as_str().into()).await {
            let mut delivered = gateway.deliver(claimed.id.clone()).await;
            assert!(delivered.is_err() || !is_there(&server, &uuid), "{cut_after}");
            proxy.cut_after(usize::MAX);
            while delivered.is_err() {
                delivered = gateway.deliver(claimed.id.clone()).await;
            }
        } else {
            // claimed or not, that was in vain
            server
                .ask(&format!("UPDATE user_http_server.messages SET lease_until = '-infinity' WHERE uuid = '{uuid}'"));
            assert!(take(&direct, &uuid).await, "{cut_after}");
        }
        assert!(!is_there(&server, &uuid), "{cut_after}");
    }
    assert!(acknowledged > 0 && refused > 0, "{acknowledged} {refused}");
    assert_books_balance(&server);
}

#[actix::test]
async fn a_database_whose_every_answer_is_late_delays_no_request_for_long() {
    let server = Postgres::start();
    let proxy = Proxy::start(server.port).await;
    let gateway = database_at(&proxy.url(), 0, CAPACITY, DAY);
    gateway.put("a".into(), message("b"), None).await.expect("a database");
    proxy.delay(Duration::from_millis(1_200));
    let begun = Instant::now();
    // a message needs several statements, none of which is late enough by itself
    gateway.put("a".into(), message("c"), None).await.expect_err("too late");
    assert!(begun.elapsed() < ANSWERED, "{:?}", begun.elapsed());
    proxy.delay(Duration::ZERO);
    eventually("it takes messages", async || gateway.put("a".into(), message("d"), None).await.ok()).await;
}

#[actix::test]
async fn a_disk_that_takes_no_more_refuses_large_messages_and_keeps_what_it_has() {
    let server = Postgres::start();
    let gateway = database_at(&server.url(), 0, CAPACITY, DAY);
    gateway.put("small".into(), message("b"), None).await.expect("a database");
    gateway.put("large".into(), message(long_body(8 << 20)), None).await.expect("a database");
    // no file becomes longer than a file of the log is
    server.limit_files(Some(17 << 20));
    let refused = gateway.put("more".into(), message(long_body(20 << 20)), None).await.expect_err("no space");
    assert!(refused.to_string().contains("could not extend file"), "{refused}");
    assert!(!is_there(&server, "more"));
    gateway.put("small, too".into(), message("c"), None).await.expect("there is space for it");
    for uuid in ["small", "large", "small, too"] {
        assert!(take(&gateway, uuid).await, "{uuid}");
    }
    server.limit_files(None);
    gateway.put("more".into(), message(long_body(20 << 20)), None).await.expect("there is space again");
    assert!(take(&gateway, "more").await);
}

#[actix::test]
async fn a_host_that_accepts_connections_and_answers_nothing_does_not_keep_a_gateway_from_the_others() {
    let (frozen, server) = (Postgres::start(), Postgres::start());
    frozen.freeze();
    let both = format!("postgres://farm@127.0.0.1:{},127.0.0.1:{}/farm", frozen.port, server.port);
    let gateway = database_at(&both, 0, CAPACITY, DAY);
    gateway.put("a".into(), message("b"), None).await.expect("the other one");
    assert!(is_there(&server, "a"));
}

#[actix::test]
async fn a_warning_that_a_commit_is_in_doubt_is_heard_even_if_the_role_hides_warnings() {
    let mut server = Postgres::start();
    let gateway = database_at(&server.url(), 0, CAPACITY, DAY);
    gateway.put("a".into(), message("b"), None).await.expect("no standby is needed yet");
    for setting in ["client_min_messages = 'error'", "synchronous_commit = 'local'"] {
        server.ask(&format!("ALTER ROLE farm SET {setting}"));
    }
    server.kill();
    server.set("synchronous_standby_names=nobody");
    server.launch();
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let cancelling =
        eventually("a commit waits, and no longer", async || (server.psql("postgres", cancel) == "1").then_some(()));
    let (put, ()) = futures::join!(gateway.put("b".into(), message("c"), None), cancelling);
    let error = put.expect_err("it may be lost with the primary").to_string();
    assert!(error.contains("standbys"), "{error}");
}
