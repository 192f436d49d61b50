//! The server as a child process, on ports and in folders of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use super::program::without_settings;
use super::{SOON, eventually, example, request};

/// `O_NONBLOCK` of Linux.
const O_NONBLOCK: i32 = 0o4000;

/// The path of another build of the program: each restart of a server changes between the two.
const OTHER_PROGRAM: &str = "TEST_OTHER_PROGRAM";

/// What the gateway runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The program itself.
    Server,
    /// The example of an application that mounts the routes.
    Embedded,
}

/// The folders, arguments and environment of a server.
pub struct Setup {
    host: Host,
    dir: TempDir,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    config: String,
    wrapper: Vec<String>,
    /// The first two descriptors of the wrapper, or of the server; /dev/null if there are fewer.
    descriptors: Vec<OwnedFd>,
    default_blend_root: bool,
    /// The program that runs.
    program: PathBuf,
    /// The one that runs after a restart.
    next_program: PathBuf,
}

impl Default for Setup {
    fn default() -> Self {
        let dir = tempfile::Builder::new().prefix("uhs-").tempdir().expect("a folder for the test");
        let program = PathBuf::from(env!("CARGO_BIN_EXE_user-http-server"));
        let other = std::env::var_os(OTHER_PROGRAM).map(|path| {
            fs::canonicalize(&path).unwrap_or_else(|error| panic!("{OTHER_PROGRAM}={}: {error}", path.display()))
        });
        let setup = Self {
            host: Host::Server,
            dir,
            args: Vec::new(),
            env: BTreeMap::new(),
            config: String::new(),
            wrapper: Vec::new(),
            descriptors: Vec::new(),
            default_blend_root: false,
            next_program: other.unwrap_or_else(|| program.clone()),
            program,
        };
        fs::create_dir(setup.blend_root()).expect("a blend root");
        setup
    }
}

impl Setup {
    /// The data directory is on a disk of its own, of 48 MiB, that ends with the process.
    pub fn on_a_small_disk() -> Self {
        let setup = Self::default();
        let disk = setup.path("disk");
        fs::create_dir(&disk).expect("a mount point");
        let mount = format!("mount -t tmpfs -o size=48m none {} && exec \"$@\"", disk.display());
        let data_dir = disk.join("data");
        setup
            .wrapper(&["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"])
            .args(["--data-dir", data_dir.to_str().expect("UTF-8")])
    }

    /// Runs in this host.
    pub fn on(host: Host) -> Self {
        Self { host, ..Self::default() }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<str>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Writes a configuration file and names it on the command line.
    pub fn config(mut self, text: &str) -> Self {
        self.config = text.to_owned();
        let path = self.path("config.toml");
        fs::write(&path, text).expect("a configuration file");
        self.args(["--config", path.to_str().expect("UTF-8")])
    }

    /// Runs the server through another command, which must finally execute its arguments.
    pub fn wrapper(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Passes open files, at most two, as stdin and stdout.
    pub fn descriptors(mut self, descriptors: Vec<OwnedFd>) -> Self {
        assert!(descriptors.len() <= 2, "stdin and stdout");
        self.descriptors = descriptors;
        self
    }

    /// Passes no `--blend-root`, so that the server uses its default.
    pub fn default_blend_root(mut self) -> Self {
        self.default_blend_root = true;
        self
    }

    /// A path in the test's own folder, which is the server's working directory too.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The first blend root.
    pub fn blend_root(&self) -> PathBuf {
        self.path("blend")
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// Starts the server and waits until it is ready.
    pub fn start(self) -> Server {
        let mut server = self.launch();
        server.wait_until_ready();
        server
    }

    /// Starts a server that must refuse to run; returns its exit status and log.
    pub fn start_refused(self) -> (ExitStatus, String) {
        let mut server = self.launch();
        let status = server.wait_for_exit(SOON);
        (status, server.log())
    }

    /// Starts a server without waiting, for one whose log does not show its addresses.
    pub fn launch(self) -> Server {
        let process = Process::spawn(&self);
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let [worker_base, api_base] = [(); 2].map(|()| Base::default());
        Server { setup: self, process, worker_base, api_base, http: unknown, api: unknown }
    }

    /// The command that starts it.
    pub fn command(&self) -> Command {
        if self.host == Host::Embedded {
            let mut command = example("embedded");
            command.args(["--bind", "127.0.0.1:0", "--data-dir"]).arg(self.data_dir());
            command.arg("--blend-root").arg(self.blend_root()).args(&self.args).current_dir(self.dir.path());
            return command;
        }
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&self.program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
        };
        without_settings(&mut command);
        // A test may set each of these itself: as an argument, in the environment or in the file.
        for (flag, value) in [
            ("--http-bind", "127.0.0.1:0"),
            ("--api-bind", "127.0.0.1:0"),
            ("--data-dir", self.data_dir().to_str().expect("UTF-8")),
            ("--blend-root", self.blend_root().to_str().expect("UTF-8")),
            // longer than a busy machine keeps a test from its next request
            ("--keep-alive", "10m"),
        ] {
            let variable = format!("USER_HTTP_SERVER_{}", flag[2..].replace('-', "_").to_uppercase());
            let given = self.args.iter().any(|arg| arg.split('=').next() == Some(flag))
                || self.env.contains_key(&variable)
                || self.config.lines().any(|line| line.starts_with(&flag[2..]))
                || self.default_blend_root && flag == "--blend-root";
            if !given {
                command.args([flag, value]);
            }
        }
        command.args(&self.args).envs(&self.env).current_dir(self.dir.path());
        command
    }
}

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
        self.process.log.lock().expect("the log").concat()
    }

