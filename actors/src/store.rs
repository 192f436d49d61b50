//! Where messages are kept: the trait that each backend implements, and the thread that commits in groups.
//!
//! A store maps sequence numbers to records. It knows nothing of buffers and outboxes. Each of those owns a store, and
//! keeps what it needs to find a record again in the record's `meta`. An owner sends requests through a [`StoreHandle`]
//! and learns the outcomes from [`StoreEvent`]s, in order.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::Either;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::payload::Payload;
use crate::store::disk::{Transient, transient};

pub mod disk;
pub mod files;
pub mod log;
pub mod memory;
mod metrics;
mod segment;
mod writer;

pub(crate) use segment::composition::Composition;
pub use writer::{Begin, StoreEvent, StoreHandle};

/// The sequence number of a record: greater than every number that was taken before. Records need not be put in the
/// order of their numbers. A number with which no record was put may be taken again after a restart.
pub type Seq = u64;

/// The number that no record has. Its removal is a probe: it changes nothing, but a backend on disk writes and syncs
/// it. Unlike other removals it needs as much space as a put, so it finds out whether a full disk has space again.
pub const NO_RECORD: Seq = 0;

/// The largest number of a record that recovery takes for one. A million records a second reach it after 292,000 years.
pub(crate) const MAX_SEQ: Seq = Seq::MAX / 2;

/// One change of a store.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds a record.
    Put(Put),
    /// Removes the record with this number, if there is one.
    Remove(Seq),
}

impl Change {
    fn put(&self) -> Option<&Put> {
        if let Self::Put(put) = self { Some(put) } else { None }
    }
}

/// A new record.
#[derive(Clone, Debug)]
pub struct Put {
    /// Its number.
    pub seq: Seq,
    /// What its owner needs in order to find it again, at most [`MAX_META`] bytes.
    pub meta: Bytes,
    /// Its body, at most [`MAX_BODY`] bytes.
    pub body: Payload,
}

impl Put {
    /// Whether a store accepts this record: recovery must be able to read it. This is the only place where that is
    /// checked before a record is written.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], which concerns this record alone.
    pub fn check(&self) -> Result<(), StoreError> {
        check_bounds(self.meta.len() as u64, self.body.len())
    }
}

/// The bounds of a record, for writing it and for finding it.
fn check_bounds(meta: u64, body: u64) -> Result<(), StoreError> {
    match (meta, body) {
        _ if meta > MAX_META as u64 => Err(StoreError::TooLarge { what: "meta", size: meta, limit: MAX_META as u64 }),
        _ if body > MAX_BODY => Err(StoreError::TooLarge { what: "body", size: body, limit: MAX_BODY }),
        _ => Ok(()),
    }
}

/// The largest `meta` of a record in bytes. The largest that an owner makes has a UUID and a path of 4,096 bytes each,
/// and JSON may write a byte as six.
pub const MAX_META: usize = 64 * 1024;

/// The largest body of a record in bytes: twice what a request may have.
pub const MAX_BODY: u64 = 8 << 30;

/// The wall-clock time that owners write into a `meta`, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What a record costs beside its body and its meta, in bytes. Each of a million buffered messages took 339 bytes of
/// memory (`benches/scale.rs`), its UUID included; on disk, a record and its removal have headers of 32 bytes each.
pub(crate) const RECORD_OVERHEAD: u64 = 512;

/// How many bytes of its owner's limit a record takes.
pub(crate) fn cost(meta_len: usize, body_len: u64) -> u64 {
    meta_len as u64 + body_len + RECORD_OVERHEAD
}

/// Encodes what an owner keeps beside the body. It consists of strings and numbers, so encoding cannot fail.
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
    /// Decodes what [`encode_meta`] wrote: one of two kinds, each with required fields that the other does not have.
    ///
    /// # Errors
    /// The number of the record, if it is neither.
    pub(crate) fn decode_meta<A: DeserializeOwned, B: DeserializeOwned>(&self) -> Result<Either<A, B>, Seq> {
        if let Ok(first) = serde_json::from_slice(&self.meta) {
            return Ok(Either::Left(first));
        }
        serde_json::from_slice(&self.meta).map(Either::Right).map_err(|_| self.seq)
    }
}

