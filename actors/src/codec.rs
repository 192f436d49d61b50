//! Decodes the messages of workers and of the communication interface, and writes the messages that go out.
//!
//! The bytes are untrusted. Decoding reads them once, does not recurse, stays within declared bounds, does not panic,
//! and copies no large byte string. A body in a file is read part by part, and its large byte strings are not read at
//! all.
//!
//! There are two readers, `json` and `pickle`. Both make a graph of values that point into the received bytes (`doc`).
//! `envelope` finds the parts of a message in that graph. Two writers make JSON or a pickle of any part. If both ends
//! are pickles, the received bytes go out as they are, with a few opcodes around them (`pickle`).
//!
//! ```
//! use user_http_actors::codec::{Format, UserMessage, decode_communication_interface_message, decode_user_message};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // a worker has completed its rendering: the user manager gets this as JSON
//! let body = r#"{"USER_ID": "me", "MAIN_DATA": {"TYPE": "RENDER_COMPLETED", "DATA": {"FRAMES": 2}}}"#;
//! let posted = decode_user_message(Format::Json, body)?;
//! assert_eq!(posted.user_id.as_bytes(), b"me");
//! let UserMessage::Forward(message) = posted.message else { panic!("not forwarded") };
//! assert_eq!(message.format, Format::Json);
//! assert!(message.body.read_all()?.ends_with(br#""MESSAGE": {"FRAMES": 2}, "USER_ID": "me"}}}"#));
//!
//! // the communication interface leaves a message for a worker: it is kept as a pickle
//! let body = r#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "job-1", "BUFFER_MSG": {"FRAMES": [1, 2]}}}"#;
//! let stored = decode_communication_interface_message(Format::Json, body)?;
//! assert_eq!(stored.buffer_uuid, "job-1");
//! assert_eq!(stored.message.pickle.read_all()?, &b"\x80\x04}(\x8c\x06FRAMES](K\x01K\x02eu."[..]);
//!
//! // an error names what is wrong and what would be right
//! let error = decode_user_message(Format::Json, r#"{"USER_ID": 7}"#).unwrap_err();
//! assert_eq!(error.to_string(), "USER_ID is an int; a str is expected");
//! # Ok(())
//! # }
//! ```

mod bounds;
mod diagnose;
mod doc;
mod envelope;
mod error;
mod json;
mod pickle;
mod pieces;
mod preview;
mod source;
mod text;
mod walk;

use std::fmt;

use bytes::Bytes;

use crate::digest::Sha256Digest;
use crate::payload::Payload;

pub use bounds::*;
pub(crate) use envelope::{communication_interface_message, posted_message};
pub use envelope::{decode_communication_interface_message, decode_user_message};
pub use pickle::{bytes_header, file_reference};
pub use source::Body;

/// How long decoding a body may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// About a millisecond, so that it can be done on an event loop. [`DecodeError::TakesLonger`] if that is not
    /// enough.
    Brief,
    /// As long as the codec's bounds allow.
    Full,
}

/// How a body is written on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// JSON, as Python's `json` reads and writes it.
    Json,
    /// A Python pickle of protocol 0 to 5.
    Pickle,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "JSON",
            Self::Pickle => "pickle",
        })
    }
}

/// Which of the forwarded types a message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardedType {
    /// `FRAME_RENDERED`.
    FrameRendered,
    /// `RENDER_COMPLETED`.
    RenderCompleted,
}

/// A message for the user manager: the whole body as it goes over the wire.
#[derive(Clone, Debug)]
pub struct OutgoingMessage {
    /// Which of the forwarded types it has.
    pub kind: ForwardedType,
    /// Who sent it, for logs and lists: the first [`MAX_LABEL_CHARS`] characters.
    pub user_id: String,
    /// How `body` is written; [`Format::Pickle`] goes with the header `DATA_FORMAT: BYTES`.
    pub format: Format,
    /// The body. Its large pieces are slices of the received body.
    pub body: Payload,
}

/// A worker's message, and the user that it claims to be from.
#[derive(Clone, Debug)]
pub struct PostedMessage {
    /// `USER_ID`.
    pub user_id: UserId,
    /// What to do with it.
    pub message: UserMessage,
}

/// A whole `USER_ID`. Two are equal if Python's strings are: a lone surrogate is a code point like any other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserId(Bytes);

