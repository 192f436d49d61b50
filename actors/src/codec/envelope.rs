//! Reads the two kinds of messages, and makes from them what is forwarded or stored.

use super::bounds::{MAX_BLEND_PATH_BYTES, MAX_BUFFER_UUID_BYTES};
use super::diagnose::{self, Sample};
use super::doc::{Doc, NodeId, Tag};
use super::error::grouped;
use super::json::{self, NoJson};
use super::pickle::{self, Output, Pickle, Splice, Writer};
use super::pieces::Pieces;
use super::preview::{label, preview};
use super::source::{Body, Source};
use super::{
    BlendPlaceholder, BufferMsg, CommunicationInterfaceMessage, DecodeError, Effort, Format, ForwardedType,
    OutgoingMessage, PostedMessage, UserId, UserMessage,
};
use crate::digest;
use crate::payload::Payload;

const EMPTY: &str =
    "the body is empty; expected JSON, or a pickle with the header Content-Type: application/octet-stream";

const BLEND_FILE_KEY: &str = "BINARY_BLEND_FILE";

/// Reads what a worker has posted: `{"USER_ID": str, "MAIN_DATA": {"TYPE": str, "DATA": any}}`.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_user_message(format: Format, body: impl Into<Body>) -> Result<PostedMessage, DecodeError> {
    posted_message(format, body.into(), Effort::Full)
}

pub(crate) fn posted_message(format: Format, body: Body, effort: Effort) -> Result<PostedMessage, DecodeError> {
    decoded(format, &Source::of(body), effort, posted)
}

fn posted(message: &Message) -> Result<PostedMessage, DecodeError> {
    let user_id = str_at(message.doc(), message.doc().root, "USER_ID", "USER_ID")?;
    Ok(PostedMessage { user_id: UserId(message.doc().utf8(user_id)), message: user_message(message, user_id)? })
}

fn user_message(message: &Message, user_id: NodeId) -> Result<UserMessage, DecodeError> {
    let doc = message.doc();
    let main_data = dict_at(doc, doc.root, "MAIN_DATA", "MAIN_DATA")?;
    let kind = str_at(doc, main_data, "TYPE", "MAIN_DATA.TYPE")?;
    let data = doc.get(main_data, "DATA");
    let named = |name: &str| doc.str_is(kind, name);
    let kind = match () {
        _ if named(ForwardedType::FrameRendered.name()) => ForwardedType::FrameRendered,
        _ if named(ForwardedType::RenderCompleted.name()) => ForwardedType::RenderCompleted,
        _ if named("TEST") => {
            let data = data.map(|data| preview(doc, data)).unwrap_or_default();
            return Ok(UserMessage::Test { user_id: label(doc, user_id), data });
        }
        _ => return Ok(UserMessage::Other { user_id: label(doc, user_id), kind: label(doc, kind) }),
    };
    let data = data.ok_or_else(|| missing("MAIN_DATA.DATA", "a value"))?;
    let part = UserMessageParts { kind, data, user_id };
    let (format, body) = match kind {
        ForwardedType::FrameRendered => (Format::Pickle, message.to_pickle(|out| part.put_pickle(out))),
        ForwardedType::RenderCompleted => match part.to_json(doc) {
            Ok(body) => (Format::Json, body),
            Err(NoJson::TakesLonger) => return Err(DecodeError::TakesLonger),
            Err(NoJson::NoForm) => (Format::Pickle, message.to_pickle(|out| part.put_pickle(out))),
        },
    };
    Ok(UserMessage::Forward(OutgoingMessage { kind, user_id: label(doc, user_id), format, body }))
}

/// Reads what the communication interface has sent:
/// `{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": str, "BUFFER_MSG": any}}`.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_communication_interface_message(
    format: Format,
    body: impl Into<Body>,
) -> Result<CommunicationInterfaceMessage, DecodeError> {
    communication_interface_message(format, body.into(), Effort::Full)
}

pub(crate) fn communication_interface_message(
    format: Format,
    body: Body,
    effort: Effort,
) -> Result<CommunicationInterfaceMessage, DecodeError> {
    decoded(format, &Source::of(body), effort, to_be_buffered)
}

