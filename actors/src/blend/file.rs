//! An open .blend file.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::digest::BlendDigest;
use super::io_pool::{IoPool, NotDone, RootPools};
use crate::payload;

/// How long one read of a delivery may take, including the wait for a thread. Longer than opening may take, because a
/// failed read breaks off the delivery, while a request that fails at opening can simply be repeated.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How many bytes a thread hashes before it goes to the back of the queue, so that a small file does not wait for a
/// large one: about 9 ms (1 GiB takes 1.1 s).
const DIGEST_SLICE: u64 = 8 << 20;

/// How many bytes are read at once for a digest: few enough that they are still in the processor's cache when they are
/// hashed.
const DIGEST_READ: usize = 128 << 10;

/// Two changes of a file within one tick of its file system's clock have the same time. A tick of Linux takes at most
/// 10 ms.
const TICK: Duration = Duration::from_millis(20);

/// The tick of file systems without fractions of a second (FAT has two seconds).
const COARSE_TICK: Duration = Duration::from_secs(2);

/// An open .blend file. Reading returns the bytes that the file had when it was opened, or fails. Later changes of its
/// names, links, owner and permissions do not matter.
#[derive(Debug)]
pub struct BlendFile {
    /// The file, and its permit to be open. `None` only while this is dropped.
    open: Option<(File, OwnedSemaphorePermit)>,
    pools: RootPools,
    stamp: Stamp,
    version: String,
}

/// What changes when the content of a file changes. The time of the last change of its metadata (ctime) and its link
/// count are not part of it: they also change when no byte does, for example by `chmod`, a hard link, or a rename
/// (which Blender does to the old file when it saves).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// In bytes.
    pub len: u64,
    /// The file system.
    pub device: u64,
    /// The file's number in that file system.
    pub inode: u64,
    /// Seconds and nanoseconds of the last change of its content.
    pub modified: (i64, i64),
}

impl BlendFile {
    /// A file that has just been opened, with its `version`. `pools` belong to its blend root; `permit` is its share of
    /// the limit of open files.
    pub(super) fn new(
        file: File,
        stamp: Stamp,
        version: String,
        permit: OwnedSemaphorePermit,
        pools: RootPools,
    ) -> Self {
        Self { open: Some((file, permit)), pools, stamp, version }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.stamp.len
    }

    /// Whether the file has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// 32 hexadecimal digits that differ between two files, and between two contents of one file, as far as the file
    /// system reports changes. They reveal nothing else.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Reads `len` bytes from `offset`, or fewer at the end of the file. Waits for the disk on a thread of the file's
    /// blend root, for at most 30 s.
    ///
    /// # Errors
    /// What the file system reports; `InvalidData` if the file has changed since it was opened, or is shorter than
    /// reported; `TimedOut`.
    pub async fn read(self: Arc<Self>, offset: u64, len: usize) -> io::Result<Bytes> {
        let pool = self.pools.io.clone();
        on_thread(&pool, move || self.read_now(offset, len)).await
    }

    fn read_now(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let len = self.len().saturating_sub(offset).min(len as u64) as usize;
        let mut chunk = BytesMut::zeroed(len);
        let read = self.fill(&mut chunk, offset);
        self.check_unchanged()?;
        read.map(|()| chunk.freeze())
    }

