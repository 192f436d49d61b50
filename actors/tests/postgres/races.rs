//! Statements of several gateways that meet: one waits for another, and what it finds then has changed.

use user_http_actors::postgres::{Claim, Put};

use super::harness::{CAPACITY, DAY, assert_books_balance, database_at, eventually, long_body, message};
use crate::postgres::server::Postgres;

/// Makes each transaction that stores or removes a message take longer, with its locks held.
const DELAY_COMMITS: &str = "
    CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(1); RETURN NEW; END';
    CREATE TRIGGER delay BEFORE UPDATE ON user_http_server.totals FOR EACH ROW EXECUTE FUNCTION delay()";

/// Waits until a transaction is in [`DELAY_COMMITS`].
async fn delayed(server: &Postgres) {
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually("a transaction is delayed", async || (server.ask(sleeping) == "1").then_some(())).await;
}

#[actix::test]
async fn a_delivery_goes_on_if_its_claim_is_renewed_while_the_message_is_replaced() {
    let server = Postgres::start();
    let [one, other] = [(); 2].map(|()| database_at(&server.url(), 0, CAPACITY, DAY));
    one.put("a".into(), message(long_body(200_000)), None).await.expect("a database");
    let Ok(Claim::Claimed(claimed)) = one.claim(&"a".into()).await else { panic!("it is there") };
    server.ask(DELAY_COMMITS);
    let renewing = async {
        delayed(&server).await;
        one.renew(claimed.id.clone(), true).await
    };
    let (put, renewed) = futures::join!(other.put("a".into(), message("b"), None), renewing);
    assert_eq!(put.expect("a database"), Put::Stored { replaced: true });
    assert!(renewed.expect("a database").is_some(), "it still has what it sends");
    assert!(!one.deliver(claimed.id).await.expect("a database"), "the later message stays");
    let left =
        "SELECT (SELECT count(*) FROM user_http_server.chunks), (SELECT count(*) FROM user_http_server.lingering)";
    assert_eq!(server.ask(left), "1|1");
    other.clean_up().await.expect("a database");
    assert_eq!(server.ask(left), "0|0", "what has lingered is removed");
}

#[actix::test]
async fn a_request_that_meets_a_message_being_replaced_gets_the_later_one() {
    let server = Postgres::start();
    let [one, other] = [(); 2].map(|()| database_at(&server.url(), 0, CAPACITY, DAY));
    one.put("a".into(), message("first"), None).await.expect("a database");
    server.ask(DELAY_COMMITS);
    let claiming = async {
        delayed(&server).await;
        one.claim(&"a".into()).await
    };
    let (put, claim) = futures::join!(other.put("a".into(), message("second"), None), claiming);
    assert_eq!(put.expect("a database"), Put::Stored { replaced: true });
    let Ok(Claim::Claimed(claimed)) = claim else { panic!("somebody may have it: {claim:?}") };
    assert_eq!(claimed.view.payload.read_all().expect("in memory"), "second");
}

#[actix::test]
async fn gateways_that_store_under_one_uuid_at_the_same_time_take_turns_whatever_is_set_for_their_role() {
    let server = Postgres::start();
    for setting in ["default_transaction_isolation = 'serializable'", "lock_timeout = '1ms'"] {
        server.ask(&format!("ALTER ROLE farm SET {setting}"));
    }
    let gateways = [(); 3].map(|()| database_at(&server.url(), 0, CAPACITY, DAY));
    // the tables are made meanwhile; few enough that the last one has its turn in time, on a slow disk as well
    let puts = (0..9).map(|number| gateways[number % 3].put("a".into(), message(long_body(number * 15_000)), None));
    let puts = futures::future::join_all(puts).await;
    let replaced = |put: &Result<Put, _>| matches!(put, Ok(Put::Stored { replaced: true }));
    let first = |put: &Result<Put, _>| matches!(put, Ok(Put::Stored { replaced: false }));
    assert_eq!(
        (puts.iter().filter(|put| replaced(put)).count(), puts.iter().filter(|put| first(put)).count()),
        (8, 1),
        "{puts:?}"
    );
    assert_books_balance(&server);
}

#[actix::test]
async fn what_is_too_old_is_found_without_reading_what_is_not() {
    const ROWS: u64 = 20_000;
    let server = Postgres::start();
    let database = database_at(&server.url(), 0, CAPACITY, DAY);
    database.put("a".into(), message("b"), None).await.expect("tables");
    server.ask(&format!(
        "INSERT INTO user_http_server.messages (key, uuid, id, length, cost, sha256)
             SELECT n::text::bytea, n::text::bytea, n + 1000, 0, 0, '' FROM generate_series(1, {ROWS}) n;
         INSERT INTO user_http_server.tombstones
             SELECT n::text::bytea, clock_timestamp() FROM generate_series(1, {ROWS}) n;
         INSERT INTO user_http_server.blend_references
             SELECT n::text::bytea, '', '', '', clock_timestamp() FROM generate_series(1, {ROWS}) n;
         ANALYZE"
    ));
    let read = "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_user_tables
                WHERE relname IN ('messages', 'tombstones', 'blend_references')";
    // the server counts what a session has read when it ends, at the latest
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'user-http-server'";
    let count = async |database| {
        drop(database);
        eventually("its sessions end", async || (server.ask(sessions) == "0").then_some(())).await;
        server.ask(read).parse::<u64>().expect("a number")
    };
    let before = count(database).await;
    let database = database_at(&server.url(), 0, CAPACITY, DAY);
    for _ in 0..3 {
        assert_eq!(database.sweep().await.expect("a database").messages, 0);
        database.clean_up().await.expect("a database");
    }
    let read = count(database).await - before;
    assert!(read < ROWS, "{read} rows were read");
}

#[actix::test]
async fn a_delay_of_a_commit_delays_no_other_message_for_long() {
    let server = Postgres::start();
    let [one, other] = [(); 2].map(|()| database_at(&server.url(), 0, CAPACITY, DAY));
    other.put("b".into(), message("b"), None).await.expect("a database");
    server.ask(DELAY_COMMITS);
    let claiming = async {
        delayed(&server).await;
        let claim = other.claim(&"b".into()).await;
        (claim, server.ask("SELECT count(*) FROM user_http_server.messages WHERE uuid = 'a'"))
    };
    let (put, (claim, there)) = futures::join!(one.put("a".into(), message("a"), None), claiming);
    assert!(put.is_ok() && matches!(claim, Ok(Claim::Claimed(_))));
    assert_eq!(there, "0", "the claim has waited for the commit of another message");
}
