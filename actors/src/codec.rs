//! The wire forms: what workers and the communication interface send, and what is made of it.
//!
//! Everything here works on untrusted bytes: in one pass, without recursion, within declared bounds, without
//! panicking, and without copying a large byte string.
//!
//! Two readers (`json`, `pickle`) make the same graph of values that point into the bytes received (`doc`); the
//! `envelope` finds the parts of a message in it; two writers make JSON or a pickle of any part. Where both ends are
//! pickles, nothing is written anew but a few opcodes around what was received (`pickle::splice`).

mod bounds;
mod diagnose;
mod doc;
mod envelope;
mod error;
mod json;
mod pickle;
mod pieces;
mod preview;
mod text;
mod walk;

use std::fmt;

use bytes::Bytes;

pub use bounds::*;
pub(crate) use envelope::{communication_interface_message, posted_message};
pub use envelope::{decode_communication_interface_message, decode_user_message};
pub use pickle::bytes_header;

/// How long decoding a body may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Little enough for an event loop, a millisecond or so: [`DecodeError::TakesLonger`] where that is not enough.
    Brief,
    /// What the codec's bounds allow.
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
    /// The body, in parts that follow one another; large parts are slices of what was received.
    pub body: Vec<Bytes>,
}

/// What a worker has posted, and who it says that it is.
#[derive(Clone, Debug)]
pub struct PostedMessage {
    /// `USER_ID`.
    pub user_id: UserId,
    /// What is to be done with it.
    pub message: UserMessage,
}

/// A `USER_ID`, whole. Two are equal where Python's strings are: a surrogate that stands alone is a code point like any
/// other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserId(Bytes);

impl UserId {
    /// As UTF-8 in which surrogates are encoded too (Python's `surrogatepass`).
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
        /// What it says its type is.
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
    /// The message as one pickle, in parts that follow one another. Where `blend` is given, a byte string is
    /// missing in it.
    pub pickle: Vec<Bytes>,
    /// Where the content of a .blend file goes, when the message asks for one.
    pub blend: Option<BlendPlaceholder>,
}

/// The place of a .blend file in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlendPlaceholder {
    /// Where in the pickle the file's byte string (its opcode, its length and its bytes) belongs.
    pub offset: u64,
    /// The value of `BINARY_BLEND_FILE`, at most [`MAX_BLEND_PATH_BYTES`]; `None` where there is none or it is no
    /// string that can name a file.
    pub path: Option<String>,
}

/// What the communication interface has sent.
#[derive(Clone, Debug)]
pub struct CommunicationInterfaceMessage {
    /// The UUID (any string of 1 to 4,096 bytes) under which the worker will ask.
    pub buffer_uuid: String,
    /// The message to keep for it.
    pub message: BufferMsg,
}

/// Why a body was refused. Its text names what is wrong, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A well-formed message of the communication interface of another type than `ADD_BUFFER_MSG`.
    #[error("Unknown message type")]
    UnknownMessageType,
    /// Anything else.
    #[error("{0}")]
    Malformed(String),
    /// Nothing is wrong yet: the body takes longer than an event loop has time. Bodies that are decoded in full are
    /// never refused with this.
    #[error("the body takes longer to decode than there was time")]
    TakesLonger,
}
