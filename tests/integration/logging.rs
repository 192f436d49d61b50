//! A slow or missing reader of the log delays nothing, and nobody can flood the log.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Connection, Farm, SOON, Server, Setup, eventually, frame, free_address, holds, order, request};

/// `O_NONBLOCK` of Linux.
const O_NONBLOCK: i32 = 0o4000;

const JSON: &str = "application/json";
const LIMIT: Duration = Duration::from_secs(10);

/// What workers send to be logged: `count` messages on one connection.
fn send_tests(server: &Server, count: usize) {
    let body = json!({ "USER_ID": "u", "MAIN_DATA": { "TYPE": "TEST", "DATA": "x".repeat(400) } }).to_string();
    let mut connection = Connection::open(server.http);
    for _ in 0..count {
        let answer = connection.request("POST", "/", &[("Content-Type", JSON)], body.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[test]
fn the_last_lines_are_written_when_somebody_reads() {
    let mut farm = Farm::start();
    farm.stop_reading_log();
    send_tests(&farm, 1);
    farm.terminate();
    farm.read_log_again();
    let status = farm.wait_for_exit(LIMIT);
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(farm.log().trim_end().ends_with("stopped"), "{}", farm.log());
}

#[test]
fn a_server_whose_standard_error_was_never_open_serves() {
    let setup = Setup::default().wrapper(&["sh", "-c", "exec 2>&-; exec \"$@\"", "sh"]);
    let port = free_address();
    let setup = setup.args(["--api-bind", &port.to_string()]);
    let mut server = setup.launch();
    eventually("it answers", SOON, || {
        assert!(server.is_running(), "it has ended");
        let open = std::net::TcpStream::connect(port);
        holds(open.is_ok(), open)
    });
    assert_eq!(request(port, "GET", "/readyz", &[], b"").status, 200);
    server.terminate();
    assert_eq!(server.wait_for_exit(LIMIT).code(), Some(0));
}

/// How many lines of the log contain `text`, and how many such lines it says were suppressed.
fn count(log: &str, text: &str) -> (usize, usize) {
    let lines = log.lines().filter(|line| line.contains(text));
    let (reported, logged): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.contains("were suppressed"));
    let number = |line: &&str| line.split_once("] ")?.1.split(' ').next()?.parse::<usize>().ok();
    (logged.len(), reported.iter().filter_map(number).sum())
}

#[test]
fn a_thousand_requests_that_cannot_be_read_leave_few_lines() {
    let farm = Farm::start();
    for _ in 0..1_000 {
        let mut connection = Connection::open(farm.http);
        connection.send(b"this is no request\r\n\r\n");
        let _ = connection.try_read_response();
    }
    assert_eq!(request(farm.api, "GET", "/readyz", &[], b"").status, 200);
    let log = farm.log();
    assert!(log.lines().count() < 300, "{} lines, the last: {:?}", log.lines().count(), log.lines().last());
}

#[test]
fn what_was_suppressed_is_counted_before_the_process_ends() {
    let mut server = Server::start();
    send_tests(&server, 200);
    assert_eq!(server.stop().code(), Some(0));
    let (logged, suppressed) = count(&server.log(), "TEST from");
    assert_eq!(logged + suppressed, 200, "{}", server.log());
}

#[test]
fn a_log_filter_that_cannot_be_parsed_is_reported() {
    let server = Setup::default().env("RUST_LOG", "user_http_server=loud").start();
    server.wait_for_log("user_http_server=loud");
}

/// Runs the program with a standard output and a standard error that nobody reads, and with the read ends closed where
/// `broken` says so; its exit code.
fn run_unheard(setup: Setup, broken: bool) -> Option<i32> {
    let mut command = setup.command();
    let (read, write) = std::io::pipe().expect("a pipe");
    command.stdout(write.try_clone().expect("a handle"));
    if broken {
        drop(read);
    } else {
        let mut filling = fs::OpenOptions::new();
        let path = format!("/proc/self/fd/{}", write.as_raw_fd());
        let mut filling = filling.write(true).custom_flags(O_NONBLOCK).open(path).expect("the pipe");
        while filling.write(b"x").is_ok() {}
        command.stdout(Stdio::null());
        // it stays open, and unread, until the program has ended
        std::mem::forget(read);
    }
    let mut child = command.stderr(write).stdin(Stdio::null()).spawn().expect("the program");
    eventually("its end", LIMIT, || child.try_wait().expect("a child's status").ok_or("it runs")).code()
}

#[test]
fn a_failed_start_has_the_same_exit_code_with_a_closed_stderr() {
    for broken in [true, false] {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("its address").to_string();
        let code = |args: &[&str]| run_unheard(Setup::default().args(args), broken);
        assert_eq!(code(&["--api-bind", &address]), Some(1), "a port that is taken");
        assert_eq!(code(&["--max-body", "much"]), Some(2), "a setting that cannot be read");
        assert_eq!(code(&["--no-such-flag"]), Some(2), "a flag that there is not");
        let unreadable = Setup::default().env("RUST_LOG", "=/=").args(["--max-body", "much"]);
        assert_eq!(run_unheard(unreadable, broken), Some(2), "a log filter that cannot be read");
    }
}

#[test]
fn a_closed_standard_output_is_a_failure_of_what_only_prints() {
    for args in [["token"], ["--help"], ["--version"]] {
        let setup = Setup::default();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_user-http-server"));
        let (read, write) = std::io::pipe().expect("a pipe");
        drop(read);
        let stderr = setup.path("stderr");
        command.args(args).stdout(write).stderr(File::create(&stderr).expect("a file"));
        let status = command.status().expect("the program");
        assert_eq!(status.code(), Some(1), "{args:?}: {status}");
        let text = fs::read_to_string(&stderr).expect("its standard error");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
    }
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn nothing_waits_for_a_reader_that_does_not_read_the_log() {
        let mut farm = Farm::start();
        farm.stop_reading_log();
        send_tests(&farm, 300);
        for number in 0..20 {
            let id = format!("id-{number}");
            farm.leave(&id, "'a message'");
            assert_eq!(farm.fetch_value(&id), "'a message'");
            farm.post(&frame("FRAME_RENDERED", "'a frame'"));
            farm.post_bytes(JSON, b"{").failure(400);
            assert_eq!(request(farm.api, "GET", "/readyz", &[], b"").status, 200);
        }
        farm.terminate();
        // nobody reads until it has ended
        let status = farm.wait_for_exit(LIMIT);
        assert_eq!(status.code(), Some(0), "{status}");
    }

    #[test]
    fn a_closed_standard_error_stops_nothing() {
        let mut farm = Farm::start();
        eventually("the pipe is closed", SOON, || {
            send_tests(&farm, 1);
            holds(farm.close_log(), "it is open")
        });
        send_tests(&farm, 20);
        farm.leave("id-1", "'a message'");
        assert_eq!(farm.fetch_value("id-1"), "'a message'");
        farm.post_bytes(JSON, b"{").failure(400);
        farm.terminate();
        let status = farm.wait_for_exit(LIMIT);
        assert_eq!(status.code(), Some(0), "{status}");
    }

    #[test]
    fn two_thousand_lines_that_strangers_cause_are_two_hundred_at_most_and_the_others_are_counted() {
        const SENT: usize = 2_000;
        let mut farm = Farm::start();
        send_tests(&farm, SENT);
        let unknown = json!({ "USER_ID": "u", "MAIN_DATA": { "TYPE": "NEWS", "DATA": 1 } }).to_string();
        let mut connection = Connection::open(farm.http);
        for _ in 0..SENT {
            let answer = connection.request("POST", "/", &[("Content-Type", JSON)], unknown.as_bytes());
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        for text in ["TEST from", "unknown type"] {
            let counted = eventually("the suppressed lines are counted", Duration::from_secs(60), || {
                let (logged, suppressed) = count(&farm.log(), text);
                holds(logged + suppressed == SENT, (logged, suppressed)).map(|()| (logged, suppressed))
            });
            assert!(counted.0 <= 200, "{text}: {counted:?}");
        }
        // Another call site has its own limit.
        let other = order("id-1", "'x'").replace("ADD_BUFFER_MSG", "OTHER");
        let other = farm.peer.dumps(&other, 4);
        farm.order_bytes("application/octet-stream", &other).failure(400);
        assert_eq!(farm.server.stop().code(), Some(0));
    }
}
