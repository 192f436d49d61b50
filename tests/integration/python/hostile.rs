//! Hostile pickles and JSON (`tests/peers/hostile`), against the whole server.

use serde_json::{Value, json};

use crate::harness::{Farm, frame};

/// How much more memory the process may hold after an attack than before it.
const GROWTH_KIB: u64 = 256 << 10;

/// Has a campaign attack both servers; its report. Python's side stops at the first answer that is not as it should
/// be, and at the first message passed on that CPython does not read as the value that was sent.
fn attack(campaign: &str, mut arguments: Value) -> Value {
    let mut farm = Farm::with(&["--max-body", "16MiB"]);
    let (pid, before) = (farm.pid(), farm.rss_kib());
    arguments["worker"] = farm.server.worker_url().into();
    arguments["api"] = farm.server.api_url("").into();
    let report = farm.peer.call(campaign, arguments);
    println!("{report:#}");

    assert!(farm.is_running(), "the server has ended");
    assert_eq!(farm.pid(), pid);
    let grown = farm.rss_kib().saturating_sub(before);
    println!("grown by {grown} KiB, from {before} KiB");
    assert!(grown < GROWTH_KIB, "grown by {grown} KiB, from {before} KiB");
    let log = farm.log();
    assert!(!log.contains("panicked"), "{log}");
    farm.expect_nothing_for_the_user_manager();
    farm.post(&frame("FRAME_RENDERED", "'well'"));
    assert!(farm.take().value.contains("'well'"));
    report
}

#[test]
fn every_hostile_body_is_refused_by_name_or_passed_on_as_cpython_reads_it() {
    let report = attack("hostile_bodies", json!({ "part": 0, "parts": 2 }));
    assert!(report["answered"]["400"].as_u64() > Some(1_000), "{report}");
}

#[test]
fn every_other_hostile_body_is_refused_by_name_or_passed_on_as_cpython_reads_it() {
    let report = attack("hostile_bodies", json!({ "part": 1, "parts": 2 }));
    assert!(report["answered"]["400"].as_u64() > Some(1_000), "{report}");
}

#[test]
fn a_changed_body_is_refused_or_passed_on_as_cpython_reads_it() {
    let report = attack("changed_bodies", json!({ "seed": 1, "cases": 600 }));
    assert!(report["answered"]["200"].as_u64() > Some(20), "{report}");
}
