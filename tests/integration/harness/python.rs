//! The farm's Python programs: `tests/peers/peer.py`, with one JSON object per line in each direction.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};

/// Peers that no test uses at the moment. Starting Python and importing its packages takes half a second of processor
/// time, so one process serves many tests. It ends with this process, at the end of its stdin.
static IDLE: Mutex<Vec<Process>> = Mutex::new(Vec::new());

/// A Python program of the farm, owned by one test. It starts at the first call.
pub struct Peer {
    process: Option<Process>,
}

pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// An HTTP answer as `requests` got it.
#[derive(Debug, serde::Deserialize)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The decoded body as Python source, dicts in their order, sets sorted.
    pub value: String,
    /// The body's length in bytes.
    pub length: u64,
}

impl Peer {
    /// A peer that no other test uses.
    pub fn get() -> Self {
        Self { process: None }
    }

    fn process(&mut self) -> &mut Process {
        self.process.get_or_insert_with(|| {
            let idle = IDLE.lock().expect("the idle peers").pop();
            idle.unwrap_or_else(|| Process::start("peer.py"))
        })
    }

    /// Calls a function of `tests/peers/peer.py`.
    #[track_caller]
    pub fn call(&mut self, what: &str, mut arguments: Value) -> Value {
        arguments["do"] = what.into();
        let answer = self.process().exchange(&arguments);
        match &answer["error"] {
            Value::String(error) => panic!("the Python peer failed to {what} {arguments}:\n{error}"),
            _ => answer["ok"].clone(),
        }
    }

    /// Python source of a value that a test writes as Python source, in the form that answers come in.
    #[track_caller]
    pub fn show(&mut self, value: &str) -> String {
        text(&self.call("show", json!({ "value": value })))
    }

    /// A value, pickled.
    #[track_caller]
    pub fn dumps(&mut self, value: &str, protocol: u8) -> Vec<u8> {
        unhex(&text(&self.call("dumps", json!({ "value": value, "protocol": protocol }))))
    }

    /// The value of a pickle, as Python source.
    #[track_caller]
    pub fn loads(&mut self, pickle: &[u8]) -> String {
        text(&self.call("loads", json!({ "data": hex(pickle) })))
    }

    /// The value of a JSON text, as Python source.
    #[track_caller]
    pub fn json_loads(&mut self, json: &[u8]) -> String {
        text(&self.call("json_loads", json!({ "data": hex(json) })))
    }

    /// Makes the peer send an HTTP request.
    #[track_caller]
    pub fn answer(&mut self, what: &str, arguments: Value) -> Answer {
        serde_json::from_value(self.call(what, arguments)).expect("an answer")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let process = self.process.take();
        if !std::thread::panicking() {
            IDLE.lock().expect("the idle peers").extend(process);
        }
    }
}

impl Process {
    /// Starts a script of `tests/peers`.
    pub(super) fn start(script: &str) -> Self {
        let mut command = peer_command(script);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{command:?}: {error}; run ./tests/run once, it installs what the tests need")
        });
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, stdin, stdout }
    }

    #[track_caller]
    pub(super) fn exchange(&mut self, request: &Value) -> Value {
        let mut line = String::new();
        let asked = writeln!(self.stdin, "{request}").and_then(|()| self.stdin.flush());
        asked.and_then(|()| self.stdout.read_line(&mut line)).expect("the Python peer to live");
        serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!(
                "the Python peer has ended ({error}); if packages are missing, run ./tests/run once, it installs them"
            )
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // This fails only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command that starts a script of `tests/peers`.
pub fn peer_command(script: &str) -> Command {
    let mut command = Command::new(python());
    command.arg("-B").arg(tests().join("peers").join(script));
    command
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// The Python interpreter that has the farm's packages.
pub fn python() -> PathBuf {
    std::env::var_os("TEST_PYTHON").map_or_else(|| tests().join(".venv/bin/python"), PathBuf::from)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Bytes in the encoding of the peer's protocol.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Vec::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    String::from_utf8(text).expect("ASCII")
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("hexadecimal") as u8;
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
