//! How long a connection may be in any of its states, and what it may hold meanwhile.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Ca, Client, Connection, Farm, Server, Setup, eventually, holds, request};

/// The longest bounds (30 s for an answer that is not read, 30 s for a client that goes on sending), and what a busy
/// machine adds.
const BOUND: Duration = Duration::from_secs(90);

/// How many connections the servers have.
const MAX_CONNECTIONS: usize = 20;

const GET: &[u8] = b"GET /?bufferUUID=x HTTP/1.1\r\nHost: x\r\n\r\n";
const CHUNKED: &[u8] = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

fn open(to: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(to).expect("the kernel accepts");
    socket.set_read_timeout(Some(BOUND)).expect("a time limit");
    socket
}

/// A connection with a small receive buffer.
fn open_narrow(to: SocketAddr) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    sockopt::set_socket_recv_buffer_size(&socket, 2_000).expect("a small buffer");
    rustix::net::connect(&socket, &to).expect("the kernel accepts");
    socket.into()
}

/// Sends as much as the other side takes.
fn fill(mut socket: &TcpStream, bytes: &[u8]) {
    socket.set_nonblocking(true).expect("a mode");
    for _ in 0..100_000 {
        match socket.write(bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // it may be closed already
            Err(_) => break,
        }
    }
    socket.set_nonblocking(false).expect("a mode");
}

/// Reads an answer's head and its body, from a socket that the test goes on with.
fn read_answer(socket: &TcpStream, to: SocketAddr) -> u16 {
    Connection::over(to, socket.try_clone().expect("a handle")).read_response().status
}

fn after_a_request(socket: &TcpStream, to: SocketAddr, request: &[u8], status: u16) {
    let mut writing = socket;
    writing.write_all(request).expect("the server to read");
    assert_eq!(read_answer(socket, to), status);
}

/// A state in which a client stays.
struct State {
    name: &'static str,
    args: &'static [&'static str],
    is_tls: bool,
    /// Brings a connection there.
    enter: fn(SocketAddr) -> TcpStream,
    /// What the client goes on sending.
    goes_on: &'static [u8],
}

impl State {
    const fn new(name: &'static str, enter: fn(SocketAddr) -> TcpStream) -> Self {
        Self { name, args: &[], is_tls: false, enter, goes_on: b"" }
    }
}

const STATES: &[State] = &[
    State::new("silent", open),
    State::new("within the first head", |to| {
        let mut socket = open(to);
        socket.write_all(&GET[..20]).expect("the server to read");
        socket
    }),
    State { goes_on: b"\r\n", ..State::new("nothing but empty lines", open) },
    State {
        goes_on: b"a",
        ..State::new("a head that grows and never ends", |to| {
            let mut socket = open(to);
            socket.write_all(b"GET / HTTP/1.1\r\nX: ").expect("the server to read");
            socket
        })
    },
    State::new("idle after a request", |to| {
        let socket = open(to);
        after_a_request(&socket, to, GET, 400);
        socket
    }),
    State::new("one byte of the next request", |to| {
        let mut socket = open(to);
        after_a_request(&socket, to, GET, 400);
        socket.write_all(b"G").expect("the server to read");
        socket
    }),
    State::new("an answer that is the last, and no end", |to| {
        let socket = open(to);
        after_a_request(&socket, to, b"GET / HTTP/1.0\r\n\r\n", 400);
        socket
    }),
    State {
        goes_on: b"1\r\nx\r\n",
        args: &["--max-body", "100B"],
        ..State::new("a body in chunks that goes on after 413", |to| {
            let socket = open(to);
            let chunk = format!("c8\r\n{}\r\n", "x".repeat(200));
            after_a_request(&socket, to, &[CHUNKED, chunk.as_bytes()].concat(), 413);
            socket
        })
    },
    State {
        goes_on: b"1\r\nx\r\n",
        ..State::new("a body in chunks that goes on after 415", |to| {
            let socket = open(to);
            let gzip = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n";
            after_a_request(&socket, to, gzip, 415);
            socket
        })
    },
    State {
        goes_on: b"1\r\nx\r\n",
        ..State::new("anything after 400", |to| {
            let socket = open(to);
            after_a_request(&socket, to, &[CHUNKED, b"-1\r\n"].concat(), 400);
            socket
        })
    },
    State::new("leave to send a body, and no body", |to| {
        let mut socket = open(to);
        let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
        socket.write_all(head).expect("the server to read");
        socket
    }),
    State::new("half a body and a closed side", |to| {
        let mut socket = open(to);
        socket.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf").expect("the server to read");
        socket.shutdown(Shutdown::Write).expect("still open");
        socket
    }),
    State::new("requests whose answers are never read", |to| {
        let socket = open_narrow(to);
        // the answer repeats the path
        fill(&socket, format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(8_000)).as_bytes());
        socket
    }),
    State { is_tls: true, ..State::new("silent where TLS is spoken", open) },
    State {
        is_tls: true,
        ..State::new("within a handshake", |to| {
            let mut socket = open(to);
            socket.write_all(b"\x16\x03\x01\x02\x00\x01").expect("the server to read");
            socket
        })
    },
    State {
        is_tls: true,
        goes_on: b"a",
        ..State::new("plain HTTP that goes on where TLS is spoken", |to| {
            let socket = open(to);
            after_a_request(&socket, to, &GET[..20], 400);
            socket
        })
    },
];

