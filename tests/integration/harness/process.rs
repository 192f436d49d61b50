//! A child process whose log is read line by line, unless a test wants it otherwise.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// A child process, killed when dropped.
pub struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    reading: Arc<Reading>,
}

/// What the log's reader does before the next line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
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
    /// Starts it. Its log is what it writes to stderr.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
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

    /// The log since the start.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").concat()
    }

    /// Changes what the log's reader does.
    pub fn read_log(&self, mode: Mode) {
        self.reading.set(mode);
    }

    /// Whether the log's reader waits for another mode.
    pub fn log_is_paused(&self) -> bool {
        self.reading.paused.load(Ordering::SeqCst)
    }

    /// Whether the log's reader has ended.
    pub fn log_is_closed(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended; `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child's status")
    }

    /// Sends SIGKILL, and reads the log to its end.
    pub fn kill(&mut self) {
        // This fails only if the process has already ended.
        let _ = self.child.kill();
        self.child.wait().expect("a child's status");
        self.finish_log();
    }

    /// Reads the log to its end; only for a process that has ended.
    pub fn finish_log(&mut self) {
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
