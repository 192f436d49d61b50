//! The stores, each behind the trait of the log store, so that all get the same groups of changes from the same thread.

use std::error::Error;
use std::fmt::{self, Display};
use std::path::Path;

use bytes::Bytes;
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Put, Seq, Store, StoreError};

mod fjall;
mod redb;
mod sqlite;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Log,
    Fjall,
    Redb,
    Sqlite,
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Log => "log",
            Self::Fjall => "fjall",
            Self::Redb => "redb",
            Self::Sqlite => "SQLite",
        })
    }
}

/// A store, how bodies are read while its thread has it, and its explicit compaction, for after that thread has ended.
pub struct Opened {
    pub store: Box<dyn Store>,
    pub read: Box<dyn Read>,
    pub tidy: Box<dyn FnMut() -> Result<(), Box<dyn Error>>>,
}

/// Reads bodies, from any thread.
pub trait Read: Sync {
    /// `payload` is what the store has said about the body.
    fn read(&self, seq: Seq, payload: Payload) -> Bytes;
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Log, Self::Fjall, Self::Redb, Self::Sqlite];

    /// An empty store in an empty folder.
    pub fn open(self, folder: &Path) -> Result<Opened, Box<dyn Error>> {
        match self {
            Self::Log => {
                let (store, _) = LogStore::open(&folder.join("log"))?;
                Ok(Opened { store: Box::new(store), read: Box::new(LogReader), tidy: Box::new(|| Ok(())) })
            }
            Self::Fjall => fjall::open(folder),
            Self::Redb => redb::open(folder),
            Self::Sqlite => sqlite::open(folder),
        }
    }
}

struct LogReader;

impl Read for LogReader {
    fn read(&self, _: Seq, payload: Payload) -> Bytes {
        payload.read_all().expect("a body in a segment")
    }
}

/// As one slice, which each of these stores asks for. The benchmark's bodies have one part, so this copies nothing.
fn body(put: &Put) -> Result<Bytes, StoreError> {
    put.body.read_all().map_err(failed)
}

/// A store that keeps no bodies in memory has nothing to report for a put.
fn nowhere() -> Payload {
    Payload::empty()
}

fn failed(error: impl Display) -> StoreError {
    StoreError::Failed(error.to_string())
}
