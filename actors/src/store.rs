//! Where messages are kept: the trait that every backend has, and the thread that commits in groups.
//!
//! A store maps sequence numbers to records. It knows nothing of buffers or outboxes: each of those has a store
//! of its own, and keeps what it needs to find a record again in the record's `meta`.

use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::Either;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::payload::Payload;

pub mod disk;
pub mod files;
pub mod log;
pub mod memory;
pub(crate) mod puts;
mod segment;
mod writer;

pub use puts::PutOutcome;
pub use writer::{Put, StoreEvent, StoreHandle};

/// The number of a record: greater than that of every record that was put before it, never used again.
pub type Seq = u64;

/// The number that no record has. Removing it changes nothing, and still writes and syncs where the backend does;
/// unlike other removals it needs as much room as a [`Change::Put`]. So it finds out whether a full disk has room
/// again.
pub const NO_RECORD: Seq = 0;

/// One change of a store.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds a record.
    Put {
        /// Its number.
        seq: Seq,
        /// What its owner needs in order to find it again, at most [`MAX_META`] bytes.
        meta: Bytes,
        /// Its body, in parts that follow one another.
        body: Vec<Bytes>,
    },
    /// Removes the record with this number, if there is one.
    Remove(Seq),
}

impl Change {
    /// Whether a store keeps this. The one place where the bounds of a record are checked before it is written.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], which concerns this change alone.
    pub fn check(&self) -> Result<(), StoreError> {
        let Self::Put { meta, body, .. } = self else { return Ok(()) };
        let body = body.iter().map(|part| part.len() as u64).sum();
        check_bounds(meta.len() as u64, body)
    }
}

/// The bounds of a record, for those who write it and those who look for one.
fn check_bounds(meta: u64, body: u64) -> Result<(), StoreError> {
    match (meta, body) {
        _ if meta > MAX_META as u64 => Err(StoreError::TooLarge { what: "meta", size: meta, limit: MAX_META as u64 }),
        _ if body > MAX_BODY => Err(StoreError::TooLarge { what: "body", size: body, limit: MAX_BODY }),
        _ => Ok(()),
    }
}

/// The largest `meta` of a record in bytes. The largest that an owner makes has a UUID and a path of 4,096 bytes each, and
/// JSON may write a byte as six.
pub const MAX_META: usize = 64 * 1024;

/// The largest body of a record in bytes: twice what a request may have.
pub const MAX_BODY: u64 = 8 << 30;

/// The time that a record's owner notes in its `meta`, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What a record costs beside its body and its meta, in bytes. One of a million buffered messages took 339 bytes of memory
/// (`benches/scale.rs`), its name among them; on the disk, a record and its removal have headers of 30 to 60 bytes each.
pub(crate) const RECORD_OVERHEAD: u64 = 512;

/// How many bytes of its owner's limit a record takes.
pub(crate) fn cost(meta_len: usize, body_len: u64) -> u64 {
    meta_len as u64 + body_len + RECORD_OVERHEAD
}

/// What its owner notes beside a record's body. It consists of strings and numbers, which always have a JSON form.
pub(crate) fn encode_meta(meta: &impl Serialize) -> Bytes {
    serde_json::to_vec(meta).unwrap_or_default().into()
}

/// A record found when a store was opened.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Its number.
    pub seq: Seq,
    /// As it was put.
    pub meta: Bytes,
    /// Where its body is.
    pub body: Payload,
}

impl Recovered {
    /// What [`encode_meta`] has made `meta` of: one of two kinds, each with fields that the other has not.
    ///
    /// # Errors
    /// The record's number, where it is neither.
    pub(crate) fn decode_meta<A: DeserializeOwned, B: DeserializeOwned>(&self) -> Result<Either<A, B>, Seq> {
        if let Ok(first) = serde_json::from_slice(&self.meta) {
            return Ok(Either::Left(first));
        }
        serde_json::from_slice(&self.meta).map(Either::Right).map_err(|_| self.seq)
    }
}

/// What has come of a step of [`Store::tidy`].
#[derive(Debug, Default)]
pub struct Tidied {
    /// Records that the store has moved while it gave space back: their bodies are here from now on. The old
    /// places can still be read, but keep their disk space taken for as long as somebody holds them.
    pub moved: Vec<(Seq, Payload)>,
    /// There is more to do right away.
    pub more: bool,
}

/// When the changes of a commit are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// When the commit returns: they survive a crash of the machine.
    Now,
    /// With the next commit that is durable when it returns. Until then they survive a crash of the process alone.
    Later,
}

/// A backend. What "durable" promises is that of one that keeps anything at all.
pub trait Store: Send {
    /// Makes `changes`, all or (after an error that [`StoreError::is_final`] denies) none of them.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and [`StoreError::Busy`] when there is no room: a later commit may succeed. [`StoreError::TooLarge`] where
    /// [`Change::check`] refuses one of the changes. [`StoreError::Failed`] and [`StoreError::Gone`] when the backend can
    /// no longer promise anything: every later commit fails too.
    ///
    /// Returns where the body of each `Put` is, in their order.
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError>;

    /// Whether there is space for a message of usual size, as far as that can be known without writing one. Asked once, at the
    /// start.
    ///
    /// # Errors
    /// As for a commit.
    fn check_space(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Gives some of the space back that removals have made free: a step that takes some milliseconds, since no commit
    /// is made meanwhile.
    ///
    /// # Errors
    /// As for a commit. Unless [`StoreError::is_final`] says otherwise, nothing is lost but the space, for a time.
    fn tidy(&mut self) -> Result<Tidied, StoreError> {
        Ok(Tidied::default())
    }
}

/// Why a commit has failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the quota is full.
    #[error("no space left for messages: {0}")]
    NoSpace(String),
    /// The system is short of descriptors or memory, for a moment.
    #[error("the message store cannot work at the moment: {0}")]
    Busy(String),
    /// A record is larger than recovery would read.
    #[error("the {what} of a record has {size} bytes; at most {limit} are kept")]
    TooLarge {
        /// Which part of it: `"meta"` or `"body"`.
        what: &'static str,
        /// How long that is, in bytes.
        size: u64,
        /// How long it may be, in bytes.
        limit: u64,
    },
    /// The disk has failed, or the store's thread has ended.
    #[error("the message store has failed: {0}")]
    Failed(String),
    /// The store's files are no longer where the next start looks for them.
    #[error("{path} has been deleted, moved or replaced while the service was running", path = .0.display())]
    Gone(PathBuf),
}

impl StoreError {
    /// Whether every later commit will fail too.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Gone(_))
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system refused.
    #[error("cannot use {path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Another process has the directory.
    #[error("{path} is in use by another server; stop it, or choose another data directory", path = .0.display())]
    InUse(PathBuf),
    /// A file is of a version that this program does not know.
    #[error(
        "{path} has format version {found}, and this program knows version {known}; use the program that wrote it",
        path = path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version that it says it has.
        found: u16,
        /// The version that this program writes.
        known: u16,
    },
    /// A file is not there, and a later one is.
    #[error(
        "{path} is missing; restore it from a copy, or make an empty file of that name to go on without the messages \
         that were in it",
        path = .0.display()
    )]
    Missing(PathBuf),
    /// A file is damaged in a place that no crash can explain.
    #[error(
        "{path} is damaged at byte {offset}: {what}; restore it from a copy, or keep a copy and empty it \
         (truncate -s 0) to go on without the messages in it",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damage starts.
        offset: u64,
        /// What was found there.
        what: &'static str,
    },
}

impl OpenError {
    fn io(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
