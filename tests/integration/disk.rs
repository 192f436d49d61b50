//! A disk that somebody else has filled, and one that is gone.

use std::fs::{self, File};
use std::io::Write;

use crate::harness::{Farm, SOON, Setup, eventually, frame, holds, request};

const PICKLE: &str = "application/octet-stream";

/// A server whose data directory is on a disk of its own, and a small one, that goes with the process.
fn farm_on_a_small_disk() -> Farm {
    let setup = Setup::default();
    let disk = setup.path("disk");
    fs::create_dir(&disk).expect("a mount point");
    let mount = format!("mount -t tmpfs -o size=48m none {} && exec \"$@\"", disk.display());
    let data_dir = disk.join("data");
    let setup = setup
        .wrapper(&["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"])
        .args(["--data-dir", data_dir.to_str().expect("UTF-8")]);
    Farm::of(setup)
}

#[test]
fn on_a_disk_without_a_byte_left_fetching_and_forwarding_go_on_and_the_rest_when_there_is_room() {
    let mut farm = farm_on_a_small_disk();
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
    farm.post_bytes(PICKLE, &large).failure(503);
    assert_eq!(request(farm.api, "GET", "/readyz", &[], b"").status, 503);

    drop(other);
    fs::remove_file(&filler).expect("deletable");
    eventually("there is room again", SOON, || {
        let answer = farm.post_bytes(PICKLE, &large);
        holds(answer.status == 200, answer)
    });
    assert_eq!(farm.readyz()["store"], "ok");
    farm.leave("id-9", "'room'");
    assert_eq!(farm.fetch_value("id-9"), "'room'");
}

#[test]
fn a_data_directory_that_is_gone_ends_the_process_with_a_clear_message() {
    let mut farm = Farm::start();
    let outbox = farm.server.setup().data_dir().join("outbox");
    fs::remove_dir_all(&outbox).expect("deletable");
    let frame = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(4000000)"), 4);
    // the file that it has open is still there, and the next one cannot be made
    let refused = (0..10).map(|_| farm.post_bytes(PICKLE, &frame)).find(|answer| answer.status != 200);
    refused.expect("a refusal").failure(503);
    let status = farm.server.wait_for_exit(SOON);
    assert_eq!(status.code(), Some(1), "{status}");
    let log = farm.log();
    let said = log.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no reason: {log}"));
    assert!(said.contains("the message store has failed") && said.contains("outbox"), "{said}");
    assert!(said.contains("start the service again"), "{said}");
}
