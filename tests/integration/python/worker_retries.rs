//! The example workers with servers that know little, refuse, or lose answers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Peer, SOON, Server, eventually, holds, request};
use crate::python::example_clients::{Worker, for_each_worker, run, start};

/// A request as a stub has read it.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    method: String,
    path: String,
    /// Names in lower case.
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Asked {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split(' ').map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let len = headers.get("content-length").map_or(0, |len| len.parse().expect("a length"));
        let mut body = vec![0; len];
        reader.read_exact(&mut body).ok()?;
        Some(Self { method, path, headers, body })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// Status, more headers, body.
type Answer = (u16, &'static str, Vec<u8>);

/// A server that answers each request over a connection of its own; `None` hangs up.
struct Stub {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    folder: TempDir,
}

impl Stub {
    fn start(answer: impl Fn(&Asked) -> Option<Answer> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&asked);
        // It ends with the process of the test.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let Some(request) = Asked::read(&stream) else { continue };
                let answer = answer(&request);
                all.lock().expect("no panic").push(request);
                let Some((status, headers, body)) = answer else { continue };
                let head = format!(
                    "HTTP/1.1 {status} Status\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                // A client that wants no more hangs up.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("images")).expect("a folder");
        fs::write(folder.path().join("images/frame_0001.png"), "an image").expect("an image");
        Self { url, asked, folder }
    }

    fn command(&self, worker: Worker) -> Command {
        self.command_in(worker, "work")
    }

    fn command_in(&self, worker: Worker, work: &str) -> Command {
        let mut command = worker.command();
        command.args(["job", "--server", &self.url]);
        for (flag, name) in [("--images", "images"), ("--work-dir", work), ("--cache-dir", "cache")] {
            command.arg(flag).arg(self.folder.path().join(name));
        }
        command
    }

    fn message(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("work/job/message.pickle")).expect("the message")
    }

    fn asked(&self, method: &str) -> Vec<Asked> {
        let asked = self.asked.lock().expect("no panic");
        asked.iter().filter(|request| request.method == method).cloned().collect()
    }
}

fn received() -> Option<Answer> {
    Some((200, "Content-Type: application/json\r\n", br#"{"DATA": "RECEIVED", "TIME": 1.0}"#.to_vec()))
}

fn job(peer: &mut Peer, blend: &str) -> Vec<u8> {
    peer.dumps(&format!("{{'TYPE': 'RENDER', 'DATA': {{'BINARY_BLEND_FILE': {blend}, 'FRAMES': [1]}}}}"), 4)
}

fn reference(peer: &mut Peer) -> Vec<u8> {
    let sha256 = "0".repeat(64);
    job(peer, &format!("{{'SHA256': '{sha256}', 'SIZE': 7, 'PATH': '/blends/{sha256}'}}"))
}

/// A server that knows nothing but the oldest calls: it removes a message when it is asked for it. The message comes
/// after three questions for it.
#[track_caller]
fn a_server_of_old_is_served_as_before(worker: Worker) {
    let mut peer = Peer::get();
    let (message, none) = (job(&mut peer, "b'a scene'"), peer.dumps("{'message': 'No Buffer Message'}", 4));
    let (sent, questions) = (message.clone(), AtomicUsize::new(0));
    let stub = Stub::start(move |asked| match asked.method.as_str() {
        "GET" if questions.fetch_add(1, Ordering::Relaxed) == 3 => Some((200, "", sent.clone())),
        "GET" => Some((400, "", none.clone())),
        _ => received(),
    });
    let ended = run(&mut stub.command(worker));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(stub.message() == message, "{ended:?}");
    assert_eq!((stub.asked("GET").len(), stub.asked("POST").len()), (4, 2), "{ended:?}");
}

/// The part of a message that a request asks for, as a server with ranges and one version answers.
fn ranged(asked: &Asked, message: &[u8]) -> Answer {
    let headers = "ETag: \"1\"\r\nPreference-Applied: blend-reference\r\n";
    let Some(range) = asked.header("range") else { return (200, headers, message.to_vec()) };
    let (first, last) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).expect("a range");
    let first: usize = first.parse().expect("a number");
    let end = last.parse().map_or(message.len(), |last: usize| last + 1);
    let headers = format!("{headers}Content-Range: bytes {first}-{}/{}\r\n", end - 1, message.len());
    (206, headers.leak(), message[first..end].to_vec())
}

/// In front of the server there is a proxy that knows only `/`.
#[track_caller]
fn a_message_whose_blend_file_is_not_served_is_fetched_with_the_file_in_it(worker: Worker) {
    let mut peer = Peer::get();
    let (referring, whole) = (reference(&mut peer), job(&mut peer, "b'a scene'"));
    let (none, expected) = (peer.dumps("{'message': 'No Buffer Message'}", 4), whole.clone());
    let taken = AtomicUsize::new(0);
    let stub = Stub::start(move |asked| match (asked.method.as_str(), asked.path.as_str()) {
        ("GET", path) if path.starts_with("/blends") => Some((404, "", b"no such route".to_vec())),
        ("GET", _) if taken.load(Ordering::Relaxed) == 1 => Some((400, "", none.clone())),
        ("GET", _) => {
            let by_reference = asked.header("prefer") == Some("blend-reference");
            let answer = if by_reference { ranged(asked, &referring) } else { (200, "", whole.clone()) };
            // The last byte takes it, whatever came before.
            let is_last = !by_reference || answer.2.last() == Some(&b'.');
            taken.fetch_add(usize::from(is_last), Ordering::Relaxed);
            Some(answer)
        }
        _ => received(),
    });
    let ended = run(&mut stub.command(worker));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(stub.message() == expected, "{ended:?}");
    assert_eq!(stub.asked("POST").len(), 2, "{ended:?}");
}

/// Where the server has handed the message over with the first answer, it is kept for another attempt.
#[track_caller]
fn a_message_that_cannot_be_fetched_again_is_kept(worker: Worker) {
    let mut peer = Peer::get();
    let (referring, none) = (reference(&mut peer), peer.dumps("{'message': 'No Buffer Message'}", 4));
    let (expected, questions) = (referring.clone(), AtomicUsize::new(0));
    let stub = Stub::start(move |asked| match (asked.method.as_str(), asked.path.as_str()) {
        ("GET", path) if path.starts_with("/blends") => Some((404, "", b"no such route".to_vec())),
        ("GET", _) if questions.fetch_add(1, Ordering::Relaxed) > 0 => Some((400, "", none.clone())),
        ("GET", _) => Some((200, "Preference-Applied: blend-reference\r\n", referring.clone())),
        _ => received(),
    });
    for _ in 0..2 {
        let ended = run(&mut stub.command(worker));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("404") && ended.stderr.contains("No Buffer Message"), "{ended:?}");
        assert!(stub.message() == expected, "{ended:?}");
    }
    assert_eq!(stub.asked("POST").len(), 0);
}

#[track_caller]
fn wrong_bytes_are_fetched_three_times_and_never_used(worker: Worker) {
    let referring = reference(&mut Peer::get());
    let stub = Stub::start(move |asked| match asked.path.starts_with("/blends") {
        true => Some((200, "", b"a scene".to_vec())),
        false => Some(ranged(asked, &referring)),
    });
    let ended = run(&mut stub.command(worker));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let (blends, others): (Vec<_>, Vec<_>) =
        stub.asked("GET").into_iter().partition(|asked| asked.path.starts_with("/blends"));
    assert_eq!(blends.len(), 3, "{ended:?}");
    assert!(others.iter().all(|asked| asked.header("range").is_some_and(|range| !range.ends_with('-'))), "{others:?}");
    assert_eq!(fs::read_dir(stub.folder.path().join("cache")).expect("the cache").count(), 0);
}

/// The server takes each message and loses its first answer. Afterwards, the same work directory is worked on again.
#[track_caller]
fn a_post_whose_answer_is_lost_is_repeated_with_the_same_key_and_the_same_bytes(worker: Worker) {
    let message = job(&mut Peer::get(), "b'a scene'");
    let posts = AtomicUsize::new(0);
    let stub = Stub::start(move |asked| match asked.method.as_str() {
        "GET" => Some((200, "", message.clone())),
        _ if posts.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) => None,
        _ => received(),
    });
    for _ in 0..2 {
        let ended = run(&mut stub.command(worker));
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    let posts = stub.asked("POST");
    assert_eq!(posts.len(), 8);
    let identity = |post: &Asked| {
        let header = |name| post.header(name).unwrap_or_else(|| panic!("no {name}: {post:?}")).to_owned();
        (header("idempotency-key"), header("content-digest"), post.body.clone())
    };
    let identities: Vec<_> = posts.iter().map(identity).collect();
    for repeats in [[0, 1, 4, 5], [2, 3, 6, 7]] {
        assert!(repeats.iter().all(|&post| identities[post] == identities[repeats[0]]), "{identities:?}");
    }
    assert_ne!(identities[0].0, identities[2].0);
}

/// A job that another replaces under its UUID: its frames are others, even if their bytes are not.
#[track_caller]
fn another_job_under_the_same_uuid_has_other_keys(worker: Worker) {
    let mut peer = Peer::get();
    let jobs = ["b'a scene'", "b'b scene'"].map(|blend| job(&mut peer, blend));
    let questions = AtomicUsize::new(0);
    let stub = Stub::start(move |asked| match asked.method.as_str() {
        "GET" => Some((200, "", jobs[questions.fetch_add(1, Ordering::Relaxed) % 2].clone())),
        _ => received(),
    });
    for work in ["work-1", "work-2"] {
        let ended = run(&mut stub.command_in(worker, work));
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    let posts = stub.asked("POST");
    assert_eq!(posts[0].body, posts[2].body);
    assert_ne!(posts[0].header("idempotency-key"), posts[2].header("idempotency-key"));
}

/// Its digests are right as well: the gateway checks them.
#[track_caller]
fn a_worker_waits_for_a_message_that_comes_later(worker: Worker) {
    let server = Server::start();
    let images = server.setup().path("images");
    fs::create_dir(&images).expect("a folder");
    fs::write(images.join("frame_0001.png"), "an image").expect("an image");
    let mut command = worker.command();
    command.args(["job", "--server", &server.worker_url(), "--images"]).arg(&images).args(["--wait", "60"]);
    let running = start(&mut command);
    let waiting = || {
        let ready = request(server.api, "GET", &server.api_path("/readyz"), &[], b"").json();
        holds(ready["buffer"]["waiting"] == 1, ready)
    };
    eventually("a waiting worker", SOON, waiting);
    let message = json!({ "TYPE": "RENDER", "DATA": { "FRAMES": [1] } });
    let order = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": { "BUFFER_UUID": "job", "BUFFER_MSG": message } });
    let path = server.api_path("/CommunicationInterface/AddBufferMsg");
    assert_eq!(request(server.api, "POST", &path, &[], order.to_string().as_bytes()).status, 200);
    let ended = running.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("trying again"), "{ended:?}");
}

for_each_worker!(
    a_server_of_old_is_served_as_before,
    a_message_whose_blend_file_is_not_served_is_fetched_with_the_file_in_it,
    a_message_that_cannot_be_fetched_again_is_kept,
    wrong_bytes_are_fetched_three_times_and_never_used,
    a_post_whose_answer_is_lost_is_repeated_with_the_same_key_and_the_same_bytes,
    another_job_under_the_same_uuid_has_other_keys,
    a_worker_waits_for_a_message_that_comes_later,
);
