//! What a broker sends is the same to amiquip however it arrives, as long as it was, and its message headers are always
//! readable.

use std::io::Read;

use amq_protocol::frame::AMQPFrame;
use amq_protocol::frame::parsing::parse_frame;

#[path = "../../actors/src/broker/amqp/sanitize.rs"]
mod sanitize;

/// Class, weight, size of the body and flags of a message's header.
const FIXED: usize = 14;

/// A stream that gives at most so much at once.
struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = buf.len().min(self.size).min(self.bytes.len());
        self.bytes.read(&mut buf[..len])
    }
}

fn read(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut all = Vec::new();
    sanitize::Sanitized::new(Pieces { bytes, size }).read_to_end(&mut all).expect("no errors come of it");
    all
}

/// The bytes are a stream once, and the properties of a message another time.
pub fn check(data: &[u8]) {
    let whole = read(data, usize::MAX);
    assert!(whole.len() <= data.len());
    for size in [1, 3, 8] {
        assert_eq!(read(data, size), whole);
    }

    let payload = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], data].concat();
    let frame = [&[2, 0, 1][..], &(payload.len() as u32).to_be_bytes(), &payload, &[0xce]].concat();
    let sanitized = read(&frame, usize::MAX);
    assert_eq!(sanitized.len(), frame.len());
    assert_eq!(read(&sanitized, 5), sanitized, "what is sanitized needs no sanitizing");
    if payload.len() >= FIXED {
        assert!(matches!(parse_frame(&sanitized), Ok((&[], AMQPFrame::Header(1, 60, _)))), "{sanitized:?}");
    }
}
