//! The load: clients that do whatever the farm does, in any order, until the server goes away.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::content::{Fetched, Kind, Label, Taken, encode, posted, random_len};
use super::model::{Counts, Outbox, Slot};
use crate::harness::{Connection, Response, SOON, Server};

/// How many UUIDs a client uses. The first of them it seldom touches, so that some messages grow old.
const SLOTS: usize = 12;

/// How many messages may wait for the user manager before clients take rather than post.
const MANY_WAITING: usize = 60;

/// One in so many frames is kept until so many others of its client were posted.
const KEPT_FRAMES: u64 = 64;

/// One client, with the names that it alone uses.
pub struct Client {
    pub number: usize,
    pub slots: Vec<Slot>,
    frames: u64,
    rng: StdRng,
}

impl Client {
    pub fn new(number: usize, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(1 + number as u64));
        Self { number, slots: (0..SLOTS).map(|_| Slot::default()).collect(), frames: 0, rng }
    }

    pub fn path(&self, slot: usize) -> String {
        format!("/?bufferUUID=uuid-{}-{slot}", self.number)
    }
}

/// How a run of the server ends.
pub struct Ending {
    /// Set before the signal is sent.
    begun: OnceLock<Instant>,
    /// Whether the server finishes what it has begun: then what it has not answered has had no effect.
    in_order: bool,
}

impl Ending {
    pub fn by_kill() -> Self {
        Self { begun: OnceLock::new(), in_order: false }
    }

    pub fn in_order() -> Self {
        Self { begun: OnceLock::new(), in_order: true }
    }

    pub fn begin(&self) {
        self.begun.set(Instant::now()).expect("one end");
    }

    fn has_begun(&self) -> bool {
        self.begun.get().is_some()
    }

    /// Whether the server should have ended long ago.
    fn is_overdue(&self) -> bool {
        self.begun.get().is_some_and(|begun| begun.elapsed() > SOON)
    }
}

/// What the clients of one run of the server share.
pub struct Run<'a> {
    http: SocketAddr,
    api: SocketAddr,
    pub ending: Ending,
    outbox: &'a Mutex<Outbox>,
    counts: &'a Counts,
}

impl<'a> Run<'a> {
    pub fn new(server: &Server, ending: Ending, outbox: &'a Mutex<Outbox>, counts: &'a Counts) -> Self {
        Self { http: server.http, api: server.api, ending, outbox, counts }
    }

    /// Has one client work until the run ends.
    pub fn work(&self, client: &mut Client) {
        let mut session = Session {
            run: self,
            http: Line { to: self.http, connection: None },
            api: Line { to: self.api, connection: None },
            first_deliveries: HashMap::new(),
        };
        while session.act(client).is_ok() && !self.ending.is_overdue() {}
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().expect("the outbox")
    }
}

/// The server has ended, as it may by now.
struct Over;

struct Line {
    to: SocketAddr,
    connection: Option<Connection>,
}

/// How far a request has certainly progressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Nothing,
    /// It was sent, whole, before the end had begun.
    Sent,
    /// The server had begun it before the end had begun, or has begun its answer.
    InHand,
}

impl Line {
    /// Makes one request. Of the answer's body, `part` is read; where that is not all, the connection is given up.
    #[track_caller]
    fn exchange(&mut self, run: &Run<'_>, request: &Request<'_>) -> Result<Response, Over> {
        let ending = &run.ending;
        let mut progress = Progress::Nothing;
        let answered = self.try_exchange(ending, request, &mut progress);
        match answered {
            Ok(answer) if answer.status == 503 && ending.in_order && progress == Progress::Nothing => Err(Over),
            Ok(answer) => Ok(answer),
            Err(error) => {
                let Request { method, path, .. } = request;
                let is_owed = ending.in_order && progress >= Progress::Sent;
                assert!(ending.has_begun() && !is_owed, "{method} {path}, {progress:?}: no answer: {error}");
                Err(Over)
            }
        }
    }

    fn try_exchange(
        &mut self,
        ending: &Ending,
        &Request { method, path, content_type, body, announced, part }: &Request<'_>,
        progress: &mut Progress,
    ) -> io::Result<Response> {
        let mut reach = |reached, certain| *progress = if certain { reached } else { *progress };
        let mut connection = self.connection.take().map_or_else(|| Connection::try_open(self.to), Ok)?;
        let headers = [("Content-Type", content_type)];
        if announced {
            connection.try_announce(method, path, &headers, body.len())?;
            reach(Progress::InHand, !ending.has_begun());
            connection.try_send(body)?;
        } else {
            connection.try_send_request(method, path, &headers, body)?;
            reach(Progress::Sent, !ending.has_begun());
        }
        let mut answer = connection.try_read_head()?;
        if answer.status != 503 {
            reach(Progress::InHand, true);
        }
        if let Some(part) = part {
            connection.try_read_exact((answer.content_length() as f64 * part) as usize)?;
            return Ok(answer);
        }
        connection.try_read_body(&mut answer)?;
        if answer.header("connection") != Some("close") {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    content_type: &'a str,
    body: &'a [u8],
    /// Whether the server is asked before the body is sent.
    announced: bool,
    /// How much of the answer is read before the client hangs up.
    part: Option<f64>,
}

impl<'a> Request<'a> {
    fn new(method: &'a str, path: &'a str) -> Self {
        Self { method, path, content_type: "", body: b"", announced: false, part: None }
    }

    fn post(path: &'a str, content_type: &'a str, body: &'a [u8], announced: bool) -> Self {
        Self { content_type, body, announced, ..Self::new("POST", path) }
    }
}

struct Session<'a> {
    run: &'a Run<'a>,
    http: Line,
    api: Line,
    /// The last frame of each client that was offered for the first time.
    first_deliveries: HashMap<usize, u64>,
}

impl Session<'_> {
    fn act(&mut self, client: &mut Client) -> Result<(), Over> {
        let lowest = usize::from(!client.rng.random_ratio(1, 100));
        let slot = client.rng.random_range(lowest..SLOTS);
        match client.rng.random_range(0..100) {
            0..25 => self.add(client, slot),
            25..45 if client.slots[slot].is_filled() => self.fetch(client, slot),
            45..50 if client.slots[slot].is_filled() => self.hang_up(client, slot),
            50..75 if self.run.outbox().waiting() < MANY_WAITING => self.post(client),
            50..100 => self.take(client),
            _ => Ok(()),
        }
    }