/// Fills the connection limit of a server with connections in one state, and waits until another client is answered.
fn assert_gives_way(ca: &Ca, state: &State) {
    let limit = MAX_CONNECTIONS.to_string();
    let mut setup = Setup::default().args(["--max-connections", &limit, "--keep-alive", "5s"]).args(state.args);
    if state.is_tls {
        let [cert, key] = ca.issue_files(&state.name.replace(' ', "-"));
        setup = setup.args(["--http-tls-cert", &cert, "--http-tls-key", &key]);
    }
    let server = setup.start();
    let held: Vec<TcpStream> = (0..MAX_CONNECTIONS).map(|_| (state.enter)(server.http)).collect();
    let other = thread::spawn({
        let (to, client) = (server.http, state.is_tls.then(|| Client::trusting(ca)));
        move || {
            let mut connection = match client {
                None => Connection::over(to, open(to)),
                Some(client) => Connection::over(to, client.try_shake_hands_over(open(to)).expect("a handshake")),
            };
            connection.send(GET);
            connection.read_response().status
        }
    });
    eventually(&format!("another client is answered beside those in this state: {}", state.name), BOUND, || {
        for mut socket in &held {
            if !state.goes_on.is_empty() {
                // it may be closed already
                let _ = socket.write(state.goes_on);
            }
        }
        holds(other.is_finished(), "no answer")
    });
    assert_eq!(other.join().expect("an answer"), 400, "{}", state.name);
}

#[test]
fn in_no_state_can_a_client_keep_others_out_for_longer_than_its_bound() {
    let ca = Ca::new();
    thread::scope(|scope| {
        for state in STATES {
            scope.spawn(|| assert_gives_way(&ca, state));
        }
    });
}

#[test]
fn the_answer_to_a_head_that_is_too_long_or_too_slow_names_the_bound() {
    let server = Server::start();
    let mut slow = Connection::over(server.http, open(server.http));
    slow.send(&GET[..20]);
    let long = [("X-Long", "x".repeat(17_000))];
    let long: Vec<(&str, &str)> = long.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let error = request(server.http, "GET", "/?bufferUUID=x", &long, b"").failure(431);
    assert!(error.contains("16384 bytes"), "{error}");
    let many: Vec<(&str, &str)> = (0..100).map(|_| ("X-Many", "x")).collect();
    let error = request(server.http, "GET", "/?bufferUUID=x", &many, b"").failure(431);
    assert!(error.contains("96 headers"), "{error}");
    let error = slow.read_response().failure(408);
    assert!(error.contains("5 s"), "{error}");
}

