//! What was promised is kept when the process ends, however it ends.

use crate::harness::{Farm, files_below, frame};

fn numbered(number: usize) -> String {
    frame("FRAME_RENDERED", &format!("{{'FRAME': {number}}}"))
}

#[test]
fn messages_survive_a_kill_in_every_form() {
    let mut farm = Farm::start();
    farm.blend_file("scene.blend", b"the file");
    farm.leave("json", "{'z': 1, 'a': [None, 10 ** 30]}");
    farm.leave_pickle("pickle", "{'b': (1, {2}), 3: b'\\xff'}", 4);
    farm.leave_blend("blend", "scene.blend");
    farm.leave("overwritten", "'earlier'");
    farm.leave("overwritten", "'later'");
    farm.leave_pickle("large", "bytes(5_000_000)", 5);
    farm.kill9();
    farm.server.restart();
    assert_eq!(farm.fetch_value("json"), "{'z': 1, 'a': [None, 1000000000000000000000000000000]}");
    assert_eq!(farm.fetch_value("pickle"), "{'b': (1, {2}), 3: b'\\xff'}");
    assert!(farm.fetch_value("blend").contains("b'the file'"));
    assert_eq!(farm.fetch_value("overwritten"), "'later'");
    assert!(farm.fetch("large").length > 5_000_000);
}

#[test]
fn the_outbox_survives_a_kill_in_its_order_and_with_its_ids() {
    let mut farm = Farm::start();
    for number in 0..20 {
        farm.post(&numbered(number));
    }
    farm.post(&frame("RENDER_COMPLETED", "[20]"));
    let leased = farm.next("lease=60").expect("a message");
    farm.kill9();
    farm.server.restart();
    for number in 0..20 {
        let message = farm.take();
        assert!(message.value.contains(&format!("{{'FRAME': {number}}}")), "{number}: {message:?}");
        if number == 0 {
            assert_eq!((message.id, message.body), (leased.id.clone(), leased.body.clone()));
        }
    }
    let completed = farm.take();
    assert_eq!(completed.content_type, "application/json");
    assert!(completed.value.contains("'DATA': [20], 'MESSAGE': [20]"), "{completed:?}");
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn what_was_delivered_or_done_with_does_not_come_back() {
    let mut farm = Farm::start();
    for number in 0..10 {
        farm.leave(&format!("id-{number}"), "1");
        farm.post(&numbered(number));
    }
    for number in 0..5 {
        farm.fetch_value(&format!("id-{number}"));
        farm.take();
    }
    // Stopped, not killed: the contract promises at least once, so only an orderly end settles what was just done.
    assert!(farm.stop().success());
    farm.server.restart();
    for number in 0..5 {
        farm.expect_no_message(&format!("id-{number}"));
    }
    for number in 5..10 {
        farm.fetch_value(&format!("id-{number}"));
        assert!(farm.take().value.contains(&format!("{{'FRAME': {number}}}")));
    }
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn everything_acknowledged_survives_one_kill_after_another() {
    let mut farm = Farm::start();
    for round in 0..5 {
        farm.leave(&format!("id-{round}"), &round.to_string());
        farm.post(&numbered(round));
        farm.kill9();
        farm.server.restart();
    }
    for round in 0..5 {
        assert_eq!(farm.fetch_value(&format!("id-{round}")), round.to_string());
        assert!(farm.take().value.contains(&format!("{{'FRAME': {round}}}")));
    }
}

#[test]
fn memory_keeps_nothing_on_disk() {
    let mut farm = Farm::with(&["--memory"]);
    let before = files_below(&farm.setup().path(""));
    farm.leave("id-1", "'x' * 100_000");
    farm.leave("id-2", "2");
    farm.post(&numbered(1));
    assert_eq!(farm.fetch_value("id-2"), "2");
    assert_eq!(files_below(&farm.setup().path("")), before);
    assert!(farm.stop().success());
    assert_eq!(files_below(&farm.setup().path("")), before);
    farm.server.restart();
    farm.expect_no_message("id-1");
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn nothing_outside_the_data_directory_is_written() {
    let mut farm = Farm::start();
    farm.leave("id-1", "1");
    farm.post(&numbered(1));
    let data_dir = farm.setup().data_dir();
    let written = files_below(&farm.setup().path(""));
    assert!(!written.is_empty());
    assert!(written.iter().all(|(path, _)| path.starts_with(&data_dir)), "{written:?}");
}
