//! Clients that are slow, many, or want more memory than there is.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Connection, Farm, SOON, eventually, frame, holds};

const PICKLE: [(&str, &str); 1] = [("Content-Type", "application/octet-stream")];
/// The grace of every transfer, and what a busy machine adds.
const CUT_OFF: Duration = Duration::from_secs(60);

/// Says that a body of `len` bytes follows.
fn announce(farm: &Farm, len: usize) -> Connection {
    let mut connection = Connection::open(farm.http);
    connection.send_head("POST", "/", &[PICKLE[0], ("Content-Length", &len.to_string())]);
    connection
}

#[test]
fn more_bodies_than_memory_is_given_are_refused_before_they_are_read() {
    let mut farm = Farm::with(&["--max-inflight", "900KiB"]);
    let body = farm.peer.dumps(&frame("FRAME_RENDERED", "bytes(700000)"), 4);
    // larger than all
    let refused = announce(&farm, 1_000_000).read_response();
    refused.failure(503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let mut first = announce(&farm, body.len());
    first.send(&body[..600_000]);
    eventually("the first one's bytes are counted", SOON, || {
        // A body that never arrives. One that arrives would take a share of the first one's memory.
        let socket = TcpStream::connect(farm.http).expect("the server accepts");
        let mut probe = Connection::over(farm.http, socket.try_clone().expect("a handle"));
        probe.send_head("POST", "/", &[PICKLE[0], ("Content-Length", &body.len().to_string())]);
        socket.shutdown(Shutdown::Write).expect("still open");
        let answer = probe.try_read_response();
        holds(answer.as_ref().is_ok_and(|answer| answer.status == 503), answer)
    });
    announce(&farm, body.len()).read_response().failure(503);
    // what is small enough goes on
    farm.post(&frame("FRAME_RENDERED", "'small'"));
    first.send(&body[600_000..]);
    assert_eq!(first.read_response().status, 200);
    let answer = farm.post_bytes(PICKLE[0].1, &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut broken = announce(&farm, body.len());
    broken.send(&body[..600_000]);
    drop(broken);
    eventually("the broken one's bytes are given back", SOON, || {
        let answer = farm.post_bytes(PICKLE[0].1, &body);
        holds(answer.status == 200, answer)
    });
}

#[test]
fn a_body_that_comes_too_slowly_is_answered_408() {
    let farm = Farm::start();
    let socket = TcpStream::connect(farm.http).expect("the server accepts");
    socket.set_read_timeout(Some(CUT_OFF)).expect("a time limit");
    let mut slow = Connection::over(farm.http, socket);
    let headers = [PICKLE[0], ("Content-Length", "1000000")];
    slow.send_head("POST", "/", &headers);
    slow.send(&[0; 1_000]);
    let answer = slow.read_response();
    answer.failure(408);
    assert!(answer.json()["ERROR"].as_str().is_some_and(|error| error.contains("16384 bytes a second")), "{answer:?}");
}

#[test]
fn a_reader_that_is_too_slow_is_cut_off_and_the_message_is_offered_again() {
    let mut farm = Farm::with(&["--min-transfer-rate", "1MiB"]);
    farm.sparse_blend_file("scene.blend", 64 << 20);
    farm.leave_blend("id-1", "scene.blend");
    let (stalled, _) = farm.begin_fetch("id-1");
    assert_eq!(farm.ask("GET", "id-1", &[]).status, 400, "in delivery");
    eventually("it is cut off", CUT_OFF, || {
        let answer = farm.ask("HEAD", "id-1", &[]);
        let in_delivery = farm.readyz()["buffer"]["in_delivery"].clone();
        holds(answer.status == 200 && in_delivery == 0, (answer, in_delivery))
    });
    farm.server.wait_for_log("read more slowly");
    drop(stalled);
    assert_eq!(farm.ask("GET", "id-1", &[]).status, 200);
}

#[test]
fn many_slow_and_idle_clients_hold_up_nobody() {
    // the clients' own
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("more open files");
    let mut farm = Farm::start();
    let headers = [PICKLE[0], ("Content-Length", "1000000")];
    let slow: Vec<Connection> = (0..200)
        .map(|_| {
            let mut slow = Connection::open(farm.http);
            slow.send_head("POST", "/", &headers);
            slow.send(&[0; 10]);
            slow
        })
        .collect();
    let idle: Vec<TcpStream> = (0..2_000).map(|_| TcpStream::connect(farm.http).expect("the server accepts")).collect();
    let start = Instant::now();
    for number in 0..20 {
        farm.leave(&format!("id-{number}"), "'for a normal worker'");
        assert_eq!(farm.fetch_value(&format!("id-{number}")), "'for a normal worker'");
        farm.post(&frame("FRAME_RENDERED", "'normal'"));
    }
    println!("60 requests beside {} slow and {} idle clients took {:?}", slow.len(), idle.len(), start.elapsed());
    // and those that never send a request are closed
    let mut first = &idle[0];
    first.set_read_timeout(Some(SOON)).expect("a time limit");
    let mut nothing = Vec::new();
    first.read_to_end(&mut nothing).expect("an end");
}

#[test]
fn no_more_connections_are_open_than_allowed_and_the_others_have_their_turn() {
    let mut farm = Farm::with(&["--max-connections", "20"]);
    let sockets = |farm: &Farm| {
        let files = std::fs::read_dir(format!("/proc/{}/fd", farm.pid())).expect("the process");
        let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    };
    let before = sockets(&farm);
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(farm.http).expect("the kernel accepts")).collect();
    let most = eventually("the idle ones are accepted", SOON, || {
        let open = sockets(&farm) - before;
        // one from before may be closed meanwhile
        if open >= 19 { Ok(open) } else { Err(open) }
    });
    assert!(most <= 20, "{most} file descriptors");
    farm.leave("id-1", "'in turn'");
    // the others are behind the idle ones, each of which is closed after some seconds
    drop(idle);
    assert_eq!(farm.fetch_value("id-1"), "'in turn'");
}