impl UserId {
    /// In UTF-8, with surrogates encoded too (Python's `surrogatepass`).
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A message of a worker.
#[derive(Clone, Debug)]
pub enum UserMessage {
    /// To be forwarded to the user manager.
    Forward(OutgoingMessage),
    /// `TEST`: to be logged.
    Test {
        /// Who sent it.
        user_id: String,
        /// `DATA`, written for a log line: at most 1 KiB, without control characters.
        data: String,
    },
    /// Any other type: to be logged and counted.
    Other {
        /// Who sent it.
        user_id: String,
        /// Its `TYPE`.
        kind: String,
    },
}

impl UserMessage {
    /// Who sent it: the first [`MAX_LABEL_CHARS`] characters.
    pub fn user_id(&self) -> &str {
        match self {
            Self::Forward(OutgoingMessage { user_id, .. })
            | Self::Test { user_id, .. }
            | Self::Other { user_id, .. } => user_id,
        }
    }
}

/// A message for a worker, ready to be delivered.
#[derive(Clone, Debug)]
pub struct BufferMsg {
    /// The message as one pickle. If `blend` has a path, a byte string is missing in it.
    pub pickle: Payload,
    /// The .blend file that the message asks for.
    pub blend: Option<BlendPlaceholder>,
    /// The digest of `pickle`, if it has been computed.
    pub sha256: Option<Sha256Digest>,
}

/// Where the content of a .blend file goes in a message, and which file that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlendPlaceholder {
    /// The offset in the pickle at which the file's byte string (opcode, length and bytes) has to be inserted.
    pub offset: u64,
    /// The value of `BINARY_BLEND_FILE`, at most [`MAX_BLEND_PATH_BYTES`] long. `None` if it is missing or is no string
    /// that can name a file.
    pub path: Option<String>,
}

/// A message of the communication interface.
#[derive(Clone, Debug)]
pub struct CommunicationInterfaceMessage {
    /// The UUID that the worker will ask for: any string of 1 to 4,096 bytes.
    pub buffer_uuid: String,
    /// The message to keep for it.
    pub message: BufferMsg,
}

/// Why a body was refused. The text names what is wrong, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A well-formed message of the communication interface whose type is not `ADD_BUFFER_MSG`.
    #[error("Unknown message type")]
    UnknownMessageType,
    /// Anything else.
    #[error("{0}")]
    Malformed(String),
    /// The body is in a file, and the disk failed to give it back. This says nothing about the message.
    #[error("the body could not be read back from the disk: {0}")]
    Unreadable(String),
    /// No error has been found, but decoding takes longer than an event loop has time. Only decoding on an event loop
    /// fails with this.
    #[error("decoding the body takes too long for an event loop")]
    TakesLonger,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker's pickle whose `DATA` is made by these opcodes.
    fn pickle(kind: &str, data: &[u8]) -> Bytes {
        let head = b"}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04DATA";
        [head, data, b"\x8c\x04TYPEX", &(kind.len() as u32).to_le_bytes(), kind.as_bytes(), b"uu."].concat().into()
    }

    fn json(kind: &str, data: &str) -> Bytes {
        format!(r#"{{"USER_ID": "u", "MAIN_DATA": {{"TYPE": "{kind}", "DATA": {data}}}}}"#).into()
    }

    #[test]
    fn a_short_body_that_takes_long_is_not_decoded_on_an_event_loop() {
        let float = "2.4703282292062327208299439634110764626188e-324";
        let floats = [b"](", format!("F{float}\n").repeat(1_000).as_bytes(), b"e"].concat();
        let lists = [&b"]("[..], &b"]".repeat(60_000), b"e"].concat();
        let digits = format!("I1{}\n", "0".repeat(MAX_PEER_INT_DIGITS));
        let copies = [&b"](cbuiltins\nset\nq\x010]("[..], &b"K\x01".repeat(9_000), b"e\x85q\x020"].concat();
        let copies = [&copies[..], &b"h\x01h\x02R".repeat(9), b"e"].concat();
        // more and more ints of one hash
        let ints: Vec<u8> = (1..400_u128)
            .flat_map(|n| [&b"\x8a\x10"[..], &(n * ((1 << 61) - 1)).to_le_bytes(), b"N"].concat())
            .collect();
        let keys = [&b"}("[..], &ints, b"u"].concat();
        for (what, format, body) in [
            ("floats of many digits", Format::Json, json("TEST", &format!("[{}1]", format!("{float},").repeat(1_000)))),
            ("floats of many digits", Format::Pickle, pickle("TEST", &floats)),
            ("a long JSON text", Format::Pickle, pickle("RENDER_COMPLETED", &lists)),
            ("an int of many digits", Format::Pickle, pickle("TEST", digits.as_bytes())),
            ("copies of a list", Format::Pickle, pickle("TEST", &copies)),
            ("keys of one hash", Format::Pickle, pickle("TEST", &keys)),
        ] {
            assert!(body.len() <= 64 << 10, "{what}: {} bytes", body.len());
            let brief = posted_message(format, body.clone().into(), Effort::Brief);
            assert!(matches!(brief, Err(DecodeError::TakesLonger)), "{what}: {brief:?}");
            posted_message(format, body.into(), Effort::Full).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}
