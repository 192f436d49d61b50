//! A Python program that has the codec read what it makes, and judges what comes of it.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use user_http_actors::codec::{Format, UserMessage, decode_communication_interface_message, decode_user_message};

#[path = "../../../fuzz/checks/windows.rs"]
#[expect(dead_code, reason = "the file is shared with the fuzz targets")]
mod windows;

/// One of so many bodies is also decoded from a file.
const COMPARED: usize = 8;

/// Longer bodies, in bytes, are decoded in memory only: some take long.
const MAX_COMPARED: usize = 16 << 10;

/// The Python process; ended when dropped.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    /// The longest that a refusal has taken.
    slowest: Duration,
    /// How many bodies were short enough to be decoded from a file too.
    short: usize,
}

impl Peer {
    /// Runs a script of this folder.
    pub fn start(script: &str, args: &[&str]) -> Peer {
        let script = format!("{}/tests/{script}", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new("python3")
            .arg("-B")
            .arg(script)
            .args(args)
            // The order of a set's items, and so the pickle of it, is the same in every run.
            .env("PYTHONHASHSEED", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed for this test");
        let input = child.stdin.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        Peer { child, input, output, slowest: Duration::ZERO, short: 0 }
    }

    /// Answers until the script ends, and panics with what it says if it has found a fault.
    pub fn serve(mut self) {
        let (passed, text) = loop {
            let [call, form] = self.array();
            let body = self.block();
            let format = if form == b'J' { Format::Json } else { Format::Pickle };
            if matches!(call, b'U' | b'C') && body.len() <= MAX_COMPARED {
                if self.short.is_multiple_of(COMPARED) {
                    windows::compare(format, &body);
                }
                self.short += 1;
            }
            match call {
                b'U' => self.answer_user(format, body),
                b'C' => self.answer_interface(format, body),
                _ => break (form == b'+', body),
            }
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(passed, "{text}");
        println!("{text}\nslowest refusal: {:?}", self.slowest);
    }

    fn refused(&mut self, error: &str, took: Duration) {
        self.slowest = self.slowest.max(took);
        self.answer(b'E', &[error.as_bytes()]);
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        self.output.read_exact(&mut array).expect("the peer goes on to the end");
        array
    }

    fn block(&mut self) -> Bytes {
        let mut block = vec![0; u32::from_le_bytes(self.array()) as usize];
        self.output.read_exact(&mut block).expect("the peer goes on to the end");
        block.into()
    }

    fn answer(&mut self, outcome: u8, texts: &[&[u8]]) {
        let mut answer = vec![outcome, texts.len() as u8];
        for text in texts {
            answer.extend((text.len() as u32).to_le_bytes());
            answer.extend(*text);
        }
        self.input.write_all(&answer).expect("the peer reads on");
        self.input.flush().expect("the peer reads on");
    }

    fn answer_user(&mut self, format: Format, body: Bytes) {
        let start = Instant::now();
        match decode_user_message(format, body).map(|posted| posted.message) {
            Ok(UserMessage::Forward(message)) => {
                let outcome = if message.format == Format::Json { b'J' } else { b'P' };
                self.answer(outcome, &[message.user_id.as_bytes(), &message.body.read_all().expect("in memory")]);
            }
            Ok(UserMessage::Test { user_id, data }) => {
                self.answer(b'T', &[user_id.as_bytes(), data.as_bytes()]);
            }
            Ok(UserMessage::Other { user_id, kind }) => {
                self.answer(b'O', &[user_id.as_bytes(), kind.as_bytes()]);
            }
            Err(error) => self.refused(&error.to_string(), start.elapsed()),
        }
    }

    fn answer_interface(&mut self, format: Format, body: Bytes) {
        let start = Instant::now();
        match decode_communication_interface_message(format, body) {
            Ok(stored) => {
                let blend = stored.message.blend;
                let offset = blend.as_ref().map_or(0, |blend| blend.offset).to_string();
                let path =
                    blend.map_or(String::new(), |blend| blend.path.map_or("-".to_owned(), |path| format!("+{path}")));
                let pickle = stored.message.pickle.read_all().expect("in memory");
                self.answer(b'B', &[stored.buffer_uuid.as_bytes(), &pickle, offset.as_bytes(), path.as_bytes()]);
            }
            Err(error) => self.refused(&error.to_string(), start.elapsed()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
