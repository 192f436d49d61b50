//! The cluster of nine parts that `deploy/cluster/start` starts, and its killer.

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::{Program, SOON, eventually, holds, without_settings};
use crate::history::{Operation, Time, What};

/// A start takes 15 s on two idle cores, and longer on a machine that compiles at the same time.
const START: Duration = Duration::from_secs(300);
/// For the part that was killed last to take work again.
const WHOLE: Duration = Duration::from_secs(200);

/// Where the documented commands have their cluster.
const DOCUMENTED_FOLDER: &str = "/tmp/cluster";
const START_COMMAND: &str = "deploy/cluster/start /tmp/cluster";
const KILL_COMMAND: &str = "deploy/cluster/kill-one /tmp/cluster";
const STOP_COMMAND: &str = "deploy/cluster/stop /tmp/cluster";

/// Ends the cluster in the folder `$1` when stdin ends, even if the test process was killed.
const JANITOR: &str = r#"read _; "$0" "$1"; echo $? >"$1/stopped""#;

/// A running cluster. Dropping it ends all of its processes.
pub struct Nine {
    folder: TempDir,
    starter: Program,
    janitor: Child,
}

/// A command of `docs/several-gateways.md`, with another folder.
fn command(documented: &str, folder: &Path) -> Command {
    let mut words = documented.split(' ');
    let mut command = Command::new(script(words.next().expect("a script")));
    let argument =
        |word: &str| OsString::from(if word == DOCUMENTED_FOLDER { folder.as_os_str() } else { word.as_ref() });
    without_settings(&mut command).args(words.map(argument));
    command
}

/// A script of the repository.
fn script(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

impl Nine {
    /// Starts it and waits until all parts take work. RabbitMQ is that of `TEST_RABBITMQ4_ROOT`, or else the machine's.
    #[track_caller]
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("uhs-nine-").tempdir().expect("a folder");
        let stop = command(STOP_COMMAND, folder.path());
        let mut janitor = Command::new("sh");
        janitor.args(["-c", JANITOR]).arg(stop.get_program()).args(stop.get_args());
        janitor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut start = command(START_COMMAND, folder.path());
        start.env("USER_HTTP_SERVER", env!("CARGO_BIN_EXE_user-http-server"));
        if let Some(root) = std::env::var_os("TEST_RABBITMQ4_ROOT") {
            start.env("RABBITMQ_ROOT", root);
        }
        let starter = Program::start(&mut start);
        let mut nine = Self { folder, starter, janitor: janitor.spawn().expect("a shell") };
        eventually("the cluster runs", START, || match nine.starter.try_end() {
            Some(ended) => panic!("it does not start: {ended:?}"),
            None => holds(nine.folder.path().join("addresses").exists(), "not all parts take work"),
        });
        nine
    }

    /// Where workers reach it, or services.
    pub fn address(&self, of: &str) -> SocketAddr {
        let url = self.url(of);
        url.rsplit_once('/').and_then(|(_, address)| address.parse().ok()).unwrap_or_else(|| panic!("{url}"))
    }

    /// The URL of a part.
    pub fn url(&self, of: &str) -> String {
        let addresses = fs::read_to_string(self.folder.path().join("addresses")).expect("the addresses");
        let mut words = addresses.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = words.find(|words| words[0] == of).unwrap_or_else(|| panic!("no {of} in {addresses}"));
        found[1].to_owned()
    }

    /// Kills parts in turn for so many seconds, then waits until all run; returns their deaths.
    #[track_caller]
    pub fn kill_one_by_one(&self, seconds: u64, seed: u64) -> Vec<Operation> {
        let mut kill = command(KILL_COMMAND, self.folder.path());
        let mut killer = Program::start(kill.arg(seconds.to_string()).env("SEED", seed.to_string()));
        let patience = Duration::from_secs(seconds) + WHOLE;
        let ended = eventually("the killer's end", patience, || killer.try_end().ok_or("it still kills"));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        deaths(&ended.stdout)
    }

    /// Ends it, and checks that none of its processes is left.
    #[track_caller]
    pub fn stop(mut self) {
        let ids = self.process_ids();
        assert!(ids.len() >= 11, "{ids:?}");
        drop(self.janitor.stdin.take());
        self.janitor.wait().expect("the janitor");
        let stopped = fs::read_to_string(self.folder.path().join("stopped")).unwrap_or_default();
        assert_eq!(stopped.trim(), "0", "it does not stop");
        assert_eq!(self.process_ids(), [""; 0]);
        // whoever has adopted them may need a moment to notice their end
        eventually("none of its processes is left", SOON, || {
            let left: Vec<_> = ids.iter().filter(|id| Path::new("/proc").join(id).exists()).collect();
            holds(left.is_empty(), left)
        });
        let workers = self.address("workers");
        assert!(TcpStream::connect(workers).is_err(), "something listens at {workers}");
    }

    fn process_ids(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder.path()).expect("the folder").flatten().map(|entry| entry.path());
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "pid"));
        // the script that starts the parts is a child of this process
        let files = files.filter(|path| path.file_stem().is_some_and(|name| name != "start"));
        files.filter_map(|path| Some(fs::read_to_string(path).ok()?.trim().to_owned())).collect()
    }

    /// The last lines of each log.
    fn logs(&self) -> String {
        let mut shown = String::new();
        for entry in fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                let lines: Vec<_> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(8)..].join("\n");
                shown.push_str(&format!("--- {} ---\n{last}\n", path.display()));
            }
        }
        shown
    }
}

impl Drop for Nine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        drop(self.janitor.stdin.take());
        // this fails only if the test has waited for it already
        let _ = self.janitor.wait();
    }
}

/// What `kill-one` says that it has killed: lines of a time and a deed.
#[track_caller]
fn deaths(said: &str) -> Vec<Operation> {
    let (mut deaths, mut began) = (Vec::new(), Time::ZERO);
    for line in said.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let time = words[0].parse::<f64>().map(Time::from_secs_f64).unwrap_or_else(|error| panic!("{error}: {line}"));
        match words[1..] {
            ["killing", ..] => began = time,
            ["killed", part, ..] => {
                deaths.push(Operation { began, ended: time, what: What::Death(part.to_owned()) });
            }
            _ => {}
        }
    }
    deaths
}