fn to_be_buffered(message: &Message) -> Result<CommunicationInterfaceMessage, DecodeError> {
    let doc = message.doc();
    let kind = str_at(doc, doc.root, "TYPE", "TYPE")?;
    if !doc.str_is(kind, "ADD_BUFFER_MSG") {
        return Err(DecodeError::UnknownMessageType);
    }
    let data = dict_at(doc, doc.root, "DATA", "DATA")?;
    let uuid = str_at(doc, data, "BUFFER_UUID", "DATA.BUFFER_UUID")?;
    let buffer_msg = doc.get(data, "BUFFER_MSG").ok_or_else(|| missing("DATA.BUFFER_MSG", "a value"))?;
    Ok(CommunicationInterfaceMessage { buffer_uuid: buffer_uuid(doc, uuid)?, message: message.keep(buffer_msg)? })
}

/// Reads a body, and makes a message of what it contains. If not all of the body could be read from the disk, that is
/// the result, whatever has been made of it.
fn decoded<T>(
    format: Format,
    source: &Source,
    effort: Effort,
    make: impl FnOnce(&Message) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let made = Message::read(format, source, effort).and_then(|message| make(&message));
    match source.failure() {
        Some(why) => Err(DecodeError::Unreadable(why)),
        None => made,
    }
}

impl ForwardedType {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            ForwardedType::FrameRendered => "FRAME_RENDERED",
            ForwardedType::RenderCompleted => "RENDER_COMPLETED",
        }
    }
}

/// A decoded message.
enum Message {
    Json(Doc),
    Pickle(Pickle),
}

impl Message {
    fn read(format: Format, body: &Source, effort: Effort) -> Result<Message, DecodeError> {
        if body.parts(0..body.len()).all(|part| part.trim_ascii().is_empty()) {
            return Err(DecodeError::Malformed(EMPTY.to_owned()));
        }
        let (read, name) = match format {
            Format::Json => (json::read(body, effort).map(Message::Json), "JSON"),
            Format::Pickle => (pickle::read(body, effort).map(Message::Pickle), "a pickle"),
        };
        read.map_err(|error| match error {
            DecodeError::Malformed(why) => {
                DecodeError::Malformed(match diagnose::remedy(format, &Sample::of(body, 0..body.len())) {
                    Some(remedy) => format!("{remedy} (as {name}: {why})"),
                    None => why,
                })
            }
            error => error,
        })
    }

    fn doc(&self) -> &Doc {
        match self {
            Message::Json(doc) => doc,
            Message::Pickle(pickle) => &pickle.doc,
        }
    }

    /// Writes a pickle of the value that `put` pushes.
    fn to_pickle(&self, put: impl FnOnce(&mut dyn Output)) -> Payload {
        match self {
            Message::Json(doc) => {
                let mut out = Writer::of(doc);
                put(&mut out);
                out.finish().payload()
            }
            Message::Pickle(pickle) => {
                let mut out = Splice::of(pickle);
                put(&mut out);
                out.finish().payload()
            }
        }
    }

    /// Makes a message to be delivered from a part of this one.
    fn keep(&self, part: NodeId) -> Result<BufferMsg, DecodeError> {
        let doc = self.doc();
        let Some(data) = asks_for_blend(doc, part) else {
            let pickle = self.to_pickle(|out| out.value(part));
            let sha256 = digest::of_short(&pickle);
            return Ok(BufferMsg { pickle, blend: None, sha256 });
        };
        let Some(edge) = doc.find(data, BLEND_FILE_KEY) else {
            return Ok(self.keep_without_blend(part));
        };
        let Some(path) = doc.text(doc.child(edge)).filter(|path| !path.is_empty()) else {
            return Ok(self.keep_without_blend(part));
        };
        if path.len() > MAX_BLEND_PATH_BYTES {
            let (len, bound) = (grouped(path.len()), grouped(MAX_BLEND_PATH_BYTES));
            return Err(DecodeError::Malformed(format!(
                "DATA.BUFFER_MSG.DATA.{BLEND_FILE_KEY} is a path of {len} bytes; at most {bound} are accepted"
            )));
        }
        let (pickle, offset) = match self {
            Message::Json(doc) => {
                let mut out = Writer::of(doc);
                out.leave_out(edge);
                out.value(part);
                let offset = out.placeholder_offset();
                (out.finish().payload(), offset)
            }
            Message::Pickle(pickle) => {
                let mut out = Splice::of(pickle);
                out.value(data);
                out.str(BLEND_FILE_KEY);
                let before = out.end_len();
                out.set_item();
                out.pop();
                out.value(part);
                let after = out.end_len() - before;
                let pieces = out.finish();
                // One byte follows what was put: STOP.
                let offset = pieces.len() - 1 - after;
                (pieces.payload(), offset)
            }
        };
        Ok(BufferMsg { pickle, blend: Some(BlendPlaceholder { offset, path: Some(path) }), sha256: None })
    }

