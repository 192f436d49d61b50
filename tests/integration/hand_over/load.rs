//! The load: clients that post frames, leave messages and fetch them, some of them slowly, and user managers that take
//! the frames. They behave as common clients do, and none repeats a request that has failed.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::harness::{Connection, Response, connect, order_in_json};

/// What a client does again and again, and the pause between two turns in milliseconds.
#[derive(Clone, Copy, Debug)]
enum Habit {
    /// Posts a frame, or leaves a message and fetches it.
    Short,
    /// Takes a frame for the user manager; waits for it at most [`MANAGER_WAIT`].
    Manage,
    /// Posts a frame as a slow line does.
    SlowPost,
    /// Fetches a .blend file as a slow line does.
    SlowFetch,
    /// Waits for a message that is left meanwhile.
    Wait,
}

/// How many clients have which habit. With an optimized program they make more than 1,000 requests a second.
///
/// Connections of those with long pauses are idle when the old process stops. Those pauses are shorter than the
/// default of `--keep-alive`, since a client that sends at the moment when that ends may get no answer, with or without
/// a hand-over.
const CLIENTS: [(usize, Habit, Range<u64>); 6] = [
    (10, Habit::Short, 0..14),
    (8, Habit::Short, 200..3000),
    (3, Habit::Manage, 0..1),
    (2, Habit::SlowPost, 0..500),
    (2, Habit::SlowFetch, 0..500),
    (2, Habit::Wait, 0..500),
];

/// What slow lines carry comes in so many pieces, with this pause in milliseconds before each.
const SLOW_PIECES: usize = 16;
const SLOW_PAUSE_MS: Range<u64> = 10..150;

/// The image of a frame that is posted slowly.
const SLOW_IMAGE: usize = 2 << 20;

/// The .blend file that is fetched slowly, and its length: more than the sockets hold.
pub const BLEND_FILE: &str = "scene.blend";
pub const BLEND_BYTES: u64 = 8 << 20;

/// Longer than the message takes to come, in seconds. A server that stops answers earlier that there is none.
const WAIT: u64 = 20;
/// When the message comes, in milliseconds.
const WAITED_MS: Range<u64> = 0..2000;
/// In seconds; a server that stops answers earlier.
const MANAGER_WAIT: u64 = 2;

/// What the names of frames and messages begin with.
const NAME: &str = "turn-";

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// Keeps a connection open as clients commonly do: before it is used again, the client looks whether the server has
/// closed it.
struct KeepAlive {
    to: SocketAddr,
    open: Option<(TcpStream, Connection)>,
}

impl KeepAlive {
    /// The open connection, or a new one. It is [kept](Self::keep) after the answer.
    fn connection(&mut self) -> io::Result<(TcpStream, Connection)> {
        match self.open.take().filter(|(socket, _)| !is_readable(socket)) {
            Some(open) => Ok(open),
            None => {
                let socket = connect(self.to)?;
                Ok((socket.try_clone()?, Connection::over(self.to, socket)))
            }
        }
    }

    fn keep(&mut self, connection: (TcpStream, Connection), answer: &Response) {
        if answer.header("connection") != Some("close") {
            self.open = Some(connection);
        }
    }

    fn request(&mut self, method: &str, path: &str, body: &str) -> io::Result<Response> {
        self.request_meanwhile(method, path, body, || ())
    }

    /// Does something between the request and its answer.
    fn request_meanwhile(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
        meanwhile: impl FnOnce(),
    ) -> io::Result<Response> {
        let mut connection = self.connection()?;
        connection.1.try_send_request(method, path, &[JSON], body.as_bytes())?;
        meanwhile();
        let answer = connection.1.try_read_response()?;
        self.keep(connection, &answer);
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
pub struct Run {
    ended: AtomicBool,
    pub requests: AtomicUsize,
    /// How many uploads and downloads over slow lines.
    slow: AtomicUsize,
    /// How many waited for a message and got it, and how many were told before that there is none.
    waited: AtomicUsize,
    waited_in_vain: AtomicUsize,
    /// The longest request that neither is slow nor waits.
    longest: Mutex<Duration>,
    /// The frames that were answered 200.
    pub posted: Mutex<BTreeSet<String>>,
    /// The frames that the user managers have taken, with their ids, each as often as it was taken. A lease ends with
    /// its process: a frame that one has taken and not deleted before a hand-over is taken by another, too.
    pub taken: Mutex<Vec<(String, String)>>,
    pub failures: Mutex<Vec<String>>,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slow, waited, waited_in_vain, longest, taken, .. } = self;
        let [slow, waited, in_vain] = [slow, waited, waited_in_vain].map(|count| count.load(Ordering::Relaxed));
        let longest = *longest.lock().expect("the longest");
        let taken = taken.lock().expect("the frames");
        let repeats = taken.len() - taken.iter().collect::<BTreeSet<_>>().len();
        write!(f, "{slow} over slow lines, {waited} waited for a message and {in_vain} in vain; ")?;
        write!(f, "{repeats} frames were taken again after a hand-over; ")?;
        write!(f, "the longest of the others took {longest:.1?}")
    }
}

