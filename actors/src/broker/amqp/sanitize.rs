//! Sanitizes what the broker sends, so that amiquip can read it.
//!
//! A publisher may put any bytes into properties, headers and the routing key. amiquip's parser (amq-protocol 1.4)
//! closes the connection because of a property that is not UTF-8, drops the headers after a header that is not, and
//! recurses into nested headers without a bound. The broker would redeliver such a poison message on every connection,
//! and no message behind it would ever be consumed. So [`Sanitized`] changes the frames before amiquip reads them,
//! without changing their length:
//!
//! - invalid bytes of a string become `?`;
//! - a header nested deeper than [`MAX_NESTING`] becomes a byte array, which has the same layout;
//! - the flags of a property that the frame is too short for, and of all later ones, are cleared;
//! - a heartbeat of 0 in `connection.tune` becomes [`HEARTBEAT_SECONDS`].
//!
//! All other frames pass unchanged. This file uses only the standard library, because the fuzz target includes it.

use std::io::{self, Read};

/// The heartbeat interval. amiquip ends a connection after two intervals without a byte, so it notices a dead peer
/// within 20 s.
pub(super) const HEARTBEAT_SECONDS: u16 = 10;

/// How deep headers may nest. amq-protocol recurses once for each level, on a stack of 2 MiB. RabbitMQ's own `x-death`
/// has 2 levels.
const MAX_NESTING: usize = 16;

/// A frame's type, channel and size.
const HEAD: usize = 7;
/// The byte after a frame's payload.
const END: usize = 1;
/// How many bytes of a frame are read at once, so that a large size in its head does not take memory by itself.
const CHUNK: usize = 64 << 10;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;

/// A part of a frame.
#[derive(Clone, Copy)]
enum Field {
    /// This many bytes.
    Fixed(usize),
    /// A length of one byte, then a string.
    Short,
    /// A length of four bytes, then a string.
    Long,
    /// A length of four bytes, then names and values.
    Table,
}
use Field::{Fixed, Long, Short, Table};

/// The methods with strings that a broker sends, by class and number.
const METHODS: &[(u16, u16, &[Field])] = &[
    (10, 10, &[Fixed(2), Table, Long, Long]),                // connection.start
    (10, 50, &[Fixed(2), Short, Fixed(4)]),                  // connection.close
    (10, 60, &[Short]),                                      // connection.blocked
    (20, 40, &[Fixed(2), Short, Fixed(4)]),                  // channel.close
    (50, 11, &[Short, Fixed(8)]),                            // queue.declare-ok
    (60, 21, &[Short]),                                      // basic.consume-ok
    (60, 30, &[Short, Fixed(1)]),                            // basic.cancel
    (60, 31, &[Short]),                                      // basic.cancel-ok
    (60, 50, &[Fixed(2), Short, Short, Short]),              // basic.return
    (60, 60, &[Short, Fixed(8), Fixed(1), Short, Short]),    // basic.deliver
    (60, 71, &[Fixed(8), Fixed(1), Short, Short, Fixed(4)]), // basic.get-ok
];
const CONNECTION_TUNE: (u16, u16) = (10, 30);
/// The range in the arguments of connection.tune, after the number of channels and the size of a frame.
const TUNE_HEARTBEAT: std::ops::Range<usize> = 6..8;

/// The properties of a message, in order. The first has the highest bit of the flags.
const PROPERTIES: [Field; 14] =
    [Short, Short, Table, Fixed(1), Fixed(1), Short, Short, Short, Short, Fixed(8), Short, Short, Short, Short];
/// The range in a content header, after the class, the weight and the size of the body.
const PROPERTY_FLAGS: std::ops::Range<usize> = 12..14;

/// A stream whose frames are sanitized as they are read.
///
/// Frames that may need it are buffered until they are complete, as amiquip does too. Nothing else is buffered, because
/// amiquip reads only when something arrives at the socket.
#[derive(Debug)]
pub(super) struct Sanitized<S> {
    pub(super) stream: S,
    /// How many bytes are missing from a frame that passes unchanged.
    passing: usize,
    /// The start of a frame; if it passes unchanged, at most its head.
    incomplete: Vec<u8>,
    /// Once the frame in `incomplete` is complete: how many of its bytes the caller has read.
    returned: Option<usize>,
}

impl<S> Sanitized<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, passing: 0, incomplete: Vec::new(), returned: None }
    }

    /// Sanitizes the complete frames in `bytes`, and buffers what follows them. Returns the length of the complete
    /// ones.
    fn sanitize(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let passed = self.passing.min(bytes.len() - at);
            self.passing -= passed;
            at += passed;
            let rest = &mut bytes[at..];
            match frame_len(rest) {
                _ if rest.is_empty() => {}
                Some(len) if !may_need_sanitizing(rest) => self.passing = len,
                Some(len) if len <= rest.len() => {
                    sanitize_frame(&mut rest[..len]);
                    at += len;
                }
                _ => {
                    self.incomplete.extend_from_slice(rest);
                    return at;
                }
            }
        }
        at
    }

    /// Copies from a frame that has become complete, if there is one.
    fn read_completed(&mut self, buf: &mut [u8]) -> Option<usize> {
        let returned = self.returned.as_mut()?;
        let rest = &self.incomplete[*returned..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        *returned += len;
        if *returned == self.incomplete.len() {
            self.incomplete.clear();
            self.returned = None;
        }
        Some(len)
    }

    /// Sanitizes the frame in `incomplete` if it is complete. Stops buffering one that passes unchanged.
    fn check_incomplete(&mut self) {
        match frame_len(&self.incomplete) {
            Some(len) if !may_need_sanitizing(&self.incomplete) => self.passing = len - self.incomplete.len(),
            Some(len) if len == self.incomplete.len() => sanitize_frame(&mut self.incomplete),
            _ => return,
        }
        self.returned = Some(0);
    }
}

