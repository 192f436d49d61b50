//! A new process takes over the sockets of the old one under load, and no client notices.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::harness::{Connection, Response, Server, Setup, connect, listening, passing, request};
use crate::kill::{Seed, from_environment};

/// How often the process is replaced; `TEST_HAND_OVERS` sets another number.
const HAND_OVERS: u64 = 4;

/// How long the load lasts before each replacement, and after the last one.
const LOAD: Duration = Duration::from_millis(1500);

/// Together, these make about 1,000 requests a second on an idle machine.
const BUSY_CLIENTS: u64 = 8;
const BUSY_PAUSE_MS: std::ops::Range<u64> = 0..14;

/// Their connections are idle when the old process stops. The longest pause is shorter than `--keep-alive`, since a
/// client that sends at the moment when that ends may get no answer, with or without a hand-over.
const IDLE_CLIENTS: u64 = 8;
const IDLE_PAUSE_MS: std::ops::Range<u64> = 200..3000;

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// Keeps a connection open as clients commonly do: before it is used again, the client looks whether the server has
/// closed it. A request is never sent twice.
struct KeepAlive {
    to: SocketAddr,
    open: Option<(TcpStream, Connection)>,
}

impl KeepAlive {
    fn request(&mut self, method: &str, path: &str, body: &str) -> io::Result<Response> {
        let mut open = self.open.take().filter(|(socket, _)| !is_readable(socket));
        let (_, connection) = match &mut open {
            Some(open) => open,
            none => {
                let socket = connect(self.to)?;
                none.insert((socket.try_clone()?, Connection::over(self.to, socket)))
            }
        };
        connection.try_send_request(method, path, &[JSON], body.as_bytes())?;
        let answer = connection.try_read_response()?;
        if answer.header("connection") != Some("close") {
            self.open = open;
        }
        Ok(answer)
    }
}

/// Whether something has arrived on an idle connection: its end.
fn is_readable(socket: &TcpStream) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).expect("a socket") > 0
}

/// What all clients share.
#[derive(Default)]
struct Run {
    ended: AtomicBool,
    requests: AtomicUsize,
    longest: Mutex<Duration>,
    /// The frames that were answered 200.
    posted: Mutex<BTreeSet<String>>,
    failures: Mutex<Vec<String>>,
}

/// Ends the clients, also if the test fails: it waits for them.
struct End<'a>(&'a Run);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

struct Client<'a> {
    run: &'a Run,
    number: u64,
    worker: KeepAlive,
    api: KeepAlive,
    rng: StdRng,
}

impl Client<'_> {
    fn work(mut self, pause_ms: std::ops::Range<u64>) {
        for turn in 0.. {
            if self.run.ended.load(Ordering::Relaxed) {
                return;
            }
            if let Err(failure) = self.turn(turn) {
                self.run.failures.lock().expect("the failures").push(failure);
            }
            std::thread::sleep(Duration::from_millis(self.rng.random_range(pause_ms.clone())));
        }
    }

    /// Posts a frame, or leaves a message and fetches it.
    fn turn(&mut self, turn: u64) -> Result<(), String> {
        let name = format!("{}-{turn}", self.number);
        if self.rng.random() {
            let data = json!({ "USER_ID": "worker", "MAIN_DATA": { "TYPE": "FRAME_RENDERED", "DATA": name } });
            self.expect(200, "POST", "/", &data.to_string())?;
            self.run.posted.lock().expect("the frames").insert(name);
            return Ok(());
        }
        let data = json!({ "BUFFER_UUID": name, "BUFFER_MSG": name });
        let order = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": data }).to_string();
        self.expect(200, "POST", "/CommunicationInterface/AddBufferMsg", &order)?;
        let path = format!("/?bufferUUID={name}");
        let message = self.expect(200, "GET", &path, "")?;
        let is_right = message.body.windows(name.len()).any(|part| part == name.as_bytes());
        if is_right { Ok(()) } else { Err(format!("GET {path}: {message:?}")) }
    }

    fn expect(&mut self, status: u16, method: &str, path: &str, body: &str) -> Result<Response, String> {
        let begun = Instant::now();
        let client = if path.starts_with("/Comm") { &mut self.api } else { &mut self.worker };
        let answer = client.request(method, path, body).map_err(|error| format!("{method} {path}: {error}"))?;
        let mut longest = self.run.longest.lock().expect("the longest");
        *longest = begun.elapsed().max(*longest);
        self.run.requests.fetch_add(1, Ordering::Relaxed);
        if answer.status == status { Ok(answer) } else { Err(format!("{method} {path}: {answer:?}")) }
    }
}

