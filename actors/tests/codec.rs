//! The codec against CPython: what it takes, CPython takes, and what it makes, CPython reads as the same values.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use bytes::Bytes;
use user_http_actors::codec::{Format, UserMessage, decode_communication_interface_message, decode_user_message};

/// How many messages as picklers and `json` write them, how many of these with random bytes changed, and how many
/// pickles of opcodes in an order that no pickler writes.
const CASES: [&str; 3] = ["2000", "6000", "10000"];

#[test]
fn cpython_reads_what_is_made_of_its_messages_as_the_same_values() {
    // Other seeds can be tried from outside, and more of them.
    let seed = std::env::var("CODEC_SEED").unwrap_or_else(|_| "1".to_owned());
    let mut peer = Peer::start(&seed);
    let summary = loop {
        let [call, form] = peer.array();
        let body = peer.block();
        let format = if form == b'J' { Format::Json } else { Format::Pickle };
        match call {
            b'U' => peer.answer_user(format, body),
            b'C' => peer.answer_interface(format, body),
            _ => break (form == b'+', body),
        }
    };
    let (passed, text) = summary;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(passed, "{text}");
    println!("{text}");
}

/// The Python process; ended when dropped.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Peer {
    fn start(seed: &str) -> Peer {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/codec_peer.py");
        let mut child = Command::new("python3")
            .arg(script)
            .arg(seed)
            .args(CASES)
            // The order of a set's items, and so the pickle of it, is the same in every run.
            .env("PYTHONHASHSEED", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed for this test");
        let input = child.stdin.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        Peer { child, input, output }
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
        match decode_user_message(format, body) {
            Ok(UserMessage::Forward(message)) => {
                let outcome = if message.format == Format::Json { b'J' } else { b'P' };
                self.answer(outcome, &[message.user_id.as_bytes(), &message.body.concat()]);
            }
            Ok(UserMessage::Test { user_id, data }) => {
                self.answer(b'T', &[user_id.as_bytes(), data.as_bytes()]);
            }
            Ok(UserMessage::Other { user_id, kind }) => {
                self.answer(b'O', &[user_id.as_bytes(), kind.as_bytes()]);
            }
            Err(error) => self.answer(b'E', &[error.to_string().as_bytes()]),
        }
    }

    fn answer_interface(&mut self, format: Format, body: Bytes) {
        match decode_communication_interface_message(format, body) {
            Ok(stored) => {
                let blend = stored.message.blend;
                let offset = blend.as_ref().map_or(0, |blend| blend.offset).to_string();
                let path =
                    blend.map_or(String::new(), |blend| blend.path.map_or("-".to_owned(), |path| format!("+{path}")));
                let pickle = stored.message.pickle.concat();
                self.answer(b'B', &[stored.buffer_uuid.as_bytes(), &pickle, offset.as_bytes(), path.as_bytes()]);
            }
            Err(error) => self.answer(b'E', &[error.to_string().as_bytes()]),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
