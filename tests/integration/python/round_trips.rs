//! Values made up at random go through the running server and arrive equal: types, order and sharing of keys included.

use serde_json::json;

use crate::harness::Farm;

/// Of each campaign; three campaigns run.
const CASES: u64 = 500;

#[track_caller]
fn campaign(what: &str, seed: u64, more: serde_json::Value) {
    let mut farm = Farm::start();
    let mut arguments =
        json!({ "worker": farm.server.worker_url(), "api": farm.server.api_url(""), "seed": seed, "cases": CASES });
    arguments.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
    assert_eq!(farm.peer.call(what, arguments), CASES);
}

#[test]
fn random_json_values_left_by_the_farm_reach_the_worker_equal() {
    campaign("buffer_round_trips", 1, json!({ "as_json": true }));
}

#[test]
fn random_pickles_left_by_the_farm_reach_the_worker_equal() {
    campaign("buffer_round_trips", 2, json!({ "as_json": false }));
}

#[test]
fn random_frames_of_a_worker_reach_the_user_manager_equal() {
    campaign("frame_round_trips", 3, json!({}));
}
