//! The body of a message: a handle to bytes in memory or in a file.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::{ReadWriteFlags, preadv2};

use crate::store::disk::transient;
use crate::store::files::SegmentFile;

/// The body of a stored message: in memory, or a range of a segment file.
///
/// Cloning is cheap: it does not copy the body. A body in a file stays readable while the value lives, even after the
/// store has deleted that file.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Parts in memory that follow one another.
    Memory(Arc<[Bytes]>),
    /// A range of a store's segment.
    File {
        /// The file that holds the body.
        file: Arc<SegmentFile>,
        /// The offset of the body in it, in bytes.
        offset: u64,
        /// The length of the body in bytes.
        len: u64,
    },
}

impl Payload {
    /// A body that consists of `parts`, one after the other.
    pub fn from_parts(parts: Vec<Bytes>) -> Self {
        Self::Memory(parts.into())
    }

    /// The length of the body in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(parts) => parts.iter().map(|part| part.len() as u64).sum(),
            Self::File { len, .. } => *len,
        }
    }

    /// Whether the body has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads up to `len` bytes from `offset` on; fewer only if the body ends before.
    ///
    /// A body in memory is not copied if the range lies in one part. A body in a file may block on the disk, so never
    /// call this on an event loop unless [`Payload::is_in_memory`].
    ///
    /// # Errors
    /// What the file system reports, and `UnexpectedEof` if the file has become shorter.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let len = (self.len().saturating_sub(offset)).min(len as u64) as usize;
        match self {
            Self::Memory(parts) => Ok(read_parts(parts, offset, len)),
            Self::File { file, offset: start, .. } => {
                let mut buffer = BytesMut::zeroed(len);
                file.read_exact_at(&mut buffer, start + offset)?;
                Ok(buffer.freeze())
            }
        }
    }

    /// Reads the whole body into one piece; see [`Payload::read`].
    ///
    /// # Errors
    /// As [`Payload::read`].
    pub fn read_all(&self) -> io::Result<Bytes> {
        self.read(0, self.len() as usize)
    }

    /// Reads from `offset` on what does not require waiting for the disk, at most what fits into `buffer`. Returns the
    /// number of bytes; after 0, use [`Payload::read`].
    pub fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let len = (self.len().saturating_sub(offset)).min(buffer.len() as u64) as usize;
        match self {
            Self::Memory(parts) => {
                buffer[..len].copy_from_slice(&read_parts(parts, offset, len));
                len
            }
            Self::File { file, offset: start, .. } => file.read_cached(&mut buffer[..len], start + offset),
        }
    }

    /// Whether reading cannot block.
    pub fn is_in_memory(&self) -> bool {
        matches!(self, Self::Memory(_))
    }
}

/// Whether a read that failed with `error` may succeed later: the system is short of file descriptors or memory.
pub(crate) fn may_be_readable_later(error: &io::Error) -> bool {
    transient(error).is_some()
}

/// Reads what the page cache has; nothing if the file system does not support that, or on an error.
pub(crate) fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> usize {
    preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
}

fn read_parts(parts: &[Bytes], mut offset: u64, len: usize) -> Bytes {
    let mut gathered = BytesMut::new();
    for part in parts {
        if offset >= part.len() as u64 {
            offset -= part.len() as u64;
            continue;
        }
        let from = offset as usize;
        let wanted = len - gathered.len();
        if gathered.is_empty() && part.len() - from >= wanted {
            return part.slice(from..from + wanted);
        }
        gathered.extend_from_slice(&part[from..part.len().min(from + wanted)]);
        offset = 0;
        if gathered.len() == len {
            break;
        }
    }
    gathered.freeze()
}