fn server_with_passed_sockets() -> Server {
    let sockets = [listening("127.0.0.1"), listening("127.0.0.1")];
    passing(Setup::default(), "worker:api", sockets.map(Into::into).into()).start()
}

/// Takes all messages for the user manager; counts each frame.
fn take_all(server: &Server) -> Vec<String> {
    let mut taken = Vec::new();
    let mut api = KeepAlive { to: server.api, open: None };
    loop {
        let next = api.request("GET", "/UserManager/NextMessage?lease=600", "").expect("an answer");
        if next.status == 204 {
            return taken;
        }
        // a pickle, in which a name is between other bytes
        let text = String::from_utf8_lossy(&next.body).into_owned();
        let is_of_name = |char: char| char.is_ascii_digit() || char == '-';
        let name = text.split(|char| !is_of_name(char)).find(|part| part.contains('-'));
        taken.push(name.unwrap_or_else(|| panic!("no frame: {text:?}")).to_owned());
    }
}

#[test]
fn no_request_fails_and_nothing_is_lost_while_a_process_replaces_another_under_load() {
    let seed = Seed::get();
    let hand_overs = from_environment("TEST_HAND_OVERS").unwrap_or(HAND_OVERS);
    let mut server = server_with_passed_sockets();
    let (http, api) = (server.http, server.api);
    let run = Run::default();
    let start = Instant::now();
    let mut replaced = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..BUSY_CLIENTS + IDLE_CLIENTS {
            let [worker, api] = [http, api].map(|to| KeepAlive { to, open: None });
            let client =
                Client { run: &run, number, worker, api, rng: StdRng::seed_from_u64(seed.0.wrapping_add(number)) };
            let pause = if number < BUSY_CLIENTS { BUSY_PAUSE_MS } else { IDLE_PAUSE_MS };
            scope.spawn(move || client.work(pause));
        }
        let _end = End(&run);
        for _ in 0..hand_overs {
            std::thread::sleep(LOAD);
            let begun = Instant::now();
            server.replace();
            replaced.push(begun.elapsed());
        }
        std::thread::sleep(LOAD);
    });
    let requests = run.requests.into_inner();
    println!(
        "{hand_overs} hand-overs ({replaced:.1?}), {requests} requests in {:.1?}; the longest took {:.1?}",
        start.elapsed(),
        run.longest.into_inner().expect("the longest"),
    );
    let failures = run.failures.into_inner().expect("the failures");
    assert!(failures.is_empty(), "{} of {requests}: {failures:#?}; log:\n{}", failures.len(), server.log());
    assert_eq!((server.http, server.api), (http, api));
    let posted = run.posted.into_inner().expect("the frames");
    let taken = take_all(&server);
    assert_eq!(taken.len(), posted.len(), "each frame once");
    assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), posted);
    assert!(requests as u64 > 100 * hand_overs, "{requests} requests");
}

#[test]
fn idle_connections_are_kept_open_while_the_sockets_are_handed_over() {
    let mut server = server_with_passed_sockets();
    let mut idle = Connection::open(server.http);
    assert_eq!(idle.request("GET", "/?bufferUUID=x", &[], b"").header("connection"), None);
    server.terminate();
    server.wait_for_log("handing over");
    // a new connection is accepted, and answered for the last time at once
    let last = request(server.http, "GET", "/?bufferUUID=x", &[], b"");
    assert_eq!((last.status, last.header("connection")), (400, Some("close")));
    let last = idle.request("GET", "/?bufferUUID=x", &[], b"");
    assert_eq!((last.status, last.header("connection")), (400, Some("close")));
    assert_eq!(server.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn an_idle_connection_and_a_long_poll_hold_up_a_hand_over_for_a_bounded_time() {
    let mut server = passing(
        Setup::default().args(["--keep-alive", "1h"]),
        "worker:api",
        vec![listening("127.0.0.1").into(), listening("127.0.0.1").into()],
    )
    .start();
    let mut idle = Connection::open(server.http);
    assert_eq!(idle.request("GET", "/?bufferUUID=x", &[], b"").status, 400);
    let mut waiting = Connection::open(server.api);
    waiting.send_head("GET", "/UserManager/NextMessage?wait=60", &[]);
    assert_eq!(request(server.api, "GET", "/healthz", &[], b"").status, 200);
    server.terminate();
    let answer = waiting.read_response();
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(server.wait_for_exit(Duration::from_secs(15)).code(), Some(0));
}