    /// Waits until the server has logged a line that contains `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        eventually(&format!("a log line with {text:?}"), SOON, || super::holds(self.log().contains(text), self.log()));
    }

    /// Stops reading the log, and fills its pipe.
    #[track_caller]
    pub fn stop_reading_log(&self) {
        let reading = &self.process.reading;
        reading.set(Mode::Paused);
        let pipe = format!("/proc/{}/fd/2", self.pid());
        let mut pipe = fs::OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(pipe).expect("the log's pipe");
        // the reader may be in the middle of a line
        eventually("the log's pipe is full", SOON, || {
            let paused = reading.is_paused();
            while pipe.write(b"a line to fill the pipe\n").is_ok() {}
            super::holds(paused, "its reader reads")
        });
    }

    /// Reads the log again.
    pub fn read_log_again(&self) {
        self.process.reading.set(Mode::On);
    }

    /// Closes the log's pipe at the next line. Returns whether it is already closed.
    pub fn close_log(&self) -> bool {
        self.process.reading.set(Mode::Closed);
        self.process.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.child.try_wait().expect("a child's status").is_none()
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
        let status = eventually("the server's end", deadline, || {
            process
                .child
                .try_wait()
                .expect("a child's status")
                .ok_or_else(|| process.log.lock().expect("the log").concat())
        });
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
        let Setup { program, next_program, .. } = &mut self.setup;
        std::mem::swap(program, next_program);
        self.process = Process::spawn(&self.setup);
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
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
        let [workers, api] = match self.setup.host {
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

struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    reading: Arc<Reading>,
}

/// What the log's reader does before the next line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    On,
    Paused,
    Closed,
}

struct Reading {
    mode: Mutex<Mode>,
    /// The reader waits for another mode.
    paused: AtomicBool,
    changed: Condvar,
}

impl Reading {
    fn set(&self, mode: Mode) {
        *self.mode.lock().expect("the mode") = mode;
        self.changed.notify_all();
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Whether to read another line.
    fn goes_on(&self) -> bool {
        let mode = self.mode.lock().expect("the mode");
        let wait = |mode: &mut Mode| {
            let paused = *mode == Mode::Paused;
            self.paused.store(paused, Ordering::SeqCst);
            paused
        };
        *self.changed.wait_while(mode, wait).expect("the mode") == Mode::On
    }
}

impl Process {
    fn spawn(setup: &Setup) -> Self {
        let mut command = setup.command();
        let mut passed = setup.descriptors.iter().map(|fd| Stdio::from(fd.try_clone().expect("a descriptor")));
        let [stdin, stdout] = [(); 2].map(|()| passed.next().unwrap_or_else(Stdio::null));
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let reading =
            Arc::new(Reading { mode: Mutex::new(Mode::On), paused: AtomicBool::new(false), changed: Condvar::new() });
        let read_on = Arc::clone(&reading);
        let reader = std::thread::spawn(move || {
            let mut line = Vec::new();
            while read_on.goes_on() && matches!(stderr.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                lines.lock().expect("the log").push(String::from_utf8_lossy(&line).into_owned());
                line.clear();
            }
        });
        Self { child, log, reader: Some(reader), reading }
    }

    fn kill(&mut self) {
        // This fails only if the process has already ended.
        let _ = self.child.kill();
        self.child.wait().expect("a child's status");
        self.finish_log();
    }

    /// Reads the log to its end; only for a process that has ended.
    fn finish_log(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.reading.set(Mode::On);
            reader.join().expect("the log's reader");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Bytes that the kernel counts for a process in `/proc/PID/io`: `rchar`, `write_bytes` and so on.
pub fn io_bytes(pid: u32, name: &str) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("a live process");
    let value = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name}: {io}"))
}

/// Makes a test with the server and one with the embedded gateway of each function, which takes the [`Host`].
macro_rules! for_each_host {
    ($($test:ident),* $(,)?) => {
        crate::harness::tests_with!(in_the_server, crate::harness::Host::Server, $($test),*);
        crate::harness::tests_with!(embedded, crate::harness::Host::Embedded, $($test),*);
    };
}
pub(crate) use for_each_host;

/// The start of a [`Setup::wrapper`] that mounts file systems, visible to the server alone.
pub fn new_mount_namespace() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() {
        &["unshare", "--mount"]
    } else {
        &["unshare", "--map-root-user", "--mount"]
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
