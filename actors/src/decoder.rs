//! `Decoder`: decodes bodies that take their time on a few threads that it keeps.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::codec::{DecodeError, Effort, Format};
use crate::error::Error;

/// Bodies longer than this are decoded on a thread that may take its time, as are shorter ones that turn out to take
/// longer than they should. Up to here it takes less than the way to another thread and back, about 20 µs, at some
/// GB/s.
const DECODE_IN_PLACE: usize = 64 << 10;

/// How many bodies wait for a thread, or are on one. What they have in memory is bounded by who received them; this
/// bounds how long one waits: a MiB takes a millisecond, and hundreds of them if it is made to. Beyond, the sender is
/// asked to come back later.
const MAX_WAITING: usize = 1_024;

/// Decodes bodies, as many at once as there are cores; up to 1,024 wait. Clones are the same.
///
/// What a body is decoded into may take many times its length for a moment, within the codec's bounds. So the number of
/// threads bounds that memory.
#[derive(Clone, Debug)]
pub struct Decoder {
    threads: Addr<Worker>,
    room: Arc<Semaphore>,
}

impl Decoder {
    /// Starts the threads.
    pub fn start() -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        Self { threads: SyncArbiter::start(threads, || Worker), room: Arc::new(Semaphore::new(MAX_WAITING)) }
    }

    /// Decodes a body: here if that takes no time, else on a thread.
    pub(crate) async fn decode<T: Send + 'static>(
        &self,
        format: Format,
        body: Bytes,
        with: fn(Format, Bytes, Effort) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        if body.len() <= DECODE_IN_PLACE {
            match with(format, body.clone(), Effort::Brief) {
                Err(DecodeError::TakesLonger) => {}
                decoded => return Ok(decoded?),
            }
        }
        let room = self.room.clone().try_acquire_owned().map_err(|_| Error::DecoderFull { limit: MAX_WAITING })?;
        let decoded = self.threads.send(Decode { format, body, with, _room: room }).await?;
        Ok(decoded.ok_or(Error::Stopping)??)
    }
}

/// One of the threads.
struct Worker;

impl Actor for Worker {
    type Context = SyncContext<Self>;
}

/// To [`Worker`]: decode this body. The reply is none where that has panicked, which it must not; a thread that ended
/// over it would be missing from then on.
#[derive(Message)]
#[rtype(result = "Option<Result<T, DecodeError>>")]
struct Decode<T: Send + 'static> {
    format: Format,
    body: Bytes,
    with: fn(Format, Bytes, Effort) -> Result<T, DecodeError>,
    /// Until it is decoded, whether or not anybody waits for that.
    _room: OwnedSemaphorePermit,
}

impl<T: Send + 'static> Handler<Decode<T>> for Worker {
    type Result = Option<Result<T, DecodeError>>;

    fn handle(&mut self, message: Decode<T>, _: &mut Self::Context) -> Self::Result {
        let Decode { format, body, with, _room } = message;
        // nothing that it works on outlives it
        catch_unwind(AssertUnwindSafe(|| with(format, body, Effort::Full))).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_brief(_: Format, _: Bytes, effort: Effort) -> Result<(), DecodeError> {
        match effort {
            Effort::Brief => Err(DecodeError::TakesLonger),
            Effort::Full => Ok(()),
        }
    }

    #[test]
    fn what_is_beyond_the_queue_is_refused_and_has_room_again_later() {
        System::new().block_on(async {
            let decoder = Decoder::start();
            let all = decoder.room.clone().try_acquire_many_owned(MAX_WAITING as u32).expect("all the room");
            let refused = decoder.decode(Format::Json, Bytes::new(), not_brief).await;
            assert!(matches!(refused, Err(Error::DecoderFull { limit: MAX_WAITING })), "{refused:?}");
            drop(all);
            decoder.decode(Format::Json, Bytes::new(), not_brief).await.expect("room");
            assert_eq!(decoder.room.available_permits(), MAX_WAITING);
        });
    }
}
