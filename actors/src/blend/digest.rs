//! The SHA-256 of .blend files, computed once for each version of a file.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use serde::{Deserialize, Serialize};

use super::file::{BlendFile, Stamp};
use super::resolve::Refusal;
use super::{BlendError, SentPath};
use crate::reply::{Deferred, Reply, deferred};
use crate::wait_queue::WaitQueue;

/// How many digests are kept in memory, about 200 bytes each. The oldest are dropped first, and computed again when
/// they are needed.
const MAX_KNOWN: usize = 16_384;

/// The SHA-256 of a .blend file. Its text form is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlendDigest([u8; 32]);

/// A text is not the text form of a [`BlendDigest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 has 64 lower-case hexadecimal digits")]
pub struct NoDigest;

impl BlendDigest {
    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for BlendDigest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for BlendDigest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        if text.len() != 64 {
            return Err(NoDigest);
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(NoDigest),
        };
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for BlendDigest {
    type Error = NoDigest;

    fn try_from(text: String) -> Result<Self, NoDigest> {
        text.parse()
    }
}

impl From<BlendDigest> for String {
    fn from(digest: BlendDigest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for BlendDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlendDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a digest could not be computed.
#[derive(Clone, Debug)]
pub enum DigestError {
    /// The file has changed meanwhile.
    Changed,
    /// The reason is temporary.
    NotNow(String),
    /// The file system reports this.
    Unreadable(String),
}

impl DigestError {
    fn of(error: &io::Error) -> Self {
        match (error.kind(), Refusal::of(error)) {
            (io::ErrorKind::InvalidData, _) => Self::Changed,
            (io::ErrorKind::TimedOut, _) => Self::NotNow(error.to_string()),
            (_, Refusal::NotNow(why)) => Self::NotNow(why),
            _ => Self::Unreadable(error.to_string()),
        }
    }

    /// The error of a request for the file that its sender calls `path`.
    pub(crate) fn named(self, path: &str) -> BlendError {
        let path = SentPath::from(path);
        match self {
            Self::Changed => BlendError::Changing(path),
            Self::NotNow(why) => BlendError::NotNow(path, why),
            Self::Unreadable(why) => BlendError::Unreadable(path, why),
        }
    }
}

/// To [`BlendDigests`]: the digest of this version of a file. The reply comes when it is known.
#[derive(Debug, Message)]
#[rtype(result = "Result<BlendDigest, DigestError>")]
pub struct GetBlendDigest(pub Arc<BlendFile>);

/// Knows the digests of .blend files. Requests for a digest that is being computed wait for it together. A request that
/// is given up does not stop the computation.
#[derive(Debug, Default)]
pub struct BlendDigests {
    known: HashMap<Stamp, BlendDigest>,
    /// The versions in `known`, oldest first.
    by_age: VecDeque<Stamp>,
    /// The requests that wait for a digest. Each version costs an open file, whose number is limited.
    waiting: HashMap<Stamp, WaitQueue<Reply<Result<BlendDigest, DigestError>>>>,
}

impl BlendDigests {
    /// Knows these digests from the start.
    pub(crate) fn new(known: impl IntoIterator<Item = (Stamp, BlendDigest)>) -> Self {
        let mut this = Self::default();
        known.into_iter().for_each(|(stamp, digest)| this.add(stamp, digest));
        this
    }

    fn add(&mut self, stamp: Stamp, digest: BlendDigest) {
        if self.known.insert(stamp, digest).is_none() {
            self.by_age.push_back(stamp);
        }
        if self.by_age.len() > MAX_KNOWN
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn finish(&mut self, stamp: Stamp, digest: Result<BlendDigest, DigestError>) {
        if let Ok(digest) = digest {
            self.add(stamp, digest);
        }
        let mut waiting = self.waiting.remove(&stamp).unwrap_or_default();
        while let Some(reply) = waiting.pop() {
            reply.send(digest.clone());
        }
    }
}

impl Actor for BlendDigests {
    type Context = Context<Self>;
}

impl Handler<GetBlendDigest> for BlendDigests {
    type Result = Deferred<Result<BlendDigest, DigestError>>;

    fn handle(&mut self, GetBlendDigest(file): GetBlendDigest, ctx: &mut Self::Context) -> Self::Result {
        let stamp = file.stamp();
        if let Some(digest) = self.known.get(&stamp) {
            return Deferred::now(Ok(*digest));
        }
        let (reply, deferred) = deferred();
        let is_new = !self.waiting.contains_key(&stamp);
        self.waiting.entry(stamp).or_default().push(reply, Reply::is_closed);
        if is_new {
            // One future for each version, not for each request.
            let started = Instant::now();
            let digest = file.digest().into_actor(self).map(move |digest, this, _| {
                let seconds = started.elapsed().as_secs_f64();
                match &digest {
                    Ok(digest) => log::info!("computed SHA-256 {digest} of {} bytes in {seconds:.3} s", stamp.len),
                    Err(error) => log::warn!("could not compute the SHA-256 of a .blend file: {error}"),
                }
                this.finish(stamp, digest.map_err(|error| DigestError::of(&error)));
            });
            ctx.spawn(digest);
        }
        deferred
    }
}
