//! Backups of a server at work: what was acknowledged before a backup began, and not taken away since, is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::backup::back_up;
use crate::harness::{Connection, Response, SOON, Server, Setup, eventually, files_below, holds, request};

/// How many clients there are in each direction.
const CLIENTS: usize = 2;

/// How many messages of each client are held at the same time.
const HELD: usize = 12;

/// How many backups are made.
const BACKUPS: usize = 2;

/// More connections than this machine may have open would be a warning.
const FEW_CONNECTIONS: [&str; 2] = ["--max-connections", "100"];

const PICKLE: [(&str, &str); 1] = [("Content-Type", "application/octet-stream")];

fn pickle(value: &Value) -> Vec<u8> {
    serde_pickle::to_vec(value, serde_pickle::SerOptions::new()).expect("it has a pickle")
}

/// What the clients know, by the names of their messages.
#[derive(Default)]
struct Known {
    acknowledged: BTreeSet<String>,
    /// Somebody has begun to take them.
    taken: BTreeSet<String>,
}

/// The text of a message: one in eight is stored in a file of its own.
fn text(name: &str) -> String {
    let number: usize = name.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a number");
    let len = if number % 8 == 7 { 1_200_000 } else { 100_000 + number * 997 % 100_000 };
    let part = format!("<{name}>");
    part.repeat(len / part.len())
}

/// Whether an answer has the text of a message, from its first byte to its last.
fn has_text(answer: &Response, name: &str) -> bool {
    memchr::memmem::find(&answer.body, text(name).as_bytes()).is_some()
}

/// The name of the frame in an answer.
fn name_in(answer: &Response) -> String {
    let text = &answer.body[memchr::memmem::find(&answer.body, b"<frame-").expect("a text") + 1..];
    String::from_utf8_lossy(&text[..memchr::memchr(b'>', text).expect("a text")]).into_owned()
}

struct Load<'a> {
    server: &'a Server,
    is_over: AtomicBool,
    for_workers: Mutex<Known>,
    for_user_manager: Mutex<Known>,
}

impl Load<'_> {
    /// Leaves messages for workers, and fetches them.
    fn leave(&self, client: usize) {
        let (http, api) = (self.server.http, self.server.api);
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let name = format!("message-{client}-{number}");
            let order = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": { "BUFFER_UUID": name, "BUFFER_MSG": text(&name) } });
            let path = "/CommunicationInterface/AddBufferMsg";
            let answer = request(api, "POST", path, &PICKLE, &pickle(&order));
            assert_eq!(answer.status, 200, "{answer:?}");
            self.for_workers.lock().expect("not poisoned").acknowledged.insert(name);
            if let Some(old) = (number as usize).checked_sub(HELD) {
                let name = format!("message-{client}-{old}");
                self.for_workers.lock().expect("not poisoned").taken.insert(name.clone());
                let answer = request(http, "GET", &format!("/?bufferUUID={name}"), &[], b"");
                assert!(answer.status == 200 && has_text(&answer, &name), "{}", answer.status);
            }
        }
    }

    /// Posts frames, takes them for the user manager, and deletes them.
    fn post(&self, client: usize) {
        let (http, api) = (self.server.http, self.server.api);
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let name = format!("frame-{client}-{number}");
            let message = json!({ "USER_ID": "me", "MAIN_DATA": { "TYPE": "FRAME_RENDERED", "DATA": text(&name) } });
            let answer = request(http, "POST", "/", &PICKLE, &pickle(&message));
            assert_eq!(answer.status, 200, "{answer:?}");
            self.for_user_manager.lock().expect("not poisoned").acknowledged.insert(name);
            if number >= HELD {
                let answer = request(api, "GET", "/UserManager/NextMessage", &[], b"");
                let name = name_in(&answer);
                assert!(has_text(&answer, &name), "{name}");
                self.for_user_manager.lock().expect("not poisoned").taken.insert(name);
                let id = answer.header("message-id").expect("an id");
                let deleted = request(api, "DELETE", &format!("/UserManager/Messages/{id}"), &[], b"");
                assert_eq!(deleted.status, 204, "{deleted:?}");
            }
        }
    }

    fn acknowledged(&self) -> [BTreeSet<String>; 2] {
        [&self.for_workers, &self.for_user_manager]
            .map(|known| known.lock().expect("not poisoned").acknowledged.clone())
    }

    /// The names that a copy must have, of those that were acknowledged before it was begun.
    fn owed(&self, acknowledged: [BTreeSet<String>; 2]) -> [BTreeSet<String>; 2] {
        let [workers, manager] = acknowledged;
        let owed = |known: &Mutex<Known>, names: BTreeSet<String>| &names - &known.lock().expect("not poisoned").taken;
        [owed(&self.for_workers, workers), owed(&self.for_user_manager, manager)]
    }
}

/// The numbers of a store's segments.
fn segments(server: &Server, store: &str) -> BTreeSet<u32> {
    let files = files_below(&server.setup().data_dir().join(store));
    files.iter().filter_map(|(path, _)| path.file_stem()?.to_str()?.parse().ok()).collect()
}

/// What a copy has for the user manager.
fn frames(copy: &Server) -> BTreeMap<String, bool> {
    let mut api = Connection::open(copy.api);
    let next = || api.request("GET", "/UserManager/NextMessage", &[], b"");
    let taken = std::iter::repeat_with(next).take_while(|answer| answer.status == 200);
    taken.map(|answer| (name_in(&answer), has_text(&answer, &name_in(&answer)))).collect()
}

#[test]
fn everything_that_was_acknowledged_before_a_backup_of_a_busy_server_is_in_it() {
    let server = Server::with(&FEW_CONNECTIONS);
    let load = Load {
        server: &server,
        is_over: AtomicBool::new(false),
        for_workers: Mutex::default(),
        for_user_manager: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let load = &load;
            scope.spawn(move || load.leave(client));
            scope.spawn(move || load.post(client));
        }
        // also if an assertion fails
        let _end = OnDrop(|| load.is_over.store(true, Ordering::Relaxed));
        let compacted = || ["buffer", "outbox"].map(|store| segments(&server, store).first().copied().unwrap_or(0));
        let deadline = 4 * SOON;
        eventually("compaction works", deadline, || holds(compacted().iter().any(|first| *first > 1), compacted()));
        for number in 0..BACKUPS {
            let first = compacted();
            let acknowledged = load.acknowledged();
            let target = server.setup().path(&format!("backup-{number}"));
            let ended = back_up(server.setup(), &target);
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
            let [messages, owed_frames] = load.owed(acknowledged);
            assert!(!messages.is_empty() || !owed_frames.is_empty());
            let setup = Setup::default().args(["--data-dir", target.to_str().expect("UTF-8")]).args(FEW_CONNECTIONS);
            let copy = setup.start();
            assert!(!copy.log().contains(" WARN "), "{}", copy.log());
            let mut http = Connection::open(copy.http);
            for name in messages {
                let answer = http.request("GET", &format!("/?bufferUUID={name}"), &[], b"");
                assert!(answer.status == 200 && has_text(&answer, &name), "{name}: {}", answer.status);
            }
            let frames = frames(&copy);
            assert!(frames.values().all(|is_whole| *is_whole), "{frames:?}");
            let lost: Vec<_> = owed_frames.iter().filter(|name| !frames.contains_key(*name)).collect();
            assert!(lost.is_empty(), "{lost:?}");
            let moved = || holds(compacted().iter().zip(&first).any(|(now, then)| now > then), compacted());
            eventually("compaction goes on", deadline, moved);
        }
    });
}

/// Calls a function when it is dropped.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
