//! What the broker sends, made readable for amiquip.
//!
//! Whoever publishes may put any bytes into what AMQP passes on: properties, headers, the routing key. The parser below
//! amiquip (amq-protocol 1.4) gives the connection up over a property that is not UTF-8, drops the headers behind one,
//! and follows nested headers without a bound. Such a message would come again on every connection, and nothing behind
//! it would ever be consumed. So [`Mended`] changes the frames on their way to amiquip, none of them in its length:
//!
//! - invalid bytes of a string become `?`;
//! - a header nested deeper than [`MAX_NESTING`] becomes a byte array, which has the same form;
//! - a property that the frame has no room for, and those behind it, are left out;
//! - a broker that proposes no heartbeats is taken to propose [`HEARTBEAT_SECONDS`].
//!
//! What needs none of this passes as it is. This file uses the standard library alone: the fuzz target includes it.

use std::io::{self, Read};

/// The longest silence between two signs of life, in seconds. amiquip gives a connection up after two of them without a
/// byte, so a dead peer is noticed within 20 s.
pub(super) const HEARTBEAT_SECONDS: u16 = 10;

/// How deep headers nest. Each level is a recursion of amq-protocol's on a stack of 2 MiB; RabbitMQ's own `x-death` has
/// 2 levels.
const MAX_NESTING: usize = 16;

/// A frame's type, channel and size.
const HEAD: usize = 7;
/// The byte behind a frame's payload.
const END: usize = 1;
/// How much of a frame is asked for at once, so that a size alone takes no memory.
const CHUNK: usize = 64 << 10;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;

/// A part of a frame.
#[derive(Clone, Copy)]
enum Field {
    /// So many bytes.
    Fixed(usize),
    /// A string behind a length of one byte.
    Short,
    /// A string behind a length of four bytes.
    Long,
    /// Names and values behind a length of four bytes.
    Table,
}
use Field::{Fixed, Long, Short, Table};

/// The methods that a broker sends and that have strings, by class and number.
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
/// In the arguments of connection.tune, behind the number of channels and the size of a frame.
const TUNE_HEARTBEAT: std::ops::Range<usize> = 6..8;

/// The properties of a message in their order; the first has the highest bit of the flags.
const PROPERTIES: [Field; 14] =
    [Short, Short, Table, Fixed(1), Fixed(1), Short, Short, Short, Short, Fixed(8), Short, Short, Short, Short];
/// Behind the class, the weight and the size of the body.
const PROPERTY_FLAGS: std::ops::Range<usize> = 12..14;

/// A stream whose frames are mended as they are read.
///
/// Frames that may need it are held back until they are whole, which is what amiquip does with them too. Nothing else
/// stays here: amiquip reads only when something arrives at the socket.
#[derive(Debug)]
pub(super) struct Mended<S> {
    pub(super) stream: S,
    /// How much is still to come of a frame that passes as it is.
    passing: usize,
    /// The beginning of a frame; of one that passes as it is, at most its head.
    held: Vec<u8>,
    /// How much of `held` has been handed on, once it is ready for that.
    handed: Option<usize>,
}

impl<S> Mended<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, passing: 0, held: Vec::new(), handed: None }
    }

    /// Mends the frames in `bytes`. Returns how many bytes can be handed on; those behind them are held back.
    fn mend(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let passed = self.passing.min(bytes.len() - at);
            self.passing -= passed;
            at += passed;
            let rest = &mut bytes[at..];
            match frame_len(rest) {
                _ if rest.is_empty() => {}
                Some(len) if !may_need_mending(rest) => self.passing = len,
                Some(len) if len <= rest.len() => {
                    mend_frame(&mut rest[..len]);
                    at += len;
                }
                _ => {
                    self.held.extend_from_slice(rest);
                    return at;
                }
            }
        }
        at
    }

    /// Hands on what is ready, if anything is.
    fn hand_on(&mut self, buf: &mut [u8]) -> Option<usize> {
        let handed = self.handed.as_mut()?;
        let rest = &self.held[*handed..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        *handed += len;
        if *handed == self.held.len() {
            self.held.clear();
            self.handed = None;
        }
        Some(len)
    }

    /// The frame in `held` may be whole, or be one that passes as it is.
    fn look_at_held(&mut self) {
        match frame_len(&self.held) {
            Some(len) if !may_need_mending(&self.held) => self.passing = len - self.held.len(),
            Some(len) if len == self.held.len() => mend_frame(&mut self.held),
            _ => return,
        }
        self.handed = Some(0);
    }
}