    fn keep_without_blend(&self, part: NodeId) -> BufferMsg {
        let blend = BlendPlaceholder { offset: 0, path: None };
        BufferMsg { pickle: self.to_pickle(|out| out.value(part)), blend: Some(blend), sha256: None }
    }
}

/// The `DATA` of a message with a blend reference. `None` if the message has none.
fn asks_for_blend(doc: &Doc, message: NodeId) -> Option<NodeId> {
    let data = doc.get(message, "DATA")?;
    let meta_data = doc.get(data, "META_DATA")?;
    doc.str_is(meta_data, "EXTRACT_BLEND_FILE_FROM_PATH").then_some(data)
}

/// The parts of a worker's message that are forwarded.
struct UserMessageParts {
    kind: ForwardedType,
    data: NodeId,
    user_id: NodeId,
}

impl UserMessageParts {
    fn put_pickle(&self, out: &mut dyn Output) {
        out.empty_dict();
        put_item(out, "TYPE", |out| out.str("MESSAGE_FOR_USER_MANAGER"));
        put_item(out, "DATA", |out| {
            out.empty_dict();
            put_item(out, "TYPE", |out| out.str("USER_MESSAGE"));
            put_item(out, "DATA", |out| {
                out.empty_dict();
                put_item(out, "TYPE", |out| out.str(self.kind.name()));
                match self.kind {
                    ForwardedType::FrameRendered => put_item(out, "DATA", |out| out.value(self.data)),
                    ForwardedType::RenderCompleted => {
                        let memo = out.fresh_memo();
                        put_item(out, "DATA", |out| {
                            out.value(self.data);
                            out.memo_put(memo);
                        });
                        put_item(out, "MESSAGE", |out| out.memo_get(memo));
                    }
                }
                put_item(out, "USER_ID", |out| out.value(self.user_id));
            });
        });
    }

