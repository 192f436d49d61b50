//! A private PostgreSQL for tests, with its own port and folder. It ends with the process that started it.
//!
//! Included by path from the test binaries of both packages, so it needs nothing but the standard library and
//! `ports.rs`, and not every binary uses all of it.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::ports::free_port;

/// A start takes less than a second on an idle machine; longer on one that compiles at the same time.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// Where Debian keeps the versions.
const VERSIONS: &str = "/usr/lib/postgresql";

/// A PostgreSQL server on `127.0.0.1` with an empty database `farm`, owned by the role `farm`.
///
/// Dropping it kills the server and removes its folder. So does the end of the test process, however it ends.
#[derive(Debug)]
pub struct Postgres {
    /// Stays the same through restarts.
    pub port: u16,
    home: PathBuf,
    settings: String,
    running: Option<Running>,
}

/// The processes of a server. The first leads a process group.
#[derive(Debug)]
struct Running {
    server: Child,
    /// Waits for the end of its standard input, which comes when this process ends, and kills the other one.
    janitor: Child,
}

/// The folder of the programs.
fn programs() -> PathBuf {
    let versions = fs::read_dir(VERSIONS).unwrap_or_else(|error| panic!("{VERSIONS}: {error}; run ./tests/run once"));
    let found = versions.flatten().map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists());
    found.max().unwrap_or_else(|| panic!("no PostgreSQL in {VERSIONS}; run ./tests/run once"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A command that PostgreSQL accepts: it refuses to run as root.
pub fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]).arg(program);
    command
}

