//! The server as a child process, on ports and in folders of its own.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use super::process::{Mode, Process};
use super::setup::{Host, Setup};
use super::{SOON, eventually, request};

/// `O_NONBLOCK` of Linux.
const O_NONBLOCK: i32 = 0o4000;

/// The scheme and the path prefix in the URLs of a server.
#[derive(Default)]
struct Base {
    scheme: String,
    path: String,
}

/// A server that runs, or has ended and can be restarted in the same folders.
pub struct Server {
    setup: Setup,
    process: Process,
    worker_base: Base,
    api_base: Base,
    /// The address for workers.
    pub http: SocketAddr,
    /// The address for the farm's services.
    pub api: SocketAddr,
}

impl Server {
    /// Starts a server without waiting; its addresses are known once it is ready.
    pub fn launch(setup: Setup) -> Self {
        let process = setup.spawn();
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let [worker_base, api_base] = [(); 2].map(|()| Base::default());
        Self { setup, process, worker_base, api_base, http: unknown, api: unknown }
    }

    /// Starts a server without a broker.
    pub fn start() -> Self {
        Setup::default().start()
    }

    /// Starts a server with more arguments.
    pub fn with(args: &[&str]) -> Self {
        Setup::default().args(args).start()
    }

    /// The setup that it was started with.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The URL of the workers' server.
    pub fn worker_url(&self) -> String {
        format!("{}://{}{}", self.worker_base.scheme, self.http, self.worker_path("/"))
    }

    /// The path of a request to the workers' routes.
    pub fn worker_path(&self, path: &str) -> String {
        format!("{}{path}", self.worker_base.path)
    }

    /// A URL of the API server.
    pub fn api_url(&self, path: &str) -> String {
        format!("{}://{}{}", self.api_base.scheme, self.api, self.api_path(path))
    }

    /// The path of a request to the routes of the farm's services.
    pub fn api_path(&self, path: &str) -> String {
        format!("{}{path}", self.api_base.path)
    }

    /// Writes a file into the first blend root.
    pub fn blend_file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.setup.blend_root().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the file's folder");
        fs::write(&path, content).expect("a .blend file");
        path
    }

    /// Creates a sparse file of zeros in the first blend root.
    pub fn sparse_blend_file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.blend_file(name, b"");
        let file = fs::OpenOptions::new().write(true).open(&path).expect("a .blend file");
        file.set_len(len).expect("a sparse file");
        path
    }

    /// The log since the start.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until the server has logged a line that contains `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        eventually(&format!("a log line with {text:?}"), SOON, || super::holds(self.log().contains(text), self.log()));
    }

    /// Stops reading the log, and fills its pipe.
    #[track_caller]
    pub fn stop_reading_log(&self) {
        self.process.read_log(Mode::Paused);
        let pipe = format!("/proc/{}/fd/2", self.pid());
        let mut pipe = fs::OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(pipe).expect("the log's pipe");
        // the reader may be in the middle of a line
        eventually("the log's pipe is full", SOON, || {
            let paused = self.process.log_is_paused();
            while pipe.write(b"a line to fill the pipe\n").is_ok() {}
            super::holds(paused, "its reader reads")
        });
    }

    /// Reads the log again.
    pub fn read_log_again(&self) {
        self.process.read_log(Mode::On);
    }

    /// Closes the log's pipe at the next line. Returns whether it is already closed.
    pub fn close_log(&self) -> bool {
        self.process.read_log(Mode::Closed);
        self.process.log_is_closed()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.exit_status().is_none()
    }

    /// The process's resident memory.
    pub fn rss_kib(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most resident memory that the process ever had.
    pub fn peak_rss_kib(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a live process");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a size of the process");
        line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.expect("kill").success(), "SIG{name} could not be sent");
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn wait_for_exit(&mut self, deadline: Duration) -> ExitStatus {
        let process = &mut self.process;
        let status = eventually("the server's end", deadline, || process.exit_status().ok_or_else(|| process.log()));
        process.finish_log();
        status
    }

    /// Sends SIGTERM and waits for the end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.wait_for_exit(Duration::from_secs(10))
    }

    /// Sends SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Sends SIGTERM, waits for the end, and starts it again: what a service manager does for a restart.
    #[track_caller]
    pub fn replace(&mut self) {
        let status = self.stop();
        assert_eq!(status.code(), Some(0), "{status}; log:\n{}", self.log());
        self.restart();
    }

    /// Starts it again in the same folders, on new ports, after [`Server::stop`] or [`Server::kill9`]; the other
    /// program if there is one.
    pub fn restart(&mut self) {
        assert!(!self.is_running(), "stop the server before it is restarted");
        self.setup.change_program();
        self.process = self.setup.spawn();
        self.wait_until_ready();
    }

    /// Waits until it answers.
    pub fn wait_until_ready(&mut self) {
        let address = |server: &mut Self, name: &str| {
            let prefix = format!("{name} listening on ");
            eventually(&format!("{name:?} in the log"), SOON, || {
                assert!(server.is_running(), "the server ended at once; its log:\n{}", server.log());
                let log = server.log();
                let rest = log.split_once(&prefix).map(|(_, rest)| rest.to_owned()).ok_or(log)?;
                // in a line of JSON, a quote follows
                let url = rest.split(|char: char| char.is_whitespace() || char == '"').next();
                let url = url.unwrap_or_default().to_owned();
                let (scheme, rest) = url.split_once("://").ok_or(rest)?;
                let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let base = Base { scheme: scheme.to_owned(), path: path.to_owned() };
                address.parse().map(|address| (base, address)).map_err(|_| url.clone())
            })
        };
        let [workers, api] = match self.setup.host() {
            Host::Server => ["worker server", "API server"],
            Host::Embedded => ["worker routes", "API routes"],
        };
        (self.worker_base, self.http) = address(self, workers);
        (self.api_base, self.api) = address(self, api);
        if self.api_base.scheme == "https" {
            // It listens. Whether it answers depends on client certificates, which only the test knows.
            return;
        }
        eventually("GET /readyz answers 200", SOON, || {
            let answer = request(self.api, "GET", &self.api_path("/readyz"), &[], b"");
            super::holds(answer.status == 200, answer)
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the server, {} ---\n{}", self.pid(), self.log());
        }
    }
}

/// The files in a folder and below, with their sizes; empty if the folder does not exist.
pub fn files_below(folder: &Path) -> Vec<(PathBuf, u64)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("a folder's entry").path());
    paths
        .flat_map(|path| match fs::symlink_metadata(&path) {
            Ok(of) if of.is_dir() => files_below(&path),
            Ok(of) => vec![(path, of.len())],
            Err(_) => Vec::new(),
        })
        .collect()
}