impl<S: Read> Read for Mended<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(len) = self.hand_on(buf) {
                return Ok(len);
            }
            if self.held.is_empty() {
                let len = self.stream.read(buf)?;
                match self.mend(&mut buf[..len]) {
                    0 if len > 0 => continue,
                    whole => return Ok(whole),
                }
            }
            // no more than belongs to this frame
            let held = self.held.len();
            let missing = frame_len(&self.held).unwrap_or(HEAD) - held;
            self.held.resize(held + missing.min(CHUNK), 0);
            let read = self.stream.read(&mut self.held[held..]);
            self.held.truncate(held + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Ok(0);
            }
            self.look_at_held();
        }
    }
}

/// The length of the frame that begins here, once its head is there.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let size = bytes.get(3..HEAD)?;
    Some(HEAD + number(size) + END)
}

fn may_need_mending(frame: &[u8]) -> bool {
    matches!(frame.first(), Some(&(METHOD | CONTENT_HEADER)))
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

fn mend_frame(frame: &mut [u8]) {
    let [kind, ..] = *frame else { return };
    let end = frame.len() - END;
    let payload = &mut frame[HEAD..end];
    match kind {
        METHOD => mend_method(payload),
        _ => mend_content_header(payload),
    }
}

fn mend_method(payload: &mut [u8]) {
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
        rest = rest.and_then(|rest| mend_field(*field, rest));
    }
}

fn mend_content_header(payload: &mut [u8]) {
    let Some((fixed, properties)) = payload.split_at_mut_checked(PROPERTY_FLAGS.end) else { return };
    let flags = &mut fixed[PROPERTY_FLAGS];
    let given = number(flags);
    let mut rest = properties;
    for (place, field) in PROPERTIES.into_iter().enumerate() {
        if given & 0x8000 >> place == 0 {
            continue;
        }
        match mend_field(field, rest) {
            Some(behind) => rest = behind,
            None => {
                let before = given as u16 & !(0xffff >> place);
                return flags.copy_from_slice(&before.to_be_bytes());
            }
        }
    }
}

/// Mends the field at the beginning. Returns what is behind it, where it ends before the frame does.
fn mend_field(field: Field, bytes: &mut [u8]) -> Option<&mut [u8]> {
    let (content, rest) = match field {
        Fixed(len) => return bytes.get_mut(len..),
        Short => split(bytes, 1)?,
        Long | Table => split(bytes, 4)?,
    };
    match field {
        Table => mend_table(content, 0),
        _ => mend_text(content),
    }
    Some(rest)
}

/// What is behind a length of `width` bytes and is that long, and the rest.
fn split(bytes: &mut [u8], width: usize) -> Option<(&mut [u8], &mut [u8])> {
    let (len, rest) = bytes.split_at_mut_checked(width)?;
    rest.split_at_mut_checked(number(len))
}

fn mend_table(bytes: &mut [u8], depth: usize) {
    let mut rest = bytes;
    while let Some((name, value)) = split(rest, 1) {
        mend_text(name);
        match mend_value(value, depth) {
            Some(behind) => rest = behind,
            None => return,
        }
    }
}

/// Mends the value at the beginning, its type first. Returns what is behind it; nothing where that cannot be told, and
/// amiquip does not read on either.
fn mend_value(bytes: &mut [u8], depth: usize) -> Option<&mut [u8]> {
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
                b'S' => mend_text(content),
                b'A' if depth < MAX_NESTING => mend_array(content, depth + 1),
                b'F' if depth < MAX_NESTING => mend_table(content, depth + 1),
                _ => *kind = b'x',
            }
            return Some(rest);
        }
        _ => return None,
    };
    value.get_mut(len..)
}

fn mend_array(bytes: &mut [u8], depth: usize) {
    let mut rest = Some(bytes);
    while let Some(bytes) = rest.take_if(|bytes| !bytes.is_empty()) {
        rest = mend_value(bytes, depth);
    }
}