    fn add(&mut self, client: &mut Client, slot: usize) -> Result<(), Over> {
        let version = client.slots[slot].next_version();
        let label = Label { client: client.number, number: slot as u64, version, len: random_len(&mut client.rng) };
        let data = json!({ "BUFFER_UUID": format!("uuid-{}-{slot}", client.number), "BUFFER_MSG": label.text() });
        let (content_type, body) = encode(&json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": data }), client.rng.random());
        let path = "/CommunicationInterface/AddBufferMsg";
        let request = Request::post(path, content_type, &body, client.rng.random_ratio(1, 4));
        client.slots[slot].adding(label);
        let Ok(answer) = self.api.exchange(self.run, &request) else {
            if self.run.ending.in_order {
                client.slots[slot].not_added(label);
            }
            return Err(Over);
        };
        assert_eq!((answer.status, &answer.body[..]), (200, &br#"{"STATUS":"SUCCESS"}"#[..]), "{answer:?}");
        client.slots[slot].added(label, self.run.counts);
        self.run.counts.add("KiB acknowledged", label.len as u64 >> 10);
        Ok(())
    }

    fn fetch(&mut self, client: &mut Client, slot: usize) -> Result<(), Over> {
        let path = client.path(slot);
        let request = Request::new("GET", &path);
        let Ok(answer) = self.http.exchange(self.run, &request) else {
            if !self.run.ending.in_order {
                client.slots[slot].fetch_broke_off();
            }
            return Err(Over);
        };
        assert_eq!(answer.status, 200, "an acknowledged message is lost: {answer:?}, {:?}", client.slots[slot]);
        client.slots[slot].fetched(Fetched::of(&answer.body), self.run.counts);
        if client.rng.random_ratio(1, 4) {
            let again = self.http.exchange(self.run, &request)?;
            assert_eq!(again.status, 400, "delivered twice without a restart between: {again:?}");
        }
        Ok(())
    }

    /// Begins to fetch and hangs up somewhere in the middle.
    fn hang_up(&mut self, client: &mut Client, slot: usize) -> Result<(), Over> {
        let path = client.path(slot);
        let request = Request { part: Some(client.rng.random()), ..Request::new("GET", &path) };
        client.slots[slot].fetch_broke_off();
        let head = self.http.exchange(self.run, &request)?;
        assert_eq!(head.status, 200, "an acknowledged message is lost: {head:?}, {:?}", client.slots[slot]);
        self.run.counts.add("hang-ups", 1);
        Ok(())
    }

    fn post(&mut self, client: &mut Client) -> Result<(), Over> {
        client.frames += 1;
        let (number, len) = (client.frames, random_len(&mut client.rng));
        let label = Label { client: client.number, number, version: 0, len };
        let kind = if client.rng.random_ratio(1, 5) { Kind::Completed } else { Kind::Frame };
        let (content_type, body) = encode(&posted(kind, label), client.rng.random());
        let request = Request::post("/", content_type, &body, client.rng.random_ratio(1, 4));
        self.run.outbox().posting(kind, label);
        let Ok(answer) = self.http.exchange(self.run, &request) else {
            if self.run.ending.in_order {
                self.run.outbox().not_posted(label);
            }
            return Err(Over);
        };
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["DATA"], "RECEIVED", "{answer:?}");
        self.run.outbox().posted(label, self.run.counts);
        self.run.counts.add("KiB acknowledged", label.len as u64 >> 10);
        Ok(())
    }

    fn take(&mut self, client: &mut Client) -> Result<(), Over> {
        let asked_at = self.run.outbox().tick();
        let request = Request::new("GET", "/UserManager/NextMessage?wait=0.02&lease=0.2");
        let answer = self.api.exchange(self.run, &request)?;
        if answer.status == 204 {
            return Ok(());
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let taken = Taken::of(&answer);
        self.run.outbox().taken(&taken, asked_at, self.run.counts);
        let label = taken.label;
        if taken.delivery_count == 1 {
            let before = self.first_deliveries.insert(label.client, label.number);
            assert!(before < Some(label.number), "out of order: {label:?} after {before:?}");
        }
        let is_kept = label.number.is_multiple_of(KEPT_FRAMES) && label.number + KEPT_FRAMES * 4 > client.frames;
        if is_kept || client.rng.random_ratio(1, 10) { Ok(()) } else { self.delete(&taken) }
    }

    fn delete(&mut self, taken: &Taken) -> Result<(), Over> {
        self.run.outbox().deleting(taken.label);
        let path = format!("/UserManager/Messages/{}", taken.id);
        let Ok(answer) = self.api.exchange(self.run, &Request::new("DELETE", &path)) else {
            if self.run.ending.in_order {
                self.run.outbox().not_deleted(taken.label);
            }
            return Err(Over);
        };
        match answer.status {
            204 => self.run.outbox().deleted(taken.label, self.run.counts),
            404 => self.run.outbox().already_deleted(taken.label),
            _ => panic!("{answer:?}"),
        }
        Ok(())
    }
}
