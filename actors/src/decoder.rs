//! `Decoder`: decodes large bodies on a few threads that it keeps.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use actix::prelude::*;
use bytes::Bytes;

use crate::codec::{DecodeError, Format};
use crate::error::Error;

/// Bodies longer than this are decoded on a thread that may take its time. Up to here it takes less than the way
/// to another thread and back, about 20 µs, at some GB/s.
const DECODE_IN_PLACE: usize = 64 << 10;

/// Decodes bodies, as many at once as there are cores; the others wait in its mailbox.
///
/// What a body is decoded into may take many times its length for a moment, within the codec's bounds. So the number of
/// threads bounds that memory.
#[derive(Debug)]
pub struct Decoder(());

impl Decoder {
    /// Starts the threads.
    pub fn start() -> Addr<Self> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        SyncArbiter::start(threads, || Self(()))
    }
}

impl Actor for Decoder {
    type Context = SyncContext<Self>;
}

/// To [`Decoder`]: decode this body. The reply is none where that has panicked, which it must not; a thread that ended
/// over it would be missing from then on.
#[derive(Message)]
#[rtype(result = "Option<Result<T, DecodeError>>")]
struct Decode<T: Send + 'static> {
    format: Format,
    body: Bytes,
    with: fn(Format, Bytes) -> Result<T, DecodeError>,
}

impl<T: Send + 'static> Handler<Decode<T>> for Decoder {
    type Result = Option<Result<T, DecodeError>>;

    fn handle(&mut self, Decode { format, body, with }: Decode<T>, _: &mut Self::Context) -> Self::Result {
        // nothing that it works on outlives it
        catch_unwind(AssertUnwindSafe(|| with(format, body))).ok()
    }
}

/// Decodes a body: a small one here, a large one on a thread of `decoder`.
pub(crate) async fn decode<T: Send + 'static>(
    decoder: &Addr<Decoder>,
    format: Format,
    body: Bytes,
    with: fn(Format, Bytes) -> Result<T, DecodeError>,
) -> Result<T, Error> {
    if body.len() <= DECODE_IN_PLACE {
        return Ok(with(format, body)?);
    }
    let decoded = decoder.send(Decode { format, body, with }).await?;
    Ok(decoded.ok_or(Error::Stopping)??)
}
