//! A body in a file gives the same, to the byte, as the same body in memory, whatever is read of the file at once.

use std::sync::Arc;

use tempfile::TempDir;
use user_http_actors::body_file::{BodyDirectory, BodyFile, BodyWriter};
use user_http_actors::codec::{
    BlendPlaceholder, Body, DecodeError, Format, ForwardedType, UserMessage, decode_communication_interface_message,
    decode_user_message,
};
use user_http_actors::store::disk::SystemDisk;

/// How many bytes of a file are read at once.
pub const WINDOWS: [usize; 6] = [1, 2, 3, 7, 64, 4_096];

/// The longest body, in bytes, for which windows of a few bytes are tried: they make a read of almost every byte.
const MAX_WITH_FEW_BYTES: usize = 2_048;

/// What is made of a body, with all bytes.
#[derive(Debug, PartialEq)]
pub enum Made {
    Forwarded { user_id: Vec<u8>, label: String, kind: ForwardedType, format: Format, body: Vec<u8> },
    Logged { user_id: Vec<u8>, label: String, text: String },
    Buffered { uuid: String, pickle: Vec<u8>, blend: Option<BlendPlaceholder> },
}

fn user_message(format: Format, body: Body) -> Result<Made, DecodeError> {
    let posted = decode_user_message(format, body)?;
    let user_id = posted.user_id.as_bytes().to_vec();
    let label = posted.message.user_id().to_owned();
    Ok(match posted.message {
        UserMessage::Forward(message) => {
            let body = message.body.read_all().expect("readable").to_vec();
            Made::Forwarded { user_id, label, kind: message.kind, format: message.format, body }
        }
        UserMessage::Test { data, .. } => Made::Logged { user_id, label, text: data },
        UserMessage::Other { kind, .. } => Made::Logged { user_id, label, text: kind },
    })
}

fn communication_interface_message(format: Format, body: Body) -> Result<Made, DecodeError> {
    let message = decode_communication_interface_message(format, body)?;
    let pickle = message.message.pickle.read_all().expect("readable").to_vec();
    Ok(Made::Buffered { uuid: message.buffer_uuid, pickle, blend: message.message.blend })
}

/// Decodes a body as both kinds of message.
pub fn decode_both(format: Format, body: Body) -> [Result<Made, DecodeError>; 2] {
    [user_message(format, body.clone()), communication_interface_message(format, body)]
}

/// An empty file. It is there as long as the directory is.
pub fn new_file() -> (BodyWriter, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = BodyDirectory::new(Arc::new(SystemDisk), folder.path().to_owned());
    (directory.create().expect("a file"), folder)
}

/// A file with this content.
pub fn body_file(content: &[u8]) -> (Arc<BodyFile>, TempDir) {
    let (mut file, folder) = new_file();
    file.append(content).expect("space");
    (file.finish(), folder)
}

/// Compares what is made of a body in memory and in a file.
pub fn compare(format: Format, body: &[u8]) {
    let expected = decode_both(format, body.to_vec().into());
    let (file, _folder) = body_file(body);
    for window in WINDOWS.iter().filter(|window| **window >= 64 || body.len() <= MAX_WITH_FEW_BYTES) {
        let made = decode_both(format, Body::File { file: file.clone(), window: *window });
        assert_eq!(made, expected, "{format} with a window of {window}: {}", body.escape_ascii());
    }
}

/// Messages with this value: up to it, and behind it.
const MESSAGES: [(Format, &[u8], &[u8]); 6] = [
    (Format::Json, br#"{"USER_ID": "u", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": "#, b"}}"),
    (Format::Json, br#"{"USER_ID": "u", "MAIN_DATA": {"TYPE": "RENDER_COMPLETED", "DATA": "#, b"}}"),
    (Format::Json, br#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "b", "BUFFER_MSG": "#, b"}}"),
    (
        Format::Pickle,
        b"}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c\x0eFRAME_RENDERED\x8c\x04DATA",
        b"uu.",
    ),
    (
        Format::Pickle,
        b"}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c\x10RENDER_COMPLETED\x8c\x04DATA",
        b"uu.",
    ),
    (
        Format::Pickle,
        b"}(\x8c\x04TYPE\x8c\x0eADD_BUFFER_MSG\x8c\x04DATA}(\x8c\x0bBUFFER_UUID\x8c\x01b\x8c\x0aBUFFER_MSG",
        b"uu.",
    ),
];

/// Compares the messages with this value.
pub fn compare_in_messages(format: Format, value: &[u8]) {
    for (_, head, tail) in MESSAGES.iter().filter(|(of, ..)| *of == format) {
        compare(format, &[head, value, tail].concat());
    }
}

pub fn check(data: &[u8]) {
    for format in [Format::Json, Format::Pickle] {
        compare(format, data);
        compare_in_messages(format, data);
    }
}