fn mend_text(bytes: &mut [u8]) {
    let mut from = 0;
    while let Err(error) = str::from_utf8(&bytes[from..]) {
        let invalid = from + error.valid_up_to();
        from = error.error_len().map_or(bytes.len(), |len| invalid + len);
        bytes[invalid..from].fill(b'?');
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::frame::AMQPFrame;
    use amq_protocol::frame::parsing::parse_frame;
    use amq_protocol::protocol::{AMQPClass, basic};
    use amq_protocol::types::AMQPValue;
    use proptest::prelude::*;

    use super::*;

    /// A stream that gives as much at once as a list says, over and over, and in between has nothing for now.
    struct Pieces<'a> {
        bytes: &'a [u8],
        sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let size = self.sizes.next().copied().unwrap_or(0);
            if size == 0 && !self.bytes.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let len = size.min(buf.len()).min(self.bytes.len());
            self.bytes.read(&mut buf[..len])
        }
    }

    /// What amiquip reads of `bytes` that come in pieces of `sizes`, into a buffer of `room`.
    fn read(bytes: &[u8], sizes: &[usize], room: usize) -> Vec<u8> {
        let mut stream = Mended::new(Pieces { bytes, sizes: sizes.iter().cycle() });
        let (mut all, mut buf) = (Vec::new(), vec![0; room]);
        loop {
            match stream.read(&mut buf) {
                Ok(0) => return all,
                Ok(len) => all.extend_from_slice(&buf[..len]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    fn mended(frame: &[u8]) -> Vec<u8> {
        let read = read(frame, &[frame.len()], frame.len());
        assert_eq!(read.len(), frame.len());
        read
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, 0, 1][..], &(payload.len() as u32).to_be_bytes(), payload, &[0xce]].concat()
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[text.len() as u8], text].concat()
    }

    fn long(content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32).to_be_bytes()[..], content].concat()
    }

    fn content_header(flags: u16, properties: &[u8]) -> Vec<u8> {
        frame(CONTENT_HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..], &flags.to_be_bytes(), properties].concat())
    }

    fn properties(frame: &[u8]) -> basic::AMQPProperties {
        match parse_frame(frame) {
            Ok((&[], AMQPFrame::Header(1, 60, header))) => header.properties,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn properties_that_are_not_utf_8_are_readable_and_the_headers_behind_them_are_there() {
        let headers = [
            short(b"n\xe4me"),
            [b"S".to_vec(), long(b"\xff\xfe caf\xc3\xa9 \xc3")].concat(),
            short(b"list"),
            [b"A".to_vec(), long(&[b"S".to_vec(), long(b"\x80")].concat())].concat(),
            short(b"DATA_FORMAT"),
            [b"x".to_vec(), long(b"BYTES\xff")].concat(),
        ];
        let given = [short(b"text/\xff"), short(b"\xe9"), long(&headers.concat()), vec![2], short(b"id")].concat();
        let properties = properties(&mended(&content_header(0xf080, &given)));
        assert_eq!(properties.content_type().as_deref(), Some("text/?"));
        assert_eq!(properties.content_encoding().as_deref(), Some("?"));
        assert_eq!(properties.message_id().as_deref(), Some("id"));
        let headers = properties.headers().clone().expect("headers");
        assert_eq!(headers["n?me"], AMQPValue::LongString("?? café ?".to_owned()));
        assert_eq!(headers["list"], AMQPValue::FieldArray(vec![AMQPValue::LongString("?".to_owned())]));
        assert_eq!(headers["DATA_FORMAT"], AMQPValue::ByteArray(b"BYTES\xff".to_vec()));
    }

    #[test]
    fn headers_that_nest_without_end_are_no_danger() {
        let mut value = b"V".to_vec();
        for level in 0..20_000 {
            value = match level % 2 {
                0 => [b"A".to_vec(), long(&value)].concat(),
                _ => [b"F".to_vec(), long(&[short(b"k"), value].concat())].concat(),
            };
        }
        let headers = [short(b"deep"), value, short(b"DATA_FORMAT"), [b"S".to_vec(), long(b"BYTES")].concat()].concat();
        let properties = properties(&mended(&content_header(0x2000, &long(&headers))));
        let headers = properties.headers().clone().expect("headers");
        assert_eq!(headers["DATA_FORMAT"], AMQPValue::LongString("BYTES".to_owned()));
    }

    #[test]
    fn a_routing_key_that_is_not_utf_8_is_readable() {
        let method = [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b"ex\xff"), &short(b"k\xfey")].concat();
        match parse_frame(&mended(&frame(METHOD, &method))) {
            Ok((&[], AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))))) => {
                assert_eq!((deliver.exchange.as_str(), deliver.routing_key.as_str()), ("ex?", "k?y"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_broker_that_proposes_no_heartbeats_seems_to_propose_them() {
        let tune = |heartbeat: u16| {
            frame(METHOD, &[&[0, 10, 0, 30, 7, 255, 0, 2, 0, 0][..], &heartbeat.to_be_bytes()].concat())
        };
        assert_eq!(mended(&tune(0)), tune(HEARTBEAT_SECONDS));
        assert_eq!(mended(&tune(60)), tune(60));
    }

    /// Strings of all kinds, some of which are UTF-8.
    fn text(max: usize) -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![proptest::collection::vec(any::<u8>(), 0..max), "\\PC{0,20}".prop_map(String::into_bytes),]
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            Just(b"V".to_vec()),
            any::<u8>().prop_map(|byte| vec![b't', byte]),
            any::<u64>().prop_map(|number| [b"T".to_vec(), number.to_be_bytes().to_vec()].concat()),
            any::<u32>().prop_map(|number| [b"I".to_vec(), number.to_be_bytes().to_vec()].concat()),
            text(40).prop_map(|text| [b"S".to_vec(), long(&text)].concat()),
            text(40).prop_map(|text| [b"x".to_vec(), long(&text)].concat()),
        ];
        leaf.prop_recursive(20, 60, 3, |inner| {
            let entry = (text(10), inner.clone()).prop_map(|(name, value)| [short(&name), value].concat());
            prop_oneof![
                proptest::collection::vec(inner, 0..3).prop_map(|all| [b"A".to_vec(), long(&all.concat())].concat()),
                proptest::collection::vec(entry, 0..3).prop_map(|all| [b"F".to_vec(), long(&all.concat())].concat()),
            ]
        })
    }

    /// Frames as a broker sends them, whatever others have put into them.
    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let entry = (text(20), value()).prop_map(|(name, value)| [short(&name), value].concat());
        let header =
            (text(100), proptest::collection::vec(entry, 0..4), text(100)).prop_map(|(content_type, headers, id)| {
                content_header(0xa080, &[short(&content_type), long(&headers.concat()), short(&id)].concat())
            });
        let broken = (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(flags, properties)| content_header(flags, &properties));
        let deliver = (text(100), text(100)).prop_map(|(exchange, key)| {
            let method = [&[0, 60, 0, 60, 0][..], &[0; 9], &short(&exchange), &short(&key)].concat();
            frame(METHOD, &method)
        });
        let body = proptest::collection::vec(any::<u8>(), 0..300).prop_map(|body| frame(3, &body));
        let beat = Just(frame(8, b""));
        proptest::collection::vec(prop_oneof![header, broken, deliver, body, beat], 1..6).prop_map(|all| all.concat())
    }

    proptest! {
        #[test]
        fn the_same_comes_out_however_it_arrives_and_is_always_readable(
            bytes in frames(),
            sizes in proptest::collection::vec(0usize..40, 1..8),
            room in 1usize..50,
        ) {
            prop_assume!(sizes.iter().any(|size| *size > 0));
            let whole = mended(&bytes);
            prop_assert_eq!(&read(&bytes, &sizes, room), &whole);
            let mut rest = &whole[..];
            while !rest.is_empty() {
                match parse_frame(rest) {
                    Ok((behind, _)) => rest = behind,
                    Err(error) => panic!("{error:?}"),
                }
            }
            prop_assert_eq!(mended(&whole), whole, "what is mended needs no mending");
        }

        #[test]
        fn any_bytes_keep_their_number(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..20) {
            let whole = read(&bytes, &[1_000], 1_000);
            prop_assert!(whole.len() <= bytes.len());
            prop_assert_eq!(read(&bytes, &[size], 7), whole);
        }

        #[test]
        fn what_is_utf_8_passes_as_it_is(
            content_type in "\\PC{0,30}", name in "\\PC{0,20}", value in "\\PC{0,60}", body in any::<[u8; 20]>(),
        ) {
            let headers = [short(name.as_bytes()), [b"S".to_vec(), long(value.as_bytes())].concat()].concat();
            let header = content_header(0xa000, &[short(content_type.as_bytes()), long(&headers)].concat());
            let frames = [header, frame(3, &body)].concat();
            prop_assert_eq!(mended(&frames), frames);
        }
    }
}
