//! The body of a message: a handle to bytes in memory, in files or in a database.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::{ReadWriteFlags, preadv2};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::body_file::BodyFile;
use crate::postgres::DatabaseBody;
use crate::store::disk::transient;
use crate::store::files::SegmentFile;

/// The longest body in the log, in bytes, that is read whole to be compared with its checksum: it is sent at once.
const MAX_IN_MEMORY: u64 = 64 << 10;

/// The longest body, in bytes, that is compared with its checksum without a permit: 0.2 ms. So no short message waits
/// for a long one.
const MAX_WITHOUT_PERMIT: u64 = 1 << 20;

/// The body of a message.
///
/// Cloning is cheap: it does not copy the body. A body in a file stays readable while the value lives, even after the
/// store has deleted that file.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Pieces that follow one another.
    Pieces(Arc<[Piece]>),
    /// A range of a store's segment.
    Segment {
        /// The file that holds the body.
        file: Arc<SegmentFile>,
        /// The offset of the body in it, in bytes.
        offset: u64,
        /// The length of the body in bytes.
        len: u64,
        /// The CRC-32C of the body.
        crc: u32,
    },
    /// A body in a database.
    Database(DatabaseBody),
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub enum Piece {
    /// In memory.
    Memory(Bytes),
    /// A range of a body file.
    File {
        /// The file.
        file: Arc<BodyFile>,
        /// The offset of the piece in it, in bytes.
        offset: u64,
        /// The length of the piece in bytes.
        len: u64,
    },
}

impl Piece {
    /// The length of the piece in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Whether the piece has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file that it is in.
    pub fn file(&self) -> Option<&Arc<BodyFile>> {
        match self {
            Self::Memory(_) => None,
            Self::File { file, .. } => Some(file),
        }
    }
}

impl Payload {
    /// A body that consists of `parts`, one after the other.
    pub fn from_parts(parts: Vec<Bytes>) -> Self {
        Self::Pieces(parts.into_iter().map(Piece::Memory).collect())
    }

    /// A body without bytes.
    pub fn empty() -> Self {
        Self::Pieces(Arc::new([]))
    }

    /// The length of the body in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Pieces(pieces) => pieces.iter().map(Piece::len).sum(),
            Self::Segment { len, .. } => *len,
            Self::Database(body) => body.len(),
        }
    }

    /// Whether the body has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The body files that it has pieces in, once for each piece.
    pub fn files(&self) -> impl Iterator<Item = &Arc<BodyFile>> {
        let pieces = match self {
            Self::Pieces(pieces) => &pieces[..],
            Self::Segment { .. } | Self::Database(_) => &[],
        };
        pieces.iter().filter_map(Piece::file)
    }

    /// How many bytes have to be written to the disk until the body is durable.
    pub(crate) fn unsynced_len(&self) -> u64 {
        match self {
            Self::Pieces(pieces) => {
                let is_synced = |piece: &Piece| piece.file().is_some_and(|file| file.is_synced());
                pieces.iter().filter(|piece| !is_synced(piece)).map(Piece::len).sum()
            }
            Self::Segment { len, .. } => *len,
            Self::Database(body) => body.len(),
        }
    }

    /// Reads up to `len` bytes from `offset` on; fewer only if the body ends before.
    ///
    /// A body in memory is not copied if the range lies in one piece. A body in a file may block on the disk, so never
    /// call this on an event loop unless [`Payload::is_in_memory`].
    ///
    /// # Errors
    /// What the file system or the database reports, and `UnexpectedEof` if a file has become shorter.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let len = (self.len().saturating_sub(offset)).min(len as u64) as usize;
        match self {
            Self::Pieces(pieces) => read_pieces(pieces, offset, len),
            Self::Segment { file, offset: start, .. } => {
                let mut buffer = BytesMut::zeroed(len);
                file.read_exact_at(&mut buffer, start + offset)?;
                Ok(buffer.freeze())
            }
            Self::Database(body) => body.read_blocking(offset, len),
        }
    }

    /// Reads the whole body into one piece; see [`Payload::read`].
    ///
    /// # Errors
    /// As [`Payload::read`].
    pub fn read_all(&self) -> io::Result<Bytes> {
        self.read(0, self.len() as usize)
    }

    /// Reads the whole body into one piece and compares it with its checksum; see [`Payload::verify`].
    ///
    /// # Errors
    /// As [`Payload::verify`].
    pub fn read_verified(&self) -> io::Result<Bytes> {
        match self {
            Self::Pieces(_) | Self::Database(_) => {
                self.verify()?;
                self.read_all()
            }
            Self::Segment { file, crc, .. } => {
                let body = self.read_all()?;
                check(file.path(), crc32c::crc32c(&body), *crc)?;
                Ok(body)
            }
        }
    }

    /// Compares what is on the disk with the checksums that were computed when the body was received. A body file is
    /// compared once in a process. Pieces in memory have no checksum, and a database has its own. Blocks unless
    /// [`Payload::is_in_memory`].
    ///
    /// # Errors
    /// As [`Payload::read`], and `InvalidData`, naming the file, if the body has changed.
    pub fn verify(&self) -> io::Result<()> {
        match self {
            Self::Pieces(_) => self.files().try_for_each(|file| file.verify()),
            Self::Database(_) => Ok(()),
            Self::Segment { file, crc: expected, .. } => {
                let mut crc = 0;
                self.for_each_part(|part| {
                    crc = crc32c::crc32c_append(crc, part);
                    Ok(())
                })?;
                check(file.path(), crc, *expected)
            }
        }
    }

    /// The same body, compared with its checksums before anything of it is sent. A short one is in memory then: what is
    /// sent is what was compared.
    ///
    /// A long body takes one of `permits` and a thread that blocks. That goes on even if nobody waits for it any more.
    ///
    /// # Errors
    /// As [`Payload::verify`].
    pub async fn verified(&self, permits: &Arc<Semaphore>) -> io::Result<Self> {
        if self.is_in_memory() || matches!(self, Self::Database(_)) {
            return Ok(self.clone());
        }
        let len = self.len();
        if let (Self::Segment { crc, .. }, ..=MAX_IN_MEMORY) = (self, len) {
            let mut body = BytesMut::zeroed(len as usize);
            // what the page cache does not have, or has and is damaged, is read below
            if self.read_cached(0, &mut body) as u64 == len && crc32c::crc32c(&body) == *crc {
                return Ok(Self::from_parts(vec![body.freeze()]));
            }
        }
        let permit = match len {
            ..=MAX_WITHOUT_PERMIT => None,
            _ => Some(Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?),
        };
        let payload = self.clone();
        let verifying = spawn_blocking(move || {
            let _permit = permit;
            match payload {
                Self::Segment { len: ..=MAX_IN_MEMORY, .. } => Ok(Self::from_parts(vec![payload.read_verified()?])),
                _ => payload.verify().map(|()| payload),
            }
        });
        verifying.await.map_err(io::Error::other)?
    }

    /// Calls `take` with the whole body, part by part. A body in memory is not copied. Blocks unless
    /// [`Payload::is_in_memory`].
    ///
    /// # Errors
    /// As [`Payload::read`], and those of `take`.
    pub fn for_each_part(&self, mut take: impl FnMut(&Bytes) -> io::Result<()>) -> io::Result<()> {
        const PART: u64 = 1 << 20;
        if let Self::Pieces(pieces) = self
            && self.is_in_memory()
        {
            let mut parts =
                pieces.iter().filter_map(|piece| if let Piece::Memory(part) = piece { Some(part) } else { None });
            return parts.try_for_each(take);
        }
        let mut offset = 0;
        while offset < self.len() {
            let part = self.read(offset, PART as usize)?;
            take(&part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Reads bytes from `offset` on that are available without waiting for the disk, as many as fit into `buffer`.
    /// Returns the number of bytes. If it returns 0, use [`Payload::read`].
    pub fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let len = (self.len().saturating_sub(offset)).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..len];
        match self {
            Self::Pieces(pieces) => {
                let mut filled = 0;
                for (piece, from) in pieces_from(pieces, offset) {
                    let wanted = (piece.len() - from).min((len - filled) as u64) as usize;
                    let part = &mut buffer[filled..filled + wanted];
                    let read = match piece {
                        Piece::Memory(bytes) => {
                            part.copy_from_slice(&bytes[from as usize..][..wanted]);
                            wanted
                        }
                        Piece::File { file, offset, .. } => file.read_cached(part, offset + from),
                    };
                    filled += read;
                    if read < wanted || filled == len {
                        break;
                    }
                }
                filled
            }
            Self::Segment { file, offset: start, .. } => file.read_cached(buffer, start + offset),
            Self::Database(_) => 0,
        }
    }

    /// Whether reading cannot block.
    pub fn is_in_memory(&self) -> bool {
        match self {
            Self::Pieces(pieces) => pieces.iter().all(|piece| piece.file().is_none()),
            Self::Segment { .. } | Self::Database(_) => false,
        }
    }
}

