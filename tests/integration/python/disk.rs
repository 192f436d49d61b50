//! A disk that other files have filled, a data directory that is missing, and who may read it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::harness::{Farm, SOON, Setup, eventually, files_below, frame, holds, order, request};

const PICKLE: &str = "application/octet-stream";

/// A server that holds messages, and whose data directory somebody has put away by `put_away`.
fn farm_without_its_directory(put_away: impl FnOnce(&Path)) -> Farm {
    let mut farm = Farm::start();
    farm.post(&frame("FRAME_RENDERED", "'before'"));
    farm.leave("id-1", "'before'");
    put_away(&farm.server.setup().data_dir());
    farm
}

/// Checks that the server has noticed that `store` is missing: it ends, and does not claim that nothing is lost.
fn assert_says_that_it_is_missing(farm: &mut Farm, store: &str) {
    let status = farm.server.wait_for_exit(SOON);
    assert_eq!(status.code(), Some(1), "{status}");
    let log = farm.log();
    let reason = log.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no reason: {log}"));
    assert!(reason.contains(store) && reason.contains("deleted, moved or replaced"), "{reason}");
    assert!(reason.contains("lost with it") && !reason.contains("everything"), "{reason}");
}

#[test]
fn after_the_data_directory_is_deleted_the_next_frame_is_refused_and_the_process_ends() {
    let mut farm = farm_without_its_directory(|data| fs::remove_dir_all(data).expect("deletable"));
    let small = farm.peer.dumps(&frame("FRAME_RENDERED", "'after'"), 4);
    farm.post_bytes(PICKLE, &small).failure(503);
    assert_says_that_it_is_missing(&mut farm, "data/outbox");
}

#[test]
fn after_the_data_directory_is_deleted_the_next_message_for_a_worker_is_refused_and_the_process_ends() {
    let mut farm = farm_without_its_directory(|data| fs::remove_dir_all(data).expect("deletable"));
    let body = farm.peer.dumps(&order("id-2", "'after'"), 4);
    farm.order_bytes(PICKLE, &body).failure(503);
    assert_says_that_it_is_missing(&mut farm, "data/buffer");
}

#[test]
fn a_data_directory_that_another_has_replaced_is_as_good_as_deleted() {
    let mut farm = farm_without_its_directory(|data| {
        fs::rename(data, data.with_extension("old")).expect("movable");
        fs::create_dir_all(data.join("outbox")).expect("another");
        fs::write(data.join("outbox/0000000000000001.log"), "").expect("a file of that name");
    });
    let small = farm.peer.dumps(&frame("FRAME_RENDERED", "'after'"), 4);
    farm.post_bytes(PICKLE, &small).failure(503);
    assert_says_that_it_is_missing(&mut farm, "data/outbox");
}

