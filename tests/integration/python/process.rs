//! The process as the system sees it: its name, and the signals that it is sent.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::harness::{Farm, SOON, Server, Setup, eventually, frame, holds};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn the_process_is_listed_under_the_programs_name() {
    let server = Server::start();
    let name = fs::read_to_string(format!("/proc/{}/comm", server.pid())).expect("the process");
    // as far as the kernel keeps it
    assert_eq!(name.trim_end(), &"user-http-server"[..15]);
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", server.pid())).expect("the process");
    assert!(arguments.starts_with(env!("CARGO_BIN_EXE_user-http-server")), "{arguments:?}");
}

/// The loader of this machine, which has loaded this test as well.
fn loader() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").expect("this process");
    let mut files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(PathBuf::from);
    let is_loader = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-"));
    files.find(is_loader).expect("a loader")
}

#[test]
fn it_can_be_started_through_the_loader() {
    let loader = loader();
    let mut farm = Farm::of(Setup::default().wrapper(&[loader.to_str().expect("UTF-8")]));
    farm.leave("id-1", "'a message'");
    assert_eq!(farm.fetch_value("id-1"), "'a message'");
    assert_eq!(farm.server.stop().code(), Some(0));
}

#[test]
fn signals_that_mean_nothing_to_it_end_nothing() {
    let mut farm = Farm::start();
    for signal in ["USR1", "USR2", "HUP", "PIPE", "XFSZ"] {
        farm.signal(signal);
    }
    farm.wait_for_log("SIGUSR1 has no meaning here");
    farm.wait_for_log("SIGUSR2 has no meaning here");
    farm.post(&frame("FRAME_RENDERED", "'a frame'"));
    assert!(farm.is_running());
}

#[test]
fn sigquit_stops_it_as_sigterm_does() {
    let mut server = Server::start();
    server.signal("QUIT");
    let status = server.wait_for_exit(LIMIT);
    assert_eq!(status.code(), Some(0), "{status}; log:\n{}", server.log());
    assert!(server.log().contains("stopped"), "{}", server.log());
}

#[test]
fn further_signals_during_a_stop_do_not_cut_it_short() {
    let mut farm = Farm::start();
    farm.post(&frame("FRAME_RENDERED", "'a frame'"));
    farm.terminate();
    farm.wait_for_log("stopping");
    for signal in ["INT", "TERM", "QUIT"] {
        farm.signal(signal);
    }
    let status = farm.wait_for_exit(LIMIT);
    assert_eq!(status.code(), Some(0), "{status}; log:\n{}", farm.log());
}

#[test]
fn a_limit_on_the_size_of_files_is_a_full_disk_and_kills_nothing() {
    // less than a segment, which begins a new one at 16 MiB
    let limit = (4 << 20).to_string();
    let mut farm = Farm::of(Setup::default().wrapper(&["prlimit", &format!("--fsize={limit}")]));
    let large = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(1000000)"), 4);
    let refused = eventually("a frame that does not fit", SOON, || {
        let answer = farm.post_bytes("application/octet-stream", &large);
        holds(answer.status != 200, answer.status).map(|()| answer)
    });
    refused.failure(503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert!(farm.is_running());
    assert!(farm.readyz()["store"] == "full", "{}", farm.readyz());
}