/// The outcome of a compaction step.
#[derive(Debug, Default)]
pub struct Compacted {
    /// Live records that the store has moved, with their new bodies. The old bodies stay readable, but they keep
    /// disk space in use for as long as somebody holds them.
    pub moved: Vec<(Seq, Payload)>,
    /// Another step can follow at once.
    pub more: bool,
}

/// When the changes of a commit are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// When the commit returns: they survive a crash of the machine.
    Now,
    /// With the next commit that is durable when it returns. Until then they survive only a crash of the process.
    Later,
}

/// A backend. A backend that keeps nothing on disk is durable only as far as the process lives.
pub trait Store: Send {
    /// Called before anything else, once it is certain that the process starts: the store is about to be used.
    ///
    /// # Errors
    /// What the backend reports; then the store is not used.
    fn begin(&mut self) -> Result<(), OpenError> {
        Ok(())
    }

    /// Makes all `changes` in their order; after an error that is not [final](StoreError::is_final), none of them.
    /// Returns where the body of each put is, in their order.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and [`StoreError::Busy`] if something is short: a later commit may succeed.
    /// [`StoreError::TooLarge`] if [`Put::check`] refuses a record. [`StoreError::Failed`] and [`StoreError::Gone`] if
    /// the backend can no longer promise anything: every later commit fails too.
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError>;

    /// Whether there is space for a message of usual size, as far as that can be known without writing one. Called
    /// once, before the first commit.
    ///
    /// # Errors
    /// As for a commit.
    fn check_space(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// The file system has refused so many bytes beside the store. It counts as full until it has space for them.
    fn space_was_refused(&mut self, _bytes: u64) {}

    /// Takes one compaction step: gives back some of the space of dead records. It takes some milliseconds, because no
    /// commit runs meanwhile.
    ///
    /// # Errors
    /// As for a commit. If the error is not final, only the space is not given back yet.
    fn compact(&mut self) -> Result<Compacted, StoreError> {
        Ok(Compacted::default())
    }

    /// Nothing more will be committed, as far as the owner knows: the next start may rely on finding all of it. A later
    /// commit is possible all the same.
    ///
    /// # Errors
    /// As for a commit. Then the next start takes this stop for a crash.
    fn stop(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// How many bytes the store takes on the disk.
    fn disk_bytes(&self) -> u64 {
        0
    }
}

/// Why a commit has failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the quota is full.
    #[error("no space left for messages: {0}")]
    NoSpace(String),
    /// The system is short of file descriptors or memory at the moment.
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
    /// The disk has failed, or the store's thread has panicked.
    #[error("the message store has failed: {0}")]
    Failed(String),
    /// The store's files are no longer where the next start looks for them.
    #[error("{path} has been deleted, moved or replaced while the service was running", path = .0.display())]
    Gone(PathBuf),
    /// The database that gateways share as their buffer takes no messages at the moment.
    #[error("the buffer's database takes no messages at the moment: {0}")]
    Database(String),
}

/// Whether a store still reports outcomes after the event with this [`StoreEvent::failure`].
///
/// # Errors
/// The failure, if it [is final](StoreError::is_final).
pub(crate) fn check_failure(failure: &Option<StoreError>) -> Result<(), StoreError> {
    failure.clone().filter(StoreError::is_final).map_or(Ok(()), Err)
}

impl StoreError {
    /// The error of a failed operation on `path`.
    pub fn of_io(path: &Path, error: &io::Error) -> Self {
        let text = format!("{}: {error}", path.display());
        match transient(error) {
            Some(Transient::NoSpace) => Self::NoSpace(text),
            Some(Transient::Busy) => Self::Busy(text),
            None => Self::Failed(text),
        }
    }

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
    /// A file is damaged in a way that no crash explains.
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
    /// The same error of the file in `to` of which the one in `from` is a copy, if it is about the content of a file.
    fn moved(mut self, from: &Path, to: &Path) -> Self {
        if let Self::Version { path, .. } | Self::Missing(path) | Self::Damaged { path, .. } = &mut self
            && let Ok(inside) = path.strip_prefix(from)
        {
            *path = to.join(inside);
        }
        self
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