    fn to_json(&self, doc: &Doc) -> Result<Payload, NoJson> {
        let mut data = Pieces::of(&doc.source);
        json::write(doc, self.data, &mut data)?;
        let data = data.finish();
        let mut user_id = Pieces::of(&doc.source);
        json::write(doc, self.user_id, &mut user_id)?;

        let mut out = Pieces::of(&doc.source);
        out.put(br#"{"TYPE": "MESSAGE_FOR_USER_MANAGER", "DATA": {"TYPE": "USER_MESSAGE", "DATA": {"TYPE": ""#);
        out.put(self.kind.name().as_bytes());
        out.put(br#"", "DATA": "#);
        out.repeat(&data);
        if self.kind == ForwardedType::RenderCompleted {
            out.put(br#", "MESSAGE": "#);
            out.repeat(&data);
        }
        out.put(br#", "USER_ID": "#);
        out.repeat(&user_id.finish());
        out.put(b"}}}");
        Ok(out.payload())
    }
}

fn put_item(out: &mut dyn Output, key: &str, value: impl FnOnce(&mut dyn Output)) {
    out.str(key);
    value(out);
    out.set_item();
}

fn buffer_uuid(doc: &Doc, id: NodeId) -> Result<String, DecodeError> {
    let bound = grouped(MAX_BUFFER_UUID_BYTES);
    let wrong = || DecodeError::Malformed(format!("DATA.BUFFER_UUID must be a str of 1 to {bound} bytes of UTF-8"));
    let text: Option<String> =
        doc.code_points(id).into_iter().flatten().take(MAX_BUFFER_UUID_BYTES + 1).map(char::from_u32).collect();
    text.filter(|text| (1..=MAX_BUFFER_UUID_BYTES).contains(&text.len())).ok_or_else(wrong)
}

fn str_at(doc: &Doc, dict: NodeId, key: &str, path: &str) -> Result<NodeId, DecodeError> {
    at(doc, dict, key, path, "a str").and_then(|id| match doc.node(id).is_str() {
        true => Ok(id),
        false => Err(wrong_type(doc, id, path, "a str")),
    })
}

fn dict_at(doc: &Doc, dict: NodeId, key: &str, path: &str) -> Result<NodeId, DecodeError> {
    at(doc, dict, key, path, "a dict").and_then(|id| match doc.node(id).tag {
        Tag::Dict => Ok(id),
        _ => Err(wrong_type(doc, id, path, "a dict")),
    })
}

fn at(doc: &Doc, dict: NodeId, key: &str, path: &str, expected: &str) -> Result<NodeId, DecodeError> {
    if doc.node(dict).tag != Tag::Dict {
        return Err(match twice_encoded(doc, dict) {
            Some(why) => DecodeError::Malformed(format!("the body is {}; {why}", doc.node(dict).tag.type_name())),
            None => wrong_type(doc, dict, "the body", "a dict"),
        });
    }
    doc.get(dict, key).ok_or_else(|| missing(path, expected))
}

/// What is wrong with a str or bytes that contains an encoded message. `None` if it contains none.
fn twice_encoded(doc: &Doc, id: NodeId) -> Option<&'static str> {
    let node = doc.node(id);
    // A range from 0 belongs to bytes that a call makes. Their content is not in the source.
    let has_content = (node.is_str() || node.tag == Tag::Bytes) && node.range().start > 0;
    diagnose::twice_encoded(&has_content.then(|| Sample::of(&doc.source, node.range()))?)
}

fn missing(path: &str, expected: &str) -> DecodeError {
    DecodeError::Malformed(format!("{path} is missing; {expected} is expected"))
}

fn wrong_type(doc: &Doc, id: NodeId, path: &str, expected: &str) -> DecodeError {
    DecodeError::Malformed(format!("{path} is {}; {expected} is expected", doc.node(id).tag.type_name()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;
    use crate::body_file::{BodyDirectory, BodyFile};
    use crate::store::disk::SystemDisk;

    const JSON: &[u8] =
        br#"{"USER_ID": "u\u00e9", "MAIN_DATA": {"TYPE": "RENDER_COMPLETED", "DATA": [12, -1.5e3, "\\n", true]}}"#;

    /// With keys of several types, which have to be hashed, and values that are written as JSON.
    const PICKLE: &[u8] =
        b"}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c\x10RENDER_COMPLETED\x8c\x04DATA\
        ](}(I123\nK\x01L-45L\nK\x02\x8a\x09abcdefghiK\x03V\\u00e9\nN\x8c\x01aK\x04u0F1.5\nI123\n\
        \x8a\x05abcdeV\\u00e9\nS'\\x41'\n\x8c\x03\xe6\x97\xa5euu.";

    fn file(content: &[u8]) -> (Arc<BodyFile>, TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = BodyDirectory::new(Arc::new(SystemDisk), folder.path().to_owned()).create().expect("a file");
        file.append(content).expect("space");
        (file.finish(), folder)
    }

    fn shorten(file: &BodyFile, length: usize) {
        File::options().write(true).open(file.path()).and_then(|file| file.set_len(length as u64)).expect("a file");
    }

    fn body_of(posted: Result<PostedMessage, DecodeError>) -> Payload {
        match posted.expect("a message").message {
            UserMessage::Forward(message) => message.body,
            other => panic!("not forwarded: {other:?}"),
        }
    }

    #[test]
    fn a_read_that_fails_at_any_byte_says_nothing_about_the_message() {
        for (format, content) in [(Format::Json, JSON), (Format::Pickle, PICKLE)] {
            for (length, window) in (0..content.len()).flat_map(|length| [(length, 1), (length, 64)]) {
                let (file, _folder) = file(content);
                let source = Source::of(Body::File { file: file.clone(), window });
                shorten(&file, length);
                let posted = decoded(format, &source, Effort::Full, posted);
                assert!(matches!(posted, Err(DecodeError::Unreadable(_))), "{format} of {length} bytes: {posted:?}");
            }
        }
    }

    #[test]
    fn a_read_that_fails_when_the_message_is_written_is_not_overlooked() {
        for (format, content) in [(Format::Json, JSON), (Format::Pickle, PICKLE)] {
            let expected = body_of(posted_message(format, content.to_vec().into(), Effort::Full));
            let expected = expected.read_all().expect("in memory");
            let mut failed = 0;
            for length in 0..content.len() {
                let (file, _folder) = file(content);
                let source = Source::of(Body::File { file: file.clone(), window: 1 });
                let made = decoded(format, &source, Effort::Full, |message| {
                    shorten(&file, length);
                    posted(message)
                });
                match made {
                    Err(DecodeError::Unreadable(_)) => failed += 1,
                    made => assert_eq!(body_of(made).read_all().expect("in memory"), expected, "{format}: {length}"),
                }
            }
            assert!(failed > content.len() / 2, "{format}: only {failed} of {} reads failed", content.len());
        }
    }
}
