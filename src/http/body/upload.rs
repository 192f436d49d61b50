//! An upload: a body that goes into a file while it arrives, so that it takes little memory.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use user_http_actors::Error;
use user_http_actors::body_file::{BodyDirectory, BodyFile, BodyWriter};
use user_http_actors::store::StoreError;

use crate::http::Gateway;
use crate::http::digest::{Digests, Hasher};
use crate::http::error::Failure;
use crate::http::limits::InflightPermit;

/// How many bytes are gathered for one write. With what the connection has received, an upload holds less than twice
/// this.
const PART: usize = 128 << 10;

/// What becomes of received bytes: they go into the file, and into the digests.
struct Writer {
    file: BodyWriter,
    hasher: Hasher,
}

/// An upload in progress. Dropped before it is [finished](Upload::finish), it leaves nothing behind.
pub struct Upload<'a> {
    gateway: &'a Gateway,
    directory: BodyDirectory,
    /// The length of the whole body, or what is known of it.
    len: u64,
    /// `None` while a write is under way.
    writer: Option<Writer>,
    gathered: Vec<u8>,
    memory: InflightPermit,
    /// The share of `max_upload_space`.
    space: InflightPermit,
}

impl<'a> Upload<'a> {
    /// Creates the file. `hasher` gets all bytes.
    ///
    /// # Errors
    /// 503 if `max_upload_space` does not allow the declared length, or the file cannot be created.
    pub async fn create(
        directory: &BodyDirectory,
        gateway: &'a Gateway,
        declared: Option<u64>,
        hasher: Hasher,
    ) -> Result<Self, Failure> {
        let (memory, space) = (gateway.inflight.permit(), gateway.upload_space.permit());
        if !space.fits(declared.unwrap_or(0), gateway.limits.max_upload_space) {
            return Err(Failure::too_many_uploads());
        }
        let len = declared.unwrap_or(PART as u64);
        let (directory, creating) = (directory.clone(), directory.clone());
        let file = gateway.write_upload(&directory, len, move || creating.create()).await?;
        let writer = Some(Writer { file, hasher });
        Ok(Self { gateway, directory, len, writer, gathered: Vec::new(), memory, space })
    }

    /// Appends a chunk.
    ///
    /// # Errors
    /// 503 if `max_upload_space` or `max_inflight` is reached, or the disk is full.
    pub async fn append(&mut self, chunk: Bytes) -> Result<(), Failure> {
        let limits = &self.gateway.limits;
        if !self.space.grow(chunk.len() as u64, limits.max_upload_space) {
            return Err(Failure::too_many_uploads());
        }
        self.len = self.len.max(self.space.bytes());
        if self.gathered.is_empty() && chunk.len() >= PART {
            return self.write(chunk).await.map(drop);
        }
        self.gathered.extend_from_slice(&chunk);
        if !self.memory.grow_to(self.gathered.capacity() as u64, limits.max_inflight) {
            return Err(Failure::too_much_inflight());
        }
        if self.gathered.len() >= PART { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        let gathered = std::mem::take(&mut self.gathered);
        self.gathered = self.write(gathered).await?;
        self.gathered.clear();
        Ok(())
    }

    /// Writes and hashes on another thread; gives the bytes back.
    async fn write<B: AsRef<[u8]> + Send + 'static>(&mut self, bytes: B) -> Result<B, Failure> {
        let Some(mut writer) = self.writer.take() else { return Ok(bytes) };
        let write = move || {
            writer.file.append(bytes.as_ref())?;
            writer.hasher.update(bytes.as_ref());
            Ok((writer, bytes))
        };
        let (writer, bytes) = self.gateway.write_upload(&self.directory, self.len, write).await?;
        self.writer = Some(writer);
        Ok(bytes)
    }

    /// The whole body has been received; returns it and its digests. The file takes its share of `max_upload_space`
    /// until a store has it.
    ///
    /// # Errors
    /// 503 if the disk is full.
    pub async fn finish(mut self) -> Result<(Arc<BodyFile>, Digests), Failure> {
        self.flush().await?;
        // there is none only after a write that has failed
        let Writer { mut file, hasher } = self.writer.take().ok_or(Error::Stopping)?;
        file.hold(std::mem::replace(&mut self.space, self.gateway.upload_space.permit()));
        Ok((file.finish(), hasher.finish()))
    }
}

impl Gateway {
    /// Does work on the file of an upload of `len` bytes on another thread, once fewer than `UPLOAD_WRITES` others do.
    async fn write_upload<T: Send + 'static>(
        &self,
        directory: &BodyDirectory,
        len: u64,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = self.upload_writes.clone().acquire_owned().await;
        let done = spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        let done = done.await.map_err(|_| Error::Stopping)?;
        match done.map_err(|error| StoreError::of_io(directory.path(), &error)) {
            Ok(done) => Ok(done),
            Err(error) => {
                // the disk may be full, or the directory gone and the store with it
                if !matches!(error, StoreError::Busy(_)) {
                    self.actors.probe_store(directory, len).await;
                }
                Err(Error::Store(error).into())
            }
        }
    }
}