#[test]
fn a_data_directory_that_is_missing_when_a_new_file_is_needed_is_reported_too() {
    let mut farm = farm_without_its_directory(|data| {
        // All but the file that it has open, which has space for some more.
        for (path, _) in
            files_below(data).into_iter().filter(|(path, _)| !path.ends_with("outbox/0000000000000001.log"))
        {
            fs::remove_file(path).expect("deletable");
        }
    });
    let large = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(17000000)"), 4);
    farm.post_bytes(PICKLE, &large);
    fs::remove_dir_all(farm.server.setup().data_dir()).expect("deletable");
    farm.post_bytes(PICKLE, &large).failure(503);
    assert_says_that_it_is_missing(&mut farm, "data/outbox");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[test]
fn a_new_data_directory_is_closed_to_other_users() {
    let mut farm = Farm::of(Setup::default().wrapper(&["sh", "-c", "umask 0; exec \"$@\"", "sh"]));
    farm.post(&frame("FRAME_RENDERED", "'private'"));
    farm.leave("id-1", "'private'");
    let data = farm.server.setup().data_dir();
    for directory in [data.clone(), data.join("buffer"), data.join("outbox")] {
        assert_eq!(mode(&directory), 0o700, "{}", directory.display());
    }
    let files = files_below(&data);
    assert!(files.len() >= 6, "{files:?}");
    for (file, _) in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    assert!(!farm.log().contains("open to other users"), "{}", farm.log());
}

#[test]
fn an_old_data_directory_that_others_may_enter_is_warned_about() {
    for (wide, warned) in [(0o755, true), (0o710, true), (0o704, true), (0o700, false)] {
        let setup = Setup::default();
        let data = setup.data_dir();
        DirBuilder::new().mode(0o700).create(&data).expect("a data directory");
        fs::set_permissions(&data, Permissions::from_mode(wide)).expect("another mode");
        let server = setup.start();
        let log = server.log();
        assert_eq!(
            log.contains(&format!("WARN  user_http_actors::system] {} is open", data.display())),
            warned,
            "{log}"
        );
        assert_eq!(log.contains(&format!("chmod 700 {}", data.display())), warned, "{wide:o}: {log}");
        assert_eq!(mode(&data), wide, "it is the operator's to change");
    }
}

/// These tests mount a file system.
mod mounts {
    use super::*;

    #[test]
    fn on_a_disk_without_a_byte_left_fetching_and_forwarding_go_on_and_all_else_once_there_is_space() {
        let mut farm = Farm::of(Setup::on_a_small_disk());
        let large = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(1000000)"), 4);
        for number in 0..3 {
            farm.leave(&format!("id-{number}"), &format!("{{'n': {number}}}"));
            farm.post_bytes(PICKLE, &large);
        }
        let disk = farm.server.setup().path("disk");
        let filler = format!("/proc/{}/root{}/filler", farm.pid(), disk.display());
        let mut other = File::create(&filler).expect("a file on the small disk");
        while other.write_all(&[0x55; 4096]).is_ok() {}

        for _ in 0..3 {
            let refused = farm.post_bytes(PICKLE, &large);
            refused.failure(503);
            assert!(refused.header("retry-after").is_some(), "{refused:?}");
        }
        assert_eq!(farm.readyz()["store"], "full");
        for number in 0..3 {
            assert_eq!(farm.fetch_value(&format!("id-{number}")), format!("{{'n': {number}}}"));
            farm.expect_no_message(&format!("id-{number}"));
            let message = farm.next_answer("wait=30");
            assert!(message.body.len() > 1_000_000, "{} bytes", message.body.len());
            assert_eq!(farm.delete(message.header("message-id").expect("a message")), 204);
        }
        farm.expect_nothing_for_the_user_manager();
        eventually("deleted messages free space for new ones", SOON, || {
            let answer = farm.post_bytes(PICKLE, &large);
            holds(answer.status == 200, answer)
        });
        while other.write_all(&[0x55; 4096]).is_ok() {}
        let refused = (0..20).map(|_| farm.post_bytes(PICKLE, &large)).find(|answer| answer.status != 200);
        refused.expect("the disk is full again").failure(503);
        assert_eq!(request(farm.api, "GET", "/readyz", &[], b"").status, 503);

        drop(other);
        fs::remove_file(&filler).expect("deletable");
        eventually("there is space again", SOON, || {
            let answer = farm.post_bytes(PICKLE, &large);
            holds(answer.status == 200, answer)
        });
        assert_eq!(farm.readyz()["store"], "ok");
        farm.leave("id-9", "'space'");
        assert_eq!(farm.fetch_value("id-9"), "'space'");
    }
    #[test]
    fn on_a_full_disk_a_message_is_delivered_with_its_file_in_place_of_a_reference() {
        let mut farm = Farm::of(Setup::on_a_small_disk());
        farm.blend_file("scene.blend", b"content");
        farm.leave_blend("id-1", "scene.blend");
        let disk = farm.server.setup().path("disk");
        let filler = format!("/proc/{}/root{}/filler", farm.pid(), disk.display());
        let mut other = File::create(&filler).expect("a file on the small disk");
        while other.write_all(&[0x55; 4096]).is_ok() {}
        // what the store has allocated already
        for (len, at_most) in [(60_000, 100), (10, 1_000)] {
            let body = farm.peer.dumps(&order("other", &format!("bytes({len})")), 4);
            let refused = (0..at_most).map(|_| farm.order_bytes(PICKLE, &body)).find(|answer| answer.status != 200);
            refused.expect("the disk is full").failure(503);
        }
        let preferring = [("Prefer", "blend-reference")];
        let answer = farm.ask("GET", "id-1", &preferring);
        assert_eq!((answer.status, answer.header("preference-applied")), (200, None), "{answer:?}");
        assert!(farm.peer.loads(&answer.body).contains("b'content'"));
        farm.expect_no_message("id-1");

        drop(other);
        fs::remove_file(&filler).expect("deletable");
        eventually("there is space again", SOON, || {
            let body = farm.peer.dumps(&order("other", "1"), 4);
            let answer = farm.order_bytes(PICKLE, &body);
            holds(answer.status == 200, answer)
        });
        farm.leave_blend("id-2", "scene.blend");
        let answer = farm.ask("GET", "id-2", &preferring);
        assert_eq!(answer.header("preference-applied"), Some("blend-reference"), "{answer:?}");
    }
}
