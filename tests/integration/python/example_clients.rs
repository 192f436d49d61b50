//! The example clients against a server as it is deployed: TLS and tokens on both sides.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::harness::{Ca, Ended, Program, Proxy, Server, Setup, example, python};

const WORKER: &str = "worker-token-0123456789";
const SERVICE: &str = "service-token-0123456789";
const WRONG: &str = "wrong-token-0123456789";
const UUID: &str = "0b5e9a52-0000-4000-8000-000000000001";

#[derive(Clone, Copy, Debug)]
pub enum Worker {
    Rust,
    Python,
}

/// Makes a test of each function that takes a [`Worker`], for both of them.
macro_rules! for_each_worker {
    ($($test:ident),* $(,)?) => {
        crate::harness::tests_with!(rust, crate::python::example_clients::Worker::Rust, $($test),*);
        crate::harness::tests_with!(python, crate::python::example_clients::Worker::Python, $($test),*);
    };
}
pub(crate) use for_each_worker;

impl Worker {
    pub fn command(self) -> Command {
        let mut command = match self {
            Self::Rust => example("worker"),
            Self::Python => {
                let mut command = Command::new(python());
                command.args(["-B", "-m", "user_http_client", "worker"]);
                command.env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/src"));
                command
            }
        };
        command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
        command
    }
}

/// A server with TLS and tokens on both sides, whose API requires client certificates. The worker's token is
/// bound to anna.
struct Guarded {
    server: Server,
    ca: Ca,
    clients: Ca,
}

impl Guarded {
    fn start() -> Self {
        let (ca, clients) = (Ca::new(), Ca::new());
        let setup = Setup::default();
        for (name, text) in [
            ("worker-tokens", format!("{WORKER} anna\n")),
            ("api-tokens", format!("{SERVICE}\n")),
            ("worker.token", format!("\n  {WORKER}\n")),
            ("service.token", format!("{SERVICE}\n")),
            ("wrong.token", format!("{WRONG}\n")),
        ] {
            fs::write(setup.path(name), text).expect("writable");
        }
        let [cert, key] = ca.issue_files("server");
        let [worker_tokens, api_tokens] = ["worker-tokens", "api-tokens"].map(|name| shown(&setup.path(name)));
        let args = ["--http-tls-cert", &cert, "--http-tls-key", &key, "--worker-token-file", &worker_tokens];
        let setup = setup.args(args).args(["--api-tls-cert", &cert, "--api-tls-key", &key]);
        let setup = setup.args(["--api-client-ca", &shown(&clients.path()), "--api-token-file", &api_tokens]);
        Self { server: setup.start(), ca, clients }
    }

    fn path(&self, name: &str) -> String {
        shown(&self.server.setup().path(name))
    }

    /// Images of frames 1 and 2 for a worker that does not render.
    fn images(&self, len: usize) -> String {
        let folder = self.server.setup().path("images");
        fs::create_dir(&folder).expect("a folder");
        for frame in [1, 2] {
            fs::write(folder.join(format!("frame_000{frame}.png")), pattern(len + 8 * frame)).expect("an image");
        }
        shown(&folder)
    }

    /// A worker for [`UUID`], with the token in a file.
    fn worker(&self, worker: Worker, url: &str, token_file: &str, images: &str) -> Command {
        let mut command = worker.command();
        command.args([UUID, "--server", url, "--images", images, "--ca-file", &shown(&self.ca.path())]);
        command.args(["--token-file", &self.path(token_file), "--work-dir", &self.path("work")]);
        command
    }

    /// The communication interface or the user manager, with the token in a file.
    fn service(&self, name: &str, token_file: &str) -> Command {
        let [cert, key] = self.clients.issue_files("client");
        let mut command = example(name);
        command.args(["--api", &self.server.api_url("/"), "--ca-file", &shown(&self.ca.path())]);
        command.args(["--token-file", &self.path(token_file), "--client-cert", &cert, "--client-key", &key]);
        command
    }

    /// Leaves a job of frames 1 and 2 under [`UUID`].
    #[track_caller]
    fn leave(&self, blend: &[u8]) {
        self.server.blend_file("scene.blend", blend);
        let mut command = self.service("communication_interface", "service.token");
        let ended = run(command.args(["--blend", "scene.blend", "--frames", "1-2", "--uuid", UUID]));
        assert_eq!((ended.code, ended.stdout.trim()), (Some(0), UUID), "{ended:?}");
    }
}