fn checked(mut command: Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

impl Postgres {
    /// Starts a server and waits until it accepts connections.
    pub fn start() -> Self {
        let mut server = Self::prepare();
        server.launch();
        server
    }

    /// A server that does not run yet.
    pub fn prepare() -> Self {
        Self::prepare_in(&std::env::temp_dir())
    }

    /// As [`Postgres::prepare`], with its data below a folder in which PostgreSQL's user may make files.
    pub fn prepare_in(folder: &Path) -> Self {
        let home = new_folder(folder);
        let mut initdb = unprivileged(&programs().join("initdb"));
        initdb.args(["--auth=trust", "--username=farm", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"]);
        initdb.arg(home.join("data"));
        checked(initdb);
        Self { port: free_port(), home, settings: String::new(), running: None }
    }

    /// A standby of this server, which must run. It does not run yet.
    pub fn standby(&self, name: &str) -> Self {
        let home = new_folder(self.home.parent().expect("a folder in a folder"));
        let mut copy = unprivileged(&programs().join("pg_basebackup"));
        let primary = format!("host=127.0.0.1 port={} user=farm application_name={name}", self.port);
        copy.args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--dbname", &primary, "--pgdata"]);
        copy.arg(home.join("data"));
        checked(copy);
        Self { port: free_port(), home, settings: String::new(), running: None }
    }

    /// Adds a setting, such as `max_connections=20`, for the next start.
    pub fn set(&mut self, setting: &str) {
        self.settings.push_str(&format!("-c {setting}\n"));
    }

    /// As [`Postgres::launch`], with TLS only, for which there are these files in PEM.
    pub fn launch_with_tls(&mut self, certificate: &str, key: &str) {
        for (name, from) in [("server.crt", certificate), ("server.key", key)] {
            let to = self.home.join("data").join(name);
            fs::copy(from, &to).expect("a file for the server");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("a file of this user");
            let owner = fs::metadata(self.home.join("data")).expect("its data");
            std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid())).expect("a file of the server's user");
        }
        fs::write(self.home.join("data/pg_hba.conf"), "hostssl all all all trust\n").expect("its rules");
        self.set("ssl=on");
        self.launch();
    }

    /// The URL of its database.
    pub fn url(&self) -> String {
        format!("postgres://farm@127.0.0.1:{}/farm", self.port)
    }

    /// Starts a server that does not run, with the data that an earlier run has left, and waits until it accepts
    /// connections.
    pub fn launch(&mut self) {
        self.spawn();
        let deadline = Instant::now() + START_DEADLINE;
        while !self.accepts() {
            let log = fs::read_to_string(self.home.join("log")).unwrap_or_default();
            let running = self.running.as_mut().expect("it was just spawned");
            assert!(matches!(running.server.try_wait(), Ok(None)), "PostgreSQL has ended: {log}");
            assert!(Instant::now() < deadline, "PostgreSQL does not start: {log}");
            thread::sleep(Duration::from_millis(20));
        }
        let has_farm = self.psql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'farm'") == "1";
        let is_standby = self.psql("postgres", "SELECT pg_is_in_recovery()") == "t";
        if !has_farm && !is_standby {
            self.psql("postgres", "CREATE DATABASE farm");
        }
    }

    fn spawn(&mut self) {
        assert!(self.running.is_none(), "PostgreSQL is running already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.home.join("log")).expect("a log file");
        let mut command = unprivileged(&programs().join("postgres"));
        command.arg("-D").arg(self.home.join("data"));
        command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "wal_level=replica"]);
        // sockets elsewhere may have a path that is too long
        command.args(["-c", "unix_socket_directories=", "-c", "log_statement=none"]);
        command.args(self.settings.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let server = command.spawn().expect("PostgreSQL");
        let kill = format!("read _; kill -QUIT {0}; sleep 2; kill -KILL -{0}", server.id());
        let mut janitor = Command::new("sh");
        janitor.args(["-c", &kill]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let janitor = janitor.spawn().expect("a shell");
        self.running = Some(Running { server, janitor });
    }

    fn accepts(&self) -> bool {
        let mut ready = Command::new(programs().join("pg_isready"));
        ready.args(["--quiet", "--host=127.0.0.1", "--username=farm", "--port", &self.port.to_string()]);
        ready.status().is_ok_and(|status| status.success())
    }

    /// The result of a statement in a database, without alignment.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(programs().join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        psql.args([
            "--host=127.0.0.1",
            "--username=farm",
            "--port",
            &self.port.to_string(),
            "--command",
            sql,
            database,
        ]);
        String::from_utf8(checked(psql).stdout).expect("UTF-8").trim().to_owned()
    }

    /// The result of a statement in the gateway's database.
    pub fn ask(&self, sql: &str) -> String {
        self.psql("farm", sql)
    }

    /// Its processes: the server, which has started the others, and those. None if it does not run.
    pub fn processes(&self) -> Option<(u32, Vec<u32>)> {
        self.running.as_ref().map(|running| (running.server.id(), running.group()))
    }

    /// Makes a standby a primary.
    pub fn promote(&self) {
        self.psql("postgres", "SELECT pg_promote()");
    }

    /// Kills all of its processes, as a loss of power would.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            signal("KILL", &running.group());
            let _ = running.server.wait();
            let _ = running.janitor.kill();
            let _ = running.janitor.wait();
            // the kernel may take a moment to end the other processes, which keep the shared memory
            let deadline = Instant::now() + START_DEADLINE;
            while !running.group().is_empty() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = fs::remove_file(self.home.join("data/postmaster.pid"));
        }
    }

    /// Stops all of its processes where they are: it accepts connections and answers nothing.
    pub fn freeze(&self) {
        self.running.iter().for_each(|running| signal("STOP", &running.group()));
    }

    /// Limits the length of each of its files to this many bytes, as a disk without space does.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        for pid in self.running.iter().flat_map(Running::group) {
            let mut command = unprivileged(Path::new("prlimit"));
            command.arg(format!("--pid={pid}")).arg(format!("--fsize={limit}:unlimited")).stderr(Stdio::null());
            // one may have ended meanwhile
            let _ = command.status();
        }
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.running.iter().for_each(|running| signal("CONT", &running.group()));
    }
}

impl Running {
    /// The server and its children, which lead groups of their own.
    fn group(&self) -> Vec<u32> {
        let parent_of = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // after the name in parentheses: the state and the parent
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let state = fields.next()?;
            (state != "Z").then(|| fields.next()?.parse::<u32>().ok()).flatten()
        };
        let pids = fs::read_dir("/proc").expect("a /proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let server = self.server.id();
        pids.filter(|&pid| parent_of(pid).is_some_and(|parent| pid == server || parent == server)).collect()
    }
}

fn signal(name: &str, pids: &[u32]) {
    let mut kill = Command::new("kill");
    kill.arg(format!("-{name}")).args(pids.iter().map(u32::to_string)).stderr(Stdio::null());
    // one may have ended meanwhile
    let _ = kill.status();
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// A folder below this one, in which PostgreSQL's user may write.
pub fn new_folder(parent: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("uhs-postgres-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let home = parent.join(name);
    fs::create_dir_all(&home).expect("a folder for PostgreSQL");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).expect("a folder of this user");
    home
}
