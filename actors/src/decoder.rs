//! `Decoder`: decodes large or slow bodies on a thread pool.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use actix::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::codec::{Body, DecodeError, Effort, Format};
use crate::error::Error;

/// Bodies longer than this, in bytes, are decoded on the thread pool, and so are shorter ones that turn out to take
/// long. Most bodies up to this length take less time than two thread switches, about 20 µs.
const DECODE_IN_PLACE: usize = 64 << 10;

/// How many bodies may wait for a thread or be decoded. Their memory is bounded where they are received; this bounds
/// how long they wait. One MiB takes about a millisecond, and up to some hundred if it is crafted to be slow. Further
/// senders get [`Error::DecoderFull`] and may try again later.
const MAX_WAITING: usize = 1_024;

/// Decodes bodies on as many threads as there are cores; up to 1,024 bodies wait. Clones share the threads.
///
/// While it is decoded, a body may need many times its length in memory, within the codec's bounds. The number of
/// threads bounds that memory.
#[derive(Clone, Debug)]
pub struct Decoder {
    threads: Addr<PoolThread>,
    permits: Arc<Semaphore>,
}

impl Decoder {
    /// Starts the threads.
    pub fn start() -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        Self { threads: SyncArbiter::start(threads, || PoolThread), permits: Arc::new(Semaphore::new(MAX_WAITING)) }
    }

    /// Decodes a body: on the caller's thread if that is quick, otherwise on the pool. A body in a file is always
    /// decoded on the pool, because reading the file blocks.
    pub(crate) async fn decode<T: Send + 'static>(
        &self,
        format: Format,
        body: Body,
        with: fn(Format, Body, Effort) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        if let Body::Memory(bytes) = &body
            && bytes.len() <= DECODE_IN_PLACE
        {
            match with(format, body.clone(), Effort::Brief) {
                Err(DecodeError::TakesLonger) => {}
                decoded => return Ok(decoded?),
            }
        }
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| Error::DecoderFull { limit: MAX_WAITING })?;
        let decoded = self.threads.send(Decode { format, body, with, _permit: permit }).await?;
        Ok(decoded.ok_or(Error::Stopping)??)
    }
}

/// One thread of the pool.
struct PoolThread;

impl Actor for PoolThread {
    type Context = SyncContext<Self>;
}

/// To [`PoolThread`]: decode this body. The reply is `None` if decoding panicked (a bug). The panic is caught because a
/// dead pool thread is not replaced.
#[derive(Message)]
#[rtype(result = "Option<Result<T, DecodeError>>")]
struct Decode<T: Send + 'static> {
    format: Format,
    body: Body,
    with: fn(Format, Body, Effort) -> Result<T, DecodeError>,
    /// Released when the body is decoded, even if nobody waits for the reply any more.
    _permit: OwnedSemaphorePermit,
}

impl<T: Send + 'static> Handler<Decode<T>> for PoolThread {
    type Result = Option<Result<T, DecodeError>>;

    fn handle(&mut self, message: Decode<T>, _: &mut Self::Context) -> Self::Result {
        let Decode { format, body, with, _permit } = message;
        // Unwind safe: a panic drops all values that it leaves incomplete.
        catch_unwind(AssertUnwindSafe(|| with(format, body, Effort::Full))).ok()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn not_brief(_: Format, _: Body, effort: Effort) -> Result<(), DecodeError> {
        match effort {
            Effort::Brief => Err(DecodeError::TakesLonger),
            Effort::Full => Ok(()),
        }
    }

    #[test]
    fn a_body_beyond_the_queue_is_refused_and_accepted_once_the_queue_is_shorter() {
        System::new().block_on(async {
            let decoder = Decoder::start();
            let all = decoder.permits.clone().try_acquire_many_owned(MAX_WAITING as u32).expect("all permits");
            let refused = decoder.decode(Format::Json, Bytes::new().into(), not_brief).await;
            assert!(matches!(refused, Err(Error::DecoderFull { limit: MAX_WAITING })), "{refused:?}");
            drop(all);
            decoder.decode(Format::Json, Bytes::new().into(), not_brief).await.expect("a permit is free");
            assert_eq!(decoder.permits.available_permits(), MAX_WAITING);
        });
    }
}