/// Where a worker keeps the message of [`UUID`].
fn kept_message(work_dir: &str) -> PathBuf {
    Path::new(work_dir).join(UUID).join("message.pickle")
}

pub fn shown(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// Bytes that depend on their offset.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len.div_ceil(8) as u64).flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

pub fn start(command: &mut Command) -> Program {
    for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy).env_remove(proxy.to_uppercase());
    }
    Program::start(command)
}

/// Runs a client to its end. Checks that it does not print a token.
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    let ended = start(command).end();
    for token in [WORKER, SERVICE, WRONG] {
        assert!(!ended.stderr.contains(token) && !ended.stdout.contains(token), "{ended:?}");
    }
    ended
}

/// Checks that a client has failed at its first attempt, with all of these texts.
#[track_caller]
fn assert_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(!ended.stderr.contains("trying again"), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "no {part:?}: {ended:?}");
    }
}

/// A whole job: from the communication interface through a worker to the user manager.
#[track_caller]
fn render_a_job(worker: Worker) {
    let guarded = Guarded::start();
    guarded.leave(b"a scene");
    let (out, images) = (guarded.path("out"), guarded.images(3 << 20));
    let mut manager = guarded.service("user_manager", "service.token");
    let manager = start(manager.args(["--out", &out, "--until-completed", "--job", UUID]));
    let mut command = guarded.worker(worker, &guarded.server.worker_url(), "worker.token", &images);
    let ended = run(command.args(["--user-id", "anna"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = manager.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for name in ["frame_0001.png", "frame_0002.png"] {
        let received = fs::read(Path::new(&out).join(UUID).join(name)).expect("an image");
        assert!(received == fs::read(Path::new(&images).join(name)).expect("an image"), "{name}: {ended:?}");
    }
    let log = guarded.server.log();
    assert!(![WORKER, SERVICE].iter().any(|token| log.contains(token)), "{log}");
}

#[test]
fn a_job_goes_from_one_example_to_the_next_over_tls_with_tokens() {
    render_a_job(Worker::Rust);
}

#[test]
fn a_job_goes_through_the_python_worker_over_tls_with_tokens() {
    render_a_job(Worker::Python);
}

/// Every connection is cut after 72 of 128 MiB: a worker that began anew would never come to the end. What is left is
/// more than what sockets and proxy hold, so that the server does not take the message for delivered.
#[track_caller]
fn resume_a_transfer(worker: Worker) {
    let guarded = Guarded::start();
    let blend = pattern(128 << 20);
    guarded.leave(&blend);
    let images = guarded.images(1000);
    let proxy = Proxy::to_https(guarded.server.http);
    proxy.cut_each_after([72 << 20; 20]);
    let mut command = guarded.worker(worker, proxy.url(), "worker.token", &images);
    let ended = run(command.args(["--user-id", "anna", "--no-cache"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // Beside these, the server may say that it has not yet seen the end of the first connection.
    let cut = |line: &&str| line.contains("trying again") && !line.contains("400 ");
    assert_eq!(ended.stderr.lines().filter(cut).count(), 1, "{ended:?}");
    let message = fs::read(kept_message(&guarded.path("work"))).expect("the message");
    let at = message.windows(16).position(|bytes| bytes == &blend[..16]).expect("the scene");
    assert!(message[at..at + blend.len()] == blend, "the scene is another");
}

#[test]
fn the_worker_resumes_a_transfer_over_tls() {
    resume_a_transfer(Worker::Rust);
}

#[test]
fn the_python_worker_resumes_a_transfer_over_tls() {
    resume_a_transfer(Worker::Python);
}

/// With a token that is wrong, none, and one of another user.
#[track_caller]
fn refuse_a_worker(worker: Worker) {
    let guarded = Guarded::start();
    guarded.leave(b"a scene");
    let (images, url) = (guarded.images(20 << 20), guarded.server.worker_url());
    let wrong = guarded.path("wrong.token");
    let expected = ["401", "a valid token is needed", &wrong, "not valid there", "--token-file FILE"];
    assert_refused(&run(&mut guarded.worker(worker, &url, "wrong.token", &images)), &expected);

    let mut without = worker.command();
    without.args([UUID, "--server", &url, "--images", &images, "--ca-file", &shown(&guarded.ca.path())]);
    assert_refused(&run(&mut without), &["401", "a valid token is needed", "give a token with --token-file FILE"]);

    let mut berta = guarded.worker(worker, &url, "worker.token", &images);
    let expected = ["403", "berta", &guarded.path("worker.token"), "does not allow it", "--user-id ID"];
    assert_refused(&run(berta.args(["--user-id", "berta"])), &expected);

    // Fetched before, so that a frame is the first that it sends: the server hangs up before it has read all of it.
    assert!(kept_message(&guarded.path("work")).exists());
    let ended = run(&mut guarded.worker(worker, &url, "wrong.token", &images));
    assert_refused(&ended, &["401", &wrong, "not valid there", "--token-file FILE"]);
}

#[test]
fn a_worker_whose_token_is_refused_says_what_would_be_right() {
    refuse_a_worker(Worker::Rust);
}

#[test]
fn a_python_worker_whose_token_is_refused_says_what_would_be_right() {
    refuse_a_worker(Worker::Python);
}

#[test]
fn a_service_whose_token_or_certificate_is_refused_says_what_would_be_right() {
    let guarded = Guarded::start();
    let message = guarded.server.setup().path("message.json");
    fs::write(&message, "{}").expect("writable");
    let leave = ["--message", &shown(&message)];
    let out = guarded.path("out");
    for (name, args) in [("communication_interface", leave), ("user_manager", ["--out", &out])] {
        let ended = run(guarded.service(name, "wrong.token").args(args));
        let wrong = guarded.path("wrong.token");
        assert_refused(&ended, &["401", "a valid token is needed", &wrong, "not valid there", "--token-file FILE"]);

        let mut without = example(name);
        without.args(["--api", &guarded.server.api_url("/"), "--ca-file", &shown(&guarded.ca.path())]);
        let ended = run(without.args(["--token-file", &guarded.path("service.token")]).args(args));
        // A client that is still sending when the server disconnects may see only that.
        let expected: &[&str] =
            if name == "user_manager" { &["requires a client certificate", "--client-cert FILE"] } else { &[] };
        assert_refused(&ended, expected);
    }
}

#[test]
fn a_refusal_is_final_whatever_it_says_of_later() {
    let images = tempfile::tempdir().expect("a folder");
    for worker in [Worker::Rust, Worker::Python] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the worker");
            let answer =
                "HTTP/1.1 403 Forbidden\r\nRetry-After: 1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nnever";
            stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(answer.as_bytes())).expect("a request");
        });
        let ended = run(worker.command().args([UUID, "--server", &url, "--images", &shown(images.path())]));
        assert_refused(&ended, &["403", "never", "--token-file FILE"]);
    }
}

#[test]
fn a_server_whose_certificate_is_of_no_trusted_ca_gets_nothing() {
    let guarded = Guarded::start();
    let (images, url) = (guarded.images(1000), guarded.server.worker_url());
    let stranger = Ca::new();
    for worker in [Worker::Rust, Worker::Python] {
        let mut command = worker.command();
        command.args([UUID, "--server", &url, "--images", &images, "--ca-file", &shown(&stranger.path())]);
        assert_refused(&run(&mut command), &["certificate", "--ca-file FILE"]);
    }
}

#[test]
fn without_a_ca_file_the_systems_cas_are_trusted() {
    let guarded = Guarded::start();
    let (images, url) = (guarded.images(1000), guarded.server.worker_url());
    let stranger = Ca::new();
    for (system, expected) in [(&guarded.ca, "401 Unauthorized"), (&stranger, "that the system trusts")] {
        let mut command = example("worker");
        command.args([UUID, "--server", &url, "--images", &images]).env("SSL_CERT_FILE", system.path());
        assert_refused(&run(command.env_remove("SSL_CERT_DIR")), &[expected]);
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named_before_anything_is_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let bad = shown(&folder.path().join("bad"));
    fs::write(&bad, "two words").expect("writable");
    for worker in [Worker::Rust, Worker::Python] {
        for (flag, file) in [("--token-file", bad.as_str()), ("--ca-file", &bad), ("--token-file", "/nowhere/token")] {
            let mut command = worker.command();
            command.args([UUID, "--server", "https://127.0.0.1:9/", "--images", "/", flag, file]);
            assert_refused(&run(&mut command), &[file]);
        }
    }
    let ca = Ca::new();
    let ([cert, _], [_, key]) = (ca.issue_files("one"), ca.issue_files("another"));
    let args = ["--api", "https://127.0.0.1:9/", "--ca-file", &shown(&ca.path()), "--out", &shown(folder.path())];
    let ended = run(example("user_manager").args(args).args(["--client-cert", &cert, "--client-key", &key]));
    assert_refused(&ended, &[&cert, &key, "cannot be used together"]);
}
