//! SIGTERM and Ctrl-C: what is in hand is finished, and the process ends with 0 within 10 seconds.

use std::net::TcpStream;
use std::time::Duration;

use crate::harness::{Connection, Farm, SOON, Server, eventually, frame, holds, request};

const LIMIT: Duration = Duration::from_secs(10);

#[track_caller]
fn assert_ends(server: &mut Server) {
    let status = server.wait_for_exit(LIMIT);
    assert_eq!(status.code(), Some(0), "{status}; log:\n{}", server.log());
}

#[test]
fn sigterm_and_ctrl_c_end_an_idle_server_with_0() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start();
        server.signal(signal);
        assert_ends(&mut server);
    }
}

#[test]
fn an_idle_connection_that_is_kept_alive_does_not_hold_up_the_end() {
    let mut server = Server::start();
    let mut idle = Connection::open(server.http);
    assert_eq!(idle.request("GET", "/?bufferUUID=x", &[], b"").status, 400);
    let _never_used = Connection::open(server.api);
    server.terminate();
    assert_ends(&mut server);
}

#[test]
fn a_long_poll_that_waits_does_not_hold_up_the_end() {
    let mut server = Server::start();
    let mut waiting = Connection::open(server.api);
    waiting.send_head("GET", "/UserManager/NextMessage?wait=60", &[]);
    // Answered after the long poll was, were it not waiting: the server has it in hand.
    assert_eq!(request(server.api, "GET", "/healthz", &[], b"").status, 200);
    server.terminate();
    assert_ends(&mut server);
}

#[test]
fn a_server_whose_broker_is_away_ends_in_time() {
    let mut server = Server::with(&["--amqp-url", "amqp://guest:guest@127.0.0.1:1/%2f"]);
    server.terminate();
    assert_ends(&mut server);
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn a_download_that_stands_still_does_not_hold_up_the_end_and_its_message_stays() {
        let mut farm = Farm::start();
        farm.sparse_blend_file("scene.blend", 64 << 20);
        farm.leave_blend("id-1", "scene.blend");
        let (_stalled, _) = farm.begin_fetch("id-1");
        farm.terminate();
        assert_ends(&mut farm.server);
        farm.server.restart();
        assert_eq!(farm.ask("GET", "id-1", &[]).status, 200);
    }

    #[test]
    fn a_request_in_flight_is_finished_and_its_message_is_kept() {
        let mut farm = Farm::start();
        let body = farm.peer.dumps(&frame("FRAME_RENDERED", "'in flight'"), 4);
        let mut posting = Connection::open(farm.http);
        let length = body.len().to_string();
        posting.send_head("POST", "/", &[("Content-Type", "application/octet-stream"), ("Content-Length", &length)]);
        posting.send(&body[..body.len() / 2]);
        // The server's turn, so that it has read the head before it is asked to end.
        assert_eq!(farm.ask("HEAD", "x", &[]).status, 400);
        farm.terminate();
        eventually("the server accepts no new connection", SOON, || {
            let accepts = TcpStream::connect(farm.http).is_ok();
            holds(!accepts, "it accepts")
        });
        posting.send(&body[body.len() / 2..]);
        let answer = posting.read_response();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_ends(&mut farm.server);
        farm.server.restart();
        assert!(farm.take().value.contains("'in flight'"));
    }
}