#[test]
fn a_client_that_is_still_sending_reads_why_it_is_refused() {
    let ca = Ca::new();
    let [cert, key] = ca.issue_files("server");
    let plain = Server::with(&["--max-body", "1MiB"]);
    let tls = Server::with(&["--max-body", "1MiB", "--http-tls-cert", &cert, "--http-tls-key", &key]);
    for (server, is_tls) in [(plain, false), (tls, true)] {
        let mut connection =
            if is_tls { Client::trusting(&ca).open(server.http) } else { Connection::open(server.http) };
        connection.send_head("POST", "/", &[("Content-Length", "20000000")]);
        for _ in 0..20 {
            connection.send(&[b'x'; 1_000_000]);
        }
        let answer = connection.read_response();
        answer.failure(413);
        assert_eq!(answer.header("connection"), Some("close"));
    }
}

#[test]
fn the_keep_alive_time_is_a_setting() {
    let short = Server::with(&["--keep-alive", "300ms"]);
    let long = Server::with(&["--keep-alive", "1h"]);
    let mut connections = [&short, &long].map(|server| Connection::over(server.http, open(server.http)));
    for connection in &mut connections {
        assert_eq!(connection.request("GET", "/?bufferUUID=x", &[], b"").status, 400);
    }
    let [mut closed, mut kept] = connections;
    assert_eq!(closed.read(&mut [0; 10]), 0, "an end");
    assert_eq!(kept.request("GET", "/?bufferUUID=x", &[], b"").status, 400);
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn a_short_answer_that_is_never_read_leaves_the_message_for_another() {
        let mut farm = Farm::start();
        // more than what the kernel keeps for a client
        let messages: Vec<String> = (0..100).map(|number| format!("id-{number}")).collect();
        for uuid in &messages {
            farm.leave(uuid, "'x' * 60_000");
        }
        let requests: String =
            messages.iter().map(|uuid| format!("GET /?bufferUUID={uuid} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
        let mut unread = open_narrow(farm.http);
        unread.write_all(requests.as_bytes()).expect("the server to read");
        eventually("an answer is cut off", BOUND, || holds(farm.log().contains("read more slowly"), farm.readyz()));
        let stuck = messages.iter().find(|uuid| farm.ask("HEAD", uuid, &[]).status == 200);
        let stuck = stuck.expect("one that the kernel has not taken");
        assert_eq!(farm.fetch_value(stuck), format!("'{}'", "x".repeat(60_000)));
    }

    #[test]
    fn unfinished_heads_are_small_and_count_as_in_flight() {
        const HEADS: usize = 2_000;
        // the clients' own
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("more open files");
        let mut farm = Farm::with(&["--max-inflight", "1MiB"]);
        let before = farm.rss_kib();
        let unfinished = format!("GET /?bufferUUID=x HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(15_000));
        let clients: Vec<TcpStream> = (0..HEADS)
            .map(|_| {
                let mut socket = open(farm.http);
                // it may be refused before it is sent whole
                let _ = socket.write_all(unfinished.as_bytes());
                socket
            })
            .collect();
        let grown = farm.rss_kib().saturating_sub(before);
        let answers: Vec<String> = clients
            .into_iter()
            .map(|mut socket| {
                let mut answer = String::new();
                let _ = socket.read_to_string(&mut answer);
                answer
            })
            .collect();
        let refused = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 503")).count();
        assert!(
            refused > 0 && answers.iter().any(|answer| answer.to_lowercase().contains("\r\nretry-after: ")),
            "{refused}"
        );
        assert!(grown < 20 << 10, "grown by {grown} KiB with {HEADS} unfinished heads, {refused} refused");
        // and all of it is given back
        farm.post(&crate::harness::frame("FRAME_RENDERED", "bytes(900_000)"));
    }
}
