//! The plans of statements, which sessions keep.

use user_http_actors::postgres::{Claim, PostgresBuffer, Put};

use super::harness::{CAPACITY, DAY, database_at, eventually, from_broker, long_body, message, read};
use super::pooler::Pooler;
use crate::postgres::server::Postgres;

/// As often as a session needs to prefer the plan that it keeps.
const TURNS: usize = 8;

/// How many rows each table gets behind the back of the gateway.
const ROWS: usize = 20_000;

/// Everything that happens to a message, small or in chunks.
async fn work(database: &PostgresBuffer, turn: usize) {
    let (uuid, body) = ("a".into(), if turn.is_multiple_of(2) { long_body(200_000) } else { b"small".to_vec() });
    let text = format!("delivery {turn}");
    for redelivered in [false, true] {
        let put = database.put("a".into(), message(body.clone()), from_broker(&text, redelivered)).await;
        let expected = if redelivered { Put::Duplicate } else { Put::Stored { replaced: false } };
        assert_eq!(put.expect("a database"), expected);
    }
    assert_eq!(database.available(&["other".into(), "a".into()]).await.expect("a database").len(), 1);
    assert!(database.peek(&uuid).await.expect("a database").is_some());
    let Ok(Claim::Claimed(claimed)) = database.claim(&uuid).await else { panic!("it is there") };
    assert!(matches!(database.take_over(&uuid, &claimed.view.version).await, Ok(Claim::InDelivery)));
    assert!(matches!(database.claim(&uuid).await, Ok(Claim::InDelivery)));
    assert_eq!(read(&claimed.view).await, body);
    let replaced = database.put("a".into(), message("b"), None).await.expect("a database");
    assert_eq!(replaced, Put::Stored { replaced: true });
    assert!(database.renew(claimed.id.clone(), true).await.expect("a database").is_some(), "it lingers");
    assert!(!database.deliver(claimed.id).await.expect("a database"));
    let Ok(Claim::Claimed(claimed)) = database.claim(&uuid).await else { panic!("the other is there") };
    assert!(database.deliver(claimed.id).await.expect("a database"));
}

#[actix::test]
async fn a_plan_made_for_empty_tables_still_finds_rows_by_their_keys_when_there_are_many() {
    let mut server = Postgres::prepare();
    // it would have the plans made again sooner or later
    server.set("autovacuum=off");
    server.launch();
    let database = database_at(&server.url(), 0, CAPACITY, DAY);
    work(&database, 0).await;
    server.ask("VACUUM ANALYZE");
    for turn in 1..=TURNS {
        work(&database, turn).await;
    }
    // whoever looks for the oldest message meets none of those that are not committed yet
    database.put("oldest".into(), message("b"), None).await.expect("a database");
    // without any other change of the database, which might have plans made again
    let (key, id) = ("sha256(number::text::bytea)", "number + 1000000");
    server.ask(&format!(
        "SET search_path = user_http_server;
         INSERT INTO messages (key, uuid, id, length, cost, sha256, fingerprint, body)
             SELECT {key}, {key}, {id}, 1, 1, {key}, {key}, 'b' FROM generate_series(1, {ROWS}) AS number;
         INSERT INTO chunks SELECT {id}, 0, 'b' FROM generate_series(1, {ROWS}) AS number;
         INSERT INTO lingering SELECT {id}, 0, 'infinity' FROM generate_series(1, {ROWS}) AS number;
         INSERT INTO tombstones SELECT {key}, now() FROM generate_series(1, {ROWS}) AS number"
    ));
    for turn in 0..TURNS {
        work(&database, TURNS + turn).await;
    }
    // a session says what it has read when it ends
    drop(database);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'user-http-server'";
    eventually("its sessions end", async || (server.ask(sessions) == "0").then_some(())).await;
    let counts = "SELECT relname, seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes AS of_index
                                                WHERE of_index.relid = of_table.relid)
                FROM pg_stat_user_tables AS of_table WHERE relname IN ('messages', 'chunks', 'lingering', 'tombstones')";
    for table in server.ask(counts).lines() {
        let (name, rows) = table.split_once('|').expect("two columns");
        assert!(rows.parse::<usize>().expect("a number") < ROWS, "{rows} rows of {name} were read");
    }
}

#[actix::test]
async fn when_a_column_gets_another_type_hardly_an_operation_fails() {
    let server = Postgres::start();
    let database = database_at(&server.url(), 0, CAPACITY, DAY);
    database.put("a".into(), message("b"), None).await.expect("a database");
    // at the same time, so that there are several sessions, and each has planned this
    let uuid = "a".into();
    let peeks = futures::future::join_all((0..TURNS).map(|_| database.peek(&uuid))).await;
    assert!(peeks.into_iter().all(|peek| peek.expect("a database").is_some()));
    server.ask("ALTER TABLE user_http_server.messages ALTER COLUMN sent_version TYPE varchar");
    let mut failures = Vec::new();
    for _ in 0..TURNS {
        failures.extend(database.peek(&uuid).await.err().map(|error| error.to_string()));
    }
    // one by the session that notices it, perhaps one by a session that was busy then
    assert!(matches!(failures.len(), 1..=2), "{failures:?}");
    assert!(failures[0].contains("cached plan must not change result type"), "{failures:?}");
    let Ok(Claim::Claimed(claimed)) = database.claim(&uuid).await else { panic!("it is there") };
    assert!(database.deliver(claimed.id).await.expect("a database"));
    work(&database, 0).await;
}

#[actix::test]
async fn a_pooler_may_keep_sessions_that_others_have_used_before() {
    let server = Postgres::start();
    let pooler = Pooler::start(&server).await;
    // as the session of another gateway has left them behind
    pooler.execute(&(0..2000).map(|number| format!("PREPARE s{number} AS SELECT 1;")).collect::<String>()).await;
    for _ in 0..2 {
        let database = database_at(&pooler.url(), 0, CAPACITY, DAY);
        for turn in 0..TURNS {
            work(&database, turn).await;
        }
    }
}
