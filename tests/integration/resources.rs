//! Limits of the process: files that it may have open, threads that it may start. Where they are low, less is offered;
//! nothing breaks.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::chown;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Connection, Farm, SOON, Setup, eventually, frame, holds, order, request};

const PICKLE: &str = "application/octet-stream";

/// What the tests' own connections need.
fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("more open files");
}

fn with_files(limit: u64) -> Setup {
    Setup::default().wrapper(&["prlimit", &format!("--nofile={limit}")])
}

/// Fills the worker server with connections of strangers; then everything that opens files goes on, or is put off.
fn survives_strangers(limit: u64) {
    raise_own_limit();
    let mut farm = Farm::of(with_files(limit));
    let log = farm.log();
    let line = log.lines().find(|line| line.contains("--max-connections 10000")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(&format!("{limit} open files")) && line.contains("LimitNOFILE="), "{line}");

    let strangers: Vec<TcpStream> = (0..limit + 100).map_while(|_| TcpStream::connect(farm.http).ok()).collect();
    assert!(strangers.len() as u64 > limit / 2, "{}", strangers.len());
    // each begins a segment after the first
    let large = farm.peer.dumps(&order("id-1", "bytes(17000000)"), 4);
    for _ in 0..3 {
        let answer = farm.order_bytes(PICKLE, &large);
        assert!(matches!(answer.status, 200 | 503), "{answer:?}");
        assert!(answer.status == 200 || answer.header("retry-after").is_some(), "{answer:?}");
        assert_eq!(request(farm.api, "GET", "/readyz", &[], b"").status, 200);
    }
    assert!(farm.is_running(), "{}", farm.log());
    drop(strangers);

    farm.leave("id-2", "'after'");
    eventually("normal service", SOON, || {
        let mut connection = Connection::open(farm.http);
        let answer = connection.request("GET", "/?bufferUUID=id-2", &[], b"");
        holds(answer.status == 200, answer)
    });
    farm.post(&frame("FRAME_RENDERED", "bytes(17000000)"));
    farm.post(&frame("FRAME_RENDERED", "'another segment'"));
    let log = farm.log();
    assert!(!log.contains("has failed") && !log.contains("panicked"), "{log}");
}

#[test]
fn a_limit_of_files_that_is_enough_is_not_mentioned() {
    let setup = with_files(1_024).args(["--max-connections", "20"]);
    let limited = setup.start();
    // .blend files are bounded too, by what is left
    assert!(!limited.log().contains("raise the limit"), "{}", limited.log());
}

#[test]
fn with_hardly_any_files_it_does_not_start_and_says_how_many_it_needs() {
    let (status, log) = with_files(100).start_refused();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("the limit of 100 open files is too low") && log.contains("LimitNOFILE="), "{log}");
}

/// A server that may have `limit` processes and threads. The limit counts those of a user, and never holds for the real
/// root: there it is a user that nobody else is.
fn with_threads(limit: u32) -> Setup {
    let setup = Setup::default();
    let limit = format!("--nproc={limit}");
    let map = fs::read_to_string("/proc/self/uid_map").expect("this process's users");
    if map.split_whitespace().next_back() == Some("1") {
        return setup.wrapper(&["unshare", "--user", "prlimit", &limit]);
    }
    let user = 2_000_000 + std::process::id();
    for path in [setup.path("."), setup.blend_root()] {
        chown(path, Some(user), Some(user)).expect("the test's own folder");
    }
    // the program may lie where only root may look
    let program = setup.path("program");
    fs::copy(env!("CARGO_BIN_EXE_user-http-server"), &program).expect("a copy of the program");
    let user = user.to_string();
    let run = format!("shift; exec prlimit {limit} {} \"$@\"", program.display());
    setup.wrapper(&["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "sh", "-c", &run, "sh"])
}

#[test]
fn with_few_threads_it_does_not_start_and_says_how_many_it_needs() {
    for limit in [1, 2, 4, 8, 16, 24] {
        let (status, log) = with_threads(limit).start_refused();
        assert_eq!(status.code(), Some(1), "{limit}: {log}");
        assert!(log.contains("are needed") && log.contains("LimitNPROC="), "{limit}: {log}");
        assert!(!log.contains("panicked"), "{limit}: {log}");
    }
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn strangers_on_every_connection_of_256_files_break_nothing() {
        survives_strangers(256);
    }

    #[test]
    fn strangers_on_every_connection_of_1024_files_break_nothing() {
        survives_strangers(1_024);
    }

    #[test]
    fn strangers_on_every_connection_of_4096_files_break_nothing() {
        survives_strangers(4_096);
    }

    #[test]
    fn with_as_many_threads_as_it_says_that_it_needs_it_serves() {
        let (_, log) = with_threads(8).start_refused();
        let (_, rest) = log.split_once("up to ").unwrap_or_else(|| panic!("{log}"));
        let needed: u32 =
            rest.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{log}"));
        // the main thread and the log's; the shell is another process for a moment
        let mut farm = Farm::of(with_threads(needed + 4));
        farm.sparse_blend_file("scene.blend", 64 << 20);
        farm.leave("id-1", "'x' * 1000000");
        assert_eq!(farm.ask("GET", "id-1", &[]).status, 200);
        farm.post(&frame("FRAME_RENDERED", "bytes(1000000)"));
        assert_eq!(farm.server.stop().code(), Some(0), "{}", farm.log());
        assert!(!farm.log().contains("panicked"), "{}", farm.log());
    }
}
