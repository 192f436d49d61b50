//! A body in the database, which is read in chunks while it is sent.

use std::fmt;
use std::io;
use std::sync::mpsc;

use bytes::{Bytes, BytesMut};
use tokio_postgres::types::Type;

use super::{CHUNK, PostgresBuffer};
use crate::store::StoreError;

/// A body in the database. It stays there until its delivery ends, even if the message is replaced meanwhile.
#[derive(Clone)]
pub struct DatabaseBody {
    database: PostgresBuffer,
    id: i64,
    len: u64,
}

impl DatabaseBody {
    pub(super) fn new(database: PostgresBuffer, id: i64, len: u64) -> Self {
        Self { database, id, len }
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads up to `len` bytes from `offset` on; fewer only if the body ends before.
    ///
    /// # Errors
    /// The database does not answer, or no longer has the body.
    pub async fn read(self, offset: u64, len: usize) -> io::Result<Bytes> {
        let database = self.database.clone();
        database.run(async move { self.fetch(offset, len).await }).await.map_err(io::Error::other)
    }

    /// As [`read`](Self::read). Blocks, so never call this on an event loop.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn read_blocking(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let (done, read) = mpsc::channel();
        let body = self.clone();
        self.database.0.runtime.spawn(async move { done.send(body.fetch(offset, len).await) });
        read.recv().map_err(io::Error::other)?.map_err(io::Error::other)
    }

    async fn fetch(self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let end = self.len.min(offset + len as u64);
        let mut read = BytesMut::new();
        let mut connection = self.database.connection().await?;
        while offset + (read.len() as u64) < end {
            let at = offset + read.len() as u64;
            let (number, from) = ((at / CHUNK) as i32, (at % CHUNK) as i32 + 1);
            let wanted = (CHUNK - at % CHUNK).min(end - at) as i32;
            let sql = "SELECT substr(bytes, $3, $4) FROM chunks WHERE message = $1 AND number = $2";
            let parameters: [super::connections::Parameter<'_>; 4] =
                [(&self.id, Type::INT8), (&number, Type::INT4), (&from, Type::INT4), (&wanted, Type::INT4)];
            let row = connection.first(sql, &parameters).await?;
            let part: &[u8] = row.as_ref().map_or(&[], |row| row.get(0));
            if part.len() != wanted as usize {
                return Err(StoreError::Database("it no longer has the message".to_owned()));
            }
            read.extend_from_slice(part);
        }
        connection.give_back();
        Ok(read.freeze())
    }
}

impl fmt::Debug for DatabaseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseBody").field("id", &self.id).field("len", &self.len).finish_non_exhaustive()
    }
}