impl FromIterator<Piece> for Payload {
    fn from_iter<I: IntoIterator<Item = Piece>>(pieces: I) -> Self {
        Self::Pieces(pieces.into_iter().collect())
    }
}

/// Compares the checksum of a body in the file at `path` with the one that it had when it was received.
///
/// # Errors
/// `InvalidData`, naming the file.
pub(crate) fn check(path: &Path, crc: u32, expected: u32) -> io::Result<()> {
    if crc == expected {
        return Ok(());
    }
    let text = format!("{} is damaged: the body does not match its checksum", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Whether a read that failed with `error` may succeed later: the system is short of file descriptors or memory.
pub(crate) fn may_be_readable_later(error: &io::Error) -> bool {
    transient(error).is_some()
}

/// Reads what the page cache has; nothing if the file system does not support that, or on an error.
pub(crate) fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> usize {
    preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
}

/// The pieces with bytes from `offset` on, each with the offset in it.
fn pieces_from(pieces: &[Piece], mut offset: u64) -> impl Iterator<Item = (&Piece, u64)> {
    pieces.iter().filter_map(move |piece| {
        let from = offset;
        offset = offset.saturating_sub(piece.len());
        (from < piece.len()).then_some((piece, from))
    })
}

fn read_pieces(pieces: &[Piece], offset: u64, len: usize) -> io::Result<Bytes> {
    let mut gathered = BytesMut::new();
    for (piece, from) in pieces_from(pieces, offset) {
        let wanted = (len - gathered.len()).min(usize::try_from(piece.len() - from).unwrap_or(usize::MAX));
        match piece {
            Piece::Memory(bytes) if wanted == len => return Ok(bytes.slice(from as usize..from as usize + wanted)),
            Piece::Memory(bytes) => gathered.extend_from_slice(&bytes[from as usize..from as usize + wanted]),
            Piece::File { file, offset, .. } => {
                let filled = gathered.len();
                gathered.resize(filled + wanted, 0);
                file.read_exact_at(&mut gathered[filled..], offset + from)?;
            }
        }
        if gathered.len() == len {
            break;
        }
    }
    Ok(gathered.freeze())
}
