//! The SHA-256 of a buffered message, computed at most once.

use std::io;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::spawn_blocking;

use crate::payload::Payload;

/// The longest message, in bytes, that is hashed when it is decoded: 17 µs with the processor's SHA instructions (1 GiB
/// takes 1.1 s). A longer one is hashed on another thread when it is first delivered.
const MAX_HASHED_AT_ONCE: u64 = 16 << 10;

/// The longest message, in bytes, that is hashed without a permit: 1.1 ms with the processor's SHA instructions. So no
/// short message waits for a long one.
const MAX_WITHOUT_PERMIT: u64 = 1 << 20;

/// A SHA-256.
pub type Sha256Digest = [u8; 32];

/// The SHA-256 of a message: known, or computed when somebody first asks for it. Clones share the result.
#[derive(Clone, Debug)]
pub enum MessageDigest {
    /// It is known.
    Known(Sha256Digest),
    /// It is computed on demand.
    Lazy(Arc<LazyDigest>),
}

/// A digest that is computed when somebody first asks for it.
#[derive(Debug, Default)]
pub struct LazyDigest {
    digest: OnceLock<Sha256Digest>,
    /// Locked while it is computed, so that those who ask meanwhile wait for the same result.
    computing: Arc<Mutex<()>>,
}

impl MessageDigest {
    /// One that is computed on demand.
    pub(crate) fn lazy() -> Self {
        Self::Lazy(Arc::default())
    }

    /// The digest of the message, which is `payload`. Waits for one of `permits` if it must be computed and the message
    /// has more than 1 MiB.
    ///
    /// # Errors
    /// The message cannot be read.
    pub async fn get(&self, payload: &Payload, permits: &Arc<Semaphore>) -> io::Result<Sha256Digest> {
        let lazy = match self {
            Self::Known(digest) => return Ok(*digest),
            Self::Lazy(lazy) => lazy,
        };
        if let Some(digest) = lazy.digest.get() {
            return Ok(*digest);
        }
        let computing = lazy.computing.clone().lock_owned().await;
        if let Some(digest) = lazy.digest.get() {
            return Ok(*digest);
        }
        let permit = match payload.len() {
            ..=MAX_WITHOUT_PERMIT => None,
            _ => Some(permits.clone().acquire_owned().await.map_err(io::Error::other)?),
        };
        let (lazy, payload) = (Arc::clone(lazy), payload.clone());
        // It goes on even if nobody waits for it any more, so that nobody can make it start again and again.
        let hashed = spawn_blocking(move || {
            let (_computing, _permit) = (computing, permit);
            let digest = hash(&payload)?;
            Ok(*lazy.digest.get_or_init(|| digest))
        });
        hashed.await.map_err(io::Error::other)?
    }
}

/// The digest of a message that is short and in memory.
pub(crate) fn of_short(payload: &Payload) -> Option<Sha256Digest> {
    let is_short = payload.is_in_memory() && payload.len() <= MAX_HASHED_AT_ONCE;
    is_short.then(|| hash(payload).ok()).flatten()
}

/// Blocks, unless the message is in memory.
fn hash(payload: &Payload) -> io::Result<Sha256Digest> {
    let mut sha256 = Sha256::new();
    payload.for_each_part(|part| {
        sha256.update(part);
        Ok(())
    })?;
    Ok(sha256.finalize().into())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[actix::test]
    async fn a_digest_is_computed_once_however_many_ask_and_even_if_the_first_gives_up() {
        let body = vec![7; MAX_HASHED_AT_ONCE as usize + 1];
        let payload = Payload::from_parts(vec![Bytes::from(body.clone())]);
        let expected: Sha256Digest = Sha256::digest(&body).into();
        assert_eq!(of_short(&payload), None);
        let digest = MessageDigest::lazy();
        let MessageDigest::Lazy(lazy) = &digest else { panic!("it is known") };
        // the digest of what is passed first stands: nobody computes it a second time
        let permits = Arc::new(Semaphore::new(1));
        let given_up = Box::pin(digest.get(&payload, &permits));
        assert!(futures::poll!(given_up).is_pending());
        let other = Payload::from_parts(vec![Bytes::from_static(b"other")]);
        let all = futures::future::join_all((0..100).map(|_| digest.get(&other, &permits))).await;
        assert!(all.into_iter().all(|digest| digest.is_ok_and(|digest| digest == expected)));
        assert_eq!(lazy.digest.get(), Some(&expected));
        assert_eq!(permits.available_permits(), 1);
    }

    #[actix::test]
    async fn no_short_message_waits_for_a_long_one() {
        let payload = |len: usize| Payload::from_parts(vec![Bytes::from(vec![7; len])]);
        let permits = Arc::new(Semaphore::new(0));
        let long = MessageDigest::lazy();
        let long_payload = payload(MAX_WITHOUT_PERMIT as usize + 1);
        let mut waiting = Box::pin(long.get(&long_payload, &permits));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        let short = MessageDigest::lazy();
        assert!(short.get(&payload(MAX_WITHOUT_PERMIT as usize), &permits).await.is_ok());
        permits.add_permits(1);
        assert!(waiting.await.is_ok());
    }

    #[test]
    fn a_short_message_in_memory_is_hashed_at_once() {
        let payload = Payload::from_parts(vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")]);
        assert_eq!(of_short(&payload), Some(Sha256::digest(b"abc").into()));
    }
}
