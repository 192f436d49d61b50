//! Tests of `sanitize`. A file of their own, because the fuzz target includes `sanitize.rs`.

use std::io::{self, Read};

use amq_protocol::frame::AMQPFrame;
use amq_protocol::frame::parsing::parse_frame;
use amq_protocol::protocol::{AMQPClass, basic};
use amq_protocol::types::AMQPValue;
use proptest::prelude::*;

use super::sanitize::{HEARTBEAT_SECONDS, Sanitized};

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;

/// A stream whose reads return as many bytes as a list says, over and over; 0 in the list is `WouldBlock`.
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

/// What amiquip reads if `bytes` arrive in pieces of `sizes`, with a buffer of `capacity`.
fn read(bytes: &[u8], sizes: &[usize], capacity: usize) -> Vec<u8> {
    let mut stream = Sanitized::new(Pieces { bytes, sizes: sizes.iter().cycle() });
    let (mut all, mut buf) = (Vec::new(), vec![0; capacity]);
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return all,
            Ok(len) => all.extend_from_slice(&buf[..len]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
}

fn sanitized(frame: &[u8]) -> Vec<u8> {
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
    let properties = properties(&sanitized(&content_header(0xf080, &given)));
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
    let properties = properties(&sanitized(&content_header(0x2000, &long(&headers))));
    let headers = properties.headers().clone().expect("headers");
    assert_eq!(headers["DATA_FORMAT"], AMQPValue::LongString("BYTES".to_owned()));
}

#[test]
fn a_routing_key_that_is_not_utf_8_is_readable() {
    let method = [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b"ex\xff"), &short(b"k\xfey")].concat();
    match parse_frame(&sanitized(&frame(METHOD, &method))) {
        Ok((&[], AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))))) => {
            assert_eq!((deliver.exchange.as_str(), deliver.routing_key.as_str()), ("ex?", "k?y"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_broker_that_proposes_no_heartbeats_seems_to_propose_them() {
    let tune =
        |heartbeat: u16| frame(METHOD, &[&[0, 10, 0, 30, 7, 255, 0, 2, 0, 0][..], &heartbeat.to_be_bytes()].concat());
    assert_eq!(sanitized(&tune(0)), tune(HEARTBEAT_SECONDS));
    assert_eq!(sanitized(&tune(60)), tune(60));
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
        capacity in 1usize..50,
    ) {
        prop_assume!(sizes.iter().any(|size| *size > 0));
        let whole = sanitized(&bytes);
        prop_assert_eq!(&read(&bytes, &sizes, capacity), &whole);
        let mut rest = &whole[..];
        while !rest.is_empty() {
            match parse_frame(rest) {
                Ok((behind, _)) => rest = behind,
                Err(error) => panic!("{error:?}"),
            }
        }
        prop_assert_eq!(sanitized(&whole), whole, "what is sanitized needs no sanitizing");
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
        prop_assert_eq!(sanitized(&frames), frames);
    }
}