impl<S: Read> Read for Sanitized<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(len) = self.read_completed(buf) {
                return Ok(len);
            }
            if self.incomplete.is_empty() {
                let len = self.stream.read(buf)?;
                match self.sanitize(&mut buf[..len]) {
                    0 if len > 0 => continue,
                    whole => return Ok(whole),
                }
            }
            // Reads no further than the end of this frame.
            let len = self.incomplete.len();
            let missing = frame_len(&self.incomplete).unwrap_or(HEAD) - len;
            self.incomplete.resize(len + missing.min(CHUNK), 0);
            let read = self.stream.read(&mut self.incomplete[len..]);
            self.incomplete.truncate(len + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Ok(0);
            }
            self.check_incomplete();
        }
    }
}

/// The length of the frame that starts here. `None` until its head is complete.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let size = bytes.get(3..HEAD)?;
    Some(HEAD + number(size) + END)
}

fn may_need_sanitizing(frame: &[u8]) -> bool {
    matches!(frame.first(), Some(&(METHOD | CONTENT_HEADER)))
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

fn sanitize_frame(frame: &mut [u8]) {
    let [kind, ..] = *frame else { return };
    let end = frame.len() - END;
    let payload = &mut frame[HEAD..end];
    match kind {
        METHOD => sanitize_method(payload),
        _ => sanitize_content_header(payload),
    }
}

fn sanitize_method(payload: &mut [u8]) {
    let Some((&mut [class, class_low, method, method_low], arguments)) = payload.split_first_chunk_mut() else {
        return;
    };
    let method = (u16::from_be_bytes([class, class_low]), u16::from_be_bytes([method, method_low]));
    if method == CONNECTION_TUNE
        && let Some(heartbeat) = arguments.get_mut(TUNE_HEARTBEAT)
        && number(heartbeat) == 0
    {
        heartbeat.copy_from_slice(&HEARTBEAT_SECONDS.to_be_bytes());
    }
    let known = METHODS.iter().find(|(class, number, _)| (*class, *number) == method);
    let mut rest = Some(arguments);
    for field in known.iter().flat_map(|(_, _, fields)| fields.iter()) {
        rest = rest.and_then(|rest| sanitize_field(*field, rest));
    }
}

fn sanitize_content_header(payload: &mut [u8]) {
    let Some((fixed, properties)) = payload.split_at_mut_checked(PROPERTY_FLAGS.end) else { return };
    let flags = &mut fixed[PROPERTY_FLAGS];
    let given = number(flags);
    let mut rest = properties;
    for (index, field) in PROPERTIES.into_iter().enumerate() {
        if given & 0x8000 >> index == 0 {
            continue;
        }
        match sanitize_field(field, rest) {
            Some(behind) => rest = behind,
            None => {
                let before = given as u16 & !(0xffff >> index);
                return flags.copy_from_slice(&before.to_be_bytes());
            }
        }
    }
}

/// Sanitizes the field at the start. Returns what follows it, or `None` if the frame ends before the field does.
fn sanitize_field(field: Field, bytes: &mut [u8]) -> Option<&mut [u8]> {
    let (content, rest) = match field {
        Fixed(len) => return bytes.get_mut(len..),
        Short => split(bytes, 1)?,
        Long | Table => split(bytes, 4)?,
    };
    match field {
        Table => sanitize_table(content, 0),
        _ => sanitize_text(content),
    }
    Some(rest)
}

/// Splits off a length of `width` bytes and the content of that length. Returns the content, and what follows it.
fn split(bytes: &mut [u8], width: usize) -> Option<(&mut [u8], &mut [u8])> {
    let (len, rest) = bytes.split_at_mut_checked(width)?;
    rest.split_at_mut_checked(number(len))
}

fn sanitize_table(bytes: &mut [u8], depth: usize) {
    let mut rest = bytes;
    while let Some((name, value)) = split(rest, 1) {
        sanitize_text(name);
        match sanitize_value(value, depth) {
            Some(behind) => rest = behind,
            None => return,
        }
    }
}

/// Sanitizes the value at the start; its first byte is its type. Returns what follows it, or `None` for a type of
/// unknown length, after which amq-protocol does not read on either.
fn sanitize_value(bytes: &mut [u8], depth: usize) -> Option<&mut [u8]> {
    let (kind, value) = bytes.split_first_mut()?;
    let len = match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        b'S' | b'x' | b'A' | b'F' => {
            let (content, rest) = split(value, 4)?;
            match kind {
                b'S' => sanitize_text(content),
                b'A' if depth < MAX_NESTING => sanitize_array(content, depth + 1),
                b'F' if depth < MAX_NESTING => sanitize_table(content, depth + 1),
                _ => *kind = b'x',
            }
            return Some(rest);
        }
        _ => return None,
    };
    value.get_mut(len..)
}

fn sanitize_array(bytes: &mut [u8], depth: usize) {
    let mut rest = Some(bytes);
    while let Some(bytes) = rest.take_if(|bytes| !bytes.is_empty()) {
        rest = sanitize_value(bytes, depth);
    }
}

fn sanitize_text(bytes: &mut [u8]) {
    let mut from = 0;
    while let Err(error) = str::from_utf8(&bytes[from..]) {
        let invalid = from + error.valid_up_to();
        from = error.error_len().map_or(bytes.len(), |len| invalid + len);
        bytes[invalid..from].fill(b'?');
    }
}