/// Ends the clients, also if the test fails: it waits for them.
pub struct End<'a>(pub &'a Run);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl Run {
    /// Starts the clients of these servers. They work until an [`End`] is dropped.
    pub fn start<'a>(&'a self, scope: &'a std::thread::Scope<'a, '_>, http: SocketAddr, api: SocketAddr, seed: u64) {
        let each = CLIENTS.into_iter().flat_map(|(count, habit, pause)| vec![(habit, pause); count]);
        for (number, (habit, pause)) in each.enumerate() {
            let [worker, api] = [http, api].map(|to| KeepAlive { to, open: None });
            let rng = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
            let client = Client { run: self, number, worker, api, rng };
            scope.spawn(move || client.work(habit, pause));
        }
    }
}

struct Client<'a> {
    run: &'a Run,
    number: usize,
    worker: KeepAlive,
    api: KeepAlive,
    rng: StdRng,
}

impl Client<'_> {
    fn work(mut self, habit: Habit, pause_ms: Range<u64>) {
        for turn in 0.. {
            if self.run.ended.load(Ordering::Relaxed) {
                return;
            }
            let name = format!("{NAME}{}-{turn}", self.number);
            let done = match habit {
                Habit::Short if self.rng.random() => self.post(name),
                Habit::Short => self.leave(&name, &json!(name)).and_then(|()| self.fetch(&name)),
                Habit::Manage => self.take(MANAGER_WAIT).map(drop),
                Habit::SlowPost => self.post_slowly(name),
                Habit::SlowFetch => self.fetch_slowly(&name),
                Habit::Wait => self.wait_for(&name),
            };
            if let Err(failure) = done {
                self.run.failures.lock().expect("the failures").push(failure);
            }
            std::thread::sleep(Duration::from_millis(self.rng.random_range(pause_ms.clone())));
        }
    }

    fn post(&mut self, name: String) -> Result<(), String> {
        self.expect(200, "POST", "/", &frame(&name, ""))?;
        self.run.posted.lock().expect("the frames").insert(name);
        Ok(())
    }

    fn leave(&mut self, name: &str, message: &serde_json::Value) -> Result<(), String> {
        self.expect(200, "POST", "/CommunicationInterface/AddBufferMsg", &order_in_json(name, message)).map(drop)
    }

    fn fetch(&mut self, name: &str) -> Result<(), String> {
        let path = format!("/?bufferUUID={name}");
        let message = self.expect(200, "GET", &path, "")?;
        if holds_name(&message, name) { Ok(()) } else { Err(format!("GET {path}: {message:?}")) }
    }

    /// Takes the next frame for the user manager, and returns whether there is one.
    fn take(&mut self, wait: u64) -> Result<bool, String> {
        let path = format!("/UserManager/NextMessage?wait={wait}");
        let next = self.api.request("GET", &path, "").map_err(|error| format!("GET {path}: {error}"))?;
        self.run.requests.fetch_add(1, Ordering::Relaxed);
        if next.status == 204 {
            return Ok(false);
        }
        let (Some(name), Some(id)) = (name_in(&next.body), next.header("message-id")) else {
            return Err(format!("GET {path}: {next:?}"));
        };
        let frame = (name, id.to_owned());
        self.run.taken.lock().expect("the frames").push(frame.clone());
        let path = format!("/UserManager/Messages/{id}");
        let deleted = self.ask("DELETE", &path, "")?;
        let times = || self.run.taken.lock().expect("the frames").iter().filter(|taken| **taken == frame).count();
        match deleted.status {
            204 => Ok(true),
            404 if times() > 1 => Ok(true),
            _ => Err(format!("DELETE {path}: {deleted:?}")),
        }
    }

    fn post_slowly(&mut self, name: String) -> Result<(), String> {
        let body = frame(&name, &"x".repeat(SLOW_IMAGE));
        let sent = self.worker.connection().and_then(|mut connection| {
            let length = body.len().to_string();
            connection.1.try_send_head("POST", "/", &[JSON, ("Content-Length", &length)])?;
            for piece in body.as_bytes().chunks(body.len().div_ceil(SLOW_PIECES)) {
                std::thread::sleep(self.slow_pause());
                connection.1.try_send(piece)?;
            }
            let answer = connection.1.try_read_response()?;
            self.worker.keep(connection, &answer);
            Ok(answer)
        });
        let answer = sent.map_err(|error| format!("a slow POST: {error}"))?;
        if answer.status != 200 {
            return Err(format!("a slow POST: {answer:?}"));
        }
        self.run.posted.lock().expect("the frames").insert(name);
        self.run.slow.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn fetch_slowly(&mut self, name: &str) -> Result<(), String> {
        let data = json!({ "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": BLEND_FILE });
        self.leave(name, &json!({ "ABOUT": name, "DATA": data }))?;
        let fetched = self.worker.connection().and_then(|mut connection| {
            connection.1.try_send_request("GET", &format!("/?bufferUUID={name}"), &[], b"")?;
            let mut answer = connection.1.try_read_head()?;
            let len = answer.content_length() as usize;
            for piece in 0..SLOW_PIECES {
                std::thread::sleep(self.slow_pause());
                let part = (piece + 1) * len / SLOW_PIECES - piece * len / SLOW_PIECES;
                answer.body.extend(connection.1.try_read_exact(part)?);
            }
            self.worker.keep(connection, &answer);
            Ok(answer)
        });
        let message = fetched.map_err(|error| format!("a slow GET: {error}"))?;
        if message.status != 200 || (message.body.len() as u64) < BLEND_BYTES || !holds_name(&message, name) {
            return Err(format!("a slow GET: {message:?}"));
        }
        self.run.slow.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn slow_pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(SLOW_PAUSE_MS))
    }

    /// Asks for a message that comes later. A server that stops answers that there is none; then it is asked again.
    fn wait_for(&mut self, name: &str) -> Result<(), String> {
        let path = format!("/?bufferUUID={name}&wait={WAIT}");
        let later = Duration::from_millis(self.rng.random_range(WAITED_MS));
        let mut left = Ok(());
        let mut worker = KeepAlive { to: self.worker.to, open: self.worker.open.take() };
        let answer = worker.request_meanwhile("GET", &path, "", || {
            std::thread::sleep(later);
            left = self.leave(name, &json!(name));
        });
        self.worker = worker;
        left?;
        let answer = answer.map_err(|error| format!("GET {path}: {error}"))?;
        match answer.status {
            200 if holds_name(&answer, name) => {
                self.run.waited.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            400 if String::from_utf8_lossy(&answer.body).contains("No Buffer Message") => {
                self.run.waited_in_vain.fetch_add(1, Ordering::Relaxed);
                self.fetch(name)
            }
            _ => Err(format!("GET {path}: {answer:?}")),
        }
    }

    fn expect(&mut self, status: u16, method: &str, path: &str, body: &str) -> Result<Response, String> {
        let answer = self.ask(method, path, body)?;
        if answer.status == status { Ok(answer) } else { Err(format!("{method} {path}: {answer:?}")) }
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Response, String> {
        let begun = Instant::now();
        let client = if path.starts_with("/?") || path == "/" { &mut self.worker } else { &mut self.api };
        let answer = client.request(method, path, body).map_err(|error| format!("{method} {path}: {error}"))?;
        let mut longest = self.run.longest.lock().expect("the longest");
        *longest = begun.elapsed().max(*longest);
        self.run.requests.fetch_add(1, Ordering::Relaxed);
        Ok(answer)
    }
}

fn frame(name: &str, image: &str) -> String {
    let data = json!({ "FRAME": name, "IMAGE": image });
    json!({ "USER_ID": "worker", "MAIN_DATA": { "TYPE": "FRAME_RENDERED", "DATA": data } }).to_string()
}

/// The name in a pickle. It stands at the begin, because `json!` sorts the keys.
fn name_in(pickle: &[u8]) -> Option<String> {
    let begin = String::from_utf8_lossy(&pickle[..pickle.len().min(500)]);
    let (_, name) = begin.split_once(NAME)?;
    let end = name.find(|char: char| !char.is_ascii_digit() && char != '-')?;
    Some(format!("{NAME}{}", &name[..end]))
}

fn holds_name(message: &Response, name: &str) -> bool {
    name_in(&message.body).as_deref() == Some(name)
}

/// A user manager takes all frames that are left.
pub fn take_the_rest(run: &Run, api: SocketAddr) {
    let [worker, api] = [api, api].map(|to| KeepAlive { to, open: None });
    let mut manager = Client { run, number: 0, worker, api, rng: StdRng::seed_from_u64(0) };
    while manager.take(0).expect("an answer") {}
}