    fn fill(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file()?.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            // A network file system may report a change late, and some report wrong lengths.
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(io::ErrorKind::InvalidData, "the file is shorter than its file system says")
            }
            _ => error,
        })
    }

    /// Computes the SHA-256 of the whole file on a thread for digests. While several files wait, they take turns.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub(super) async fn digest(self: Arc<Self>) -> io::Result<BlendDigest> {
        // Otherwise a change after the digest could leave the stamp as it is.
        tokio::time::sleep(self.stamp.until_settled()).await;
        let (mut hash, mut offset) = (Sha256::new(), 0);
        loop {
            let file = Arc::clone(&self);
            let end = self.len().min(offset + DIGEST_SLICE);
            hash = on_thread(&self.pools.digests, move || file.hash_range(hash, offset, end)).await?;
            offset = end;
            if offset == self.len() {
                return Ok(BlendDigest::from(<[u8; 32]>::from(hash.finalize())));
            }
        }
    }

    fn hash_range(&self, mut hash: Sha256, mut offset: u64, end: u64) -> io::Result<Sha256> {
        let mut buffer = vec![0; DIGEST_READ.min((end - offset) as usize)];
        let mut read = Ok(());
        while offset < end && read.is_ok() {
            let part = &mut buffer[..DIGEST_READ.min((end - offset) as usize)];
            read = self.fill(part, offset);
            hash.update(&*part);
            offset += part.len() as u64;
        }
        self.check_unchanged()?;
        read.map(|()| hash)
    }

    /// Reads bytes from `offset` on that are in the page cache, up to the length of `buffer`. Returns how many. If it
    /// returns 0, use [`BlendFile::read`].
    ///
    /// # Errors
    /// `InvalidData` if the file has changed since it was opened.
    pub fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.len().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let read = payload::read_cached(self.file()?, offset, &mut buffer[..len]);
        // Asking a network file system for attributes may block. It never returns cached bytes here, so it is not
        // asked.
        if read > 0 {
            self.check_unchanged()?;
        }
        Ok(read)
    }

    fn file(&self) -> io::Result<&File> {
        self.open.as_ref().map(|(file, _)| file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_unchanged(&self) -> io::Result<()> {
        if Stamp::of(self.file()?)? == self.stamp {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the file has changed while it was sent"))
    }
}

/// Runs `work` on a thread of `pool`, which may block.
async fn on_thread<T: Send + 'static>(
    pool: &IoPool,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    pool.run(READ_TIMEOUT, work).await.unwrap_or_else(|not_done| {
        Err(match not_done {
            NotDone::TimedOut => io::Error::new(io::ErrorKind::TimedOut, "the file system does not answer"),
            NotDone::NoThread => io::Error::other("no thread could be started to read the file"),
        })
    })
}

impl Drop for BlendFile {
    /// Closing may block, as reading may, so a thread of the pool closes the file. It counts as open until then.
    fn drop(&mut self) {
        let open = self.open.take();
        self.pools.io.detach(move || drop(open));
    }
}

impl Stamp {
    /// The version that an open file has now.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { len: meta.len(), device: meta.dev(), inode: meta.ino(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }

    /// How long to wait until a later change of the file cannot leave its stamp as it is.
    fn until_settled(&self) -> Duration {
        let (seconds, nanoseconds) = self.modified;
        let tick = if nanoseconds == 0 { COARSE_TICK } else { TICK };
        let modified = Duration::new(seconds.max(0) as u64, nanoseconds as u32);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // The clock of a file server may be ahead.
        tick.saturating_sub(now.saturating_sub(modified))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::{BlendFile, RootPools, Stamp};

    #[test]
    fn a_file_is_closed_on_the_threads_of_its_root_and_counts_as_open_until_then() {
        let pools = RootPools::new(0);
        let (release, gate) = crossbeam_channel::bounded::<()>(0);
        // More jobs than the pool has threads.
        for _ in 0..32 {
            let gate = gate.clone();
            pools.io.detach(move || {
                // Returns when `release` is dropped.
                let _ = gate.recv();
            });
        }
        let open_files = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&open_files).try_acquire_owned().expect("a permit");
        let file = tempfile::tempfile().expect("a file");
        let stamp = Stamp::of(&file).expect("a version");
        drop(BlendFile::new(file, stamp, String::new(), permit, pools));
        assert_eq!(open_files.available_permits(), 0, "the thread that dropped it closed it");
        drop(release);
        let closed = async { tokio::time::timeout(Duration::from_secs(30), open_files.acquire()).await.is_ok() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        assert!(runtime.block_on(closed), "it is closed once there is a free thread");
    }
}
