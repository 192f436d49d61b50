//! `doctor` and the buffer's database.

use crate::harness::gateway;
use crate::postgres::Postgres;

#[test]
fn doctor_says_what_is_wrong_with_the_database_and_changes_nothing_there() {
    let mut database = Postgres::start();
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    let examine = |database: &Postgres, more: &[&str]| {
        let mut command = gateway(&["doctor", "--buffer-store", &database.url(), "--data-dir"]);
        let output = command.arg(&data_dir).args(more).current_dir(folder.path()).output().expect("the program");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let found = examine(&database, &[]);
    assert!(found.contains("ok      database: logged in to postgres://farm@127.0.0.1"), "{found}");
    assert!(found.contains("ok      database: it has no tables yet"), "{found}");
    assert_eq!(database.ask("SELECT count(*) FROM pg_namespace WHERE nspname = 'user_http_server'"), "0");
    let found = examine(&database, &["--postgres-require-sync", "1"]);
    assert!(found.contains("failed  database: 0 synchronous standbys are connected, 1 are demanded"), "{found}");
    database.kill();
    let found = examine(&database, &[]);
    assert!(found.contains("failed  database: postgres://farm@127.0.0.1"), "{found}");
}
