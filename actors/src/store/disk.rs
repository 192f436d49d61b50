//! What the log needs from the file system. All changes of its files go through here.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Parts of a body up to this length are gathered into one write with their neighbours.
const GATHER: usize = 64 << 10;

/// Changes files. What is not synced may be lost in a power failure, in part and in any order. Tests implement this
/// with a disk that loses power, has no space or fails.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a directory that is accessible to the service alone. The name is durable when its parent is synced.
    ///
    /// # Errors
    /// What the file system reports, here and below.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Creates an empty file; it replaces one of that name. The name is durable when the directory is synced.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Writes all bytes at an offset.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Changes the length of a file.
    fn set_len(&self, file: &File, len: u64) -> io::Result<()>;
    /// Makes a file's content and length durable.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Deletes a file. That is durable when the directory is synced.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Renames a file in its directory; it replaces one of that name. That is durable when the directory is synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Whether there is space for this many bytes in an empty file, as far as the file system knows without a write.
    fn check_space(&self, file: &File, bytes: u64) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

/// The mode of the store's files: they hold messages, which are for the service alone.
pub(crate) const FILE_MODE: u32 = 0o600;
/// The mode of its directories.
pub(crate) const DIRECTORY_MODE: u32 = 0o700;

/// Creates an empty file that is accessible to the service alone; it replaces one of that name.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(FILE_MODE).open(path)
}

/// The operating system's file systems.
#[derive(Debug)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(DIRECTORY_MODE).create(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        create_private(path)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn check_space(&self, file: &File, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            // it does not know
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            checked => Ok(checked?),
        }
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// Makes the names in a directory durable, if the file system can: some (FUSE, CIFS) refuse to sync any directory, and
/// that is no failure of the disk.
///
/// # Errors
/// What the file system reports.
pub(crate) fn sync_directory(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.sync_directory(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

/// Creates a directory and its missing parents, durably, accessible to the service alone.
///
/// # Errors
/// What the file system reports.
pub(crate) fn make_directory(disk: &dyn Disk, directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|path| !is_there(path)).collect();
    for path in missing.into_iter().rev() {
        match disk.create_directory(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => created?,
        }
        sync_directory(disk, path.parent().filter(|parent| is_named(parent)).unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

fn is_named(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// Whether the directory exists; that of a relative path without any folder does.
fn is_there(path: &Path) -> bool {
    !is_named(path) || path.exists()
}

/// Why an operation failed that may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transient {
    /// The disk or the quota is full.
    NoSpace,
    /// The system is short of descriptors or memory.
    Busy,
}

/// Whether an operation that has failed with `error` may succeed later.
pub(crate) fn transient(error: &io::Error) -> Option<Transient> {
    use io::ErrorKind::{FileTooLarge, Interrupted, OutOfMemory, QuotaExceeded, StorageFull, WouldBlock};
    match (error.kind(), Errno::from_io_error(error)) {
        (StorageFull | QuotaExceeded | FileTooLarge, _) => Some(Transient::NoSpace),
        (OutOfMemory | WouldBlock | Interrupted, _) | (_, Some(Errno::MFILE | Errno::NFILE)) => Some(Transient::Busy),
        _ => None,
    }
}

/// Appends to a file: small parts are gathered, large ones are written as they are.
pub(super) struct Appender<'a> {
    disk: &'a dyn Disk,
    file: &'a File,
    offset: u64,
    pub(super) gathered: Vec<u8>,
}

impl<'a> Appender<'a> {
    pub(super) fn new(disk: &'a dyn Disk, file: &'a File, offset: u64) -> Self {
        Self { disk, file, offset, gathered: Vec::new() }
    }

    pub(super) fn position(&self) -> u64 {
        self.offset + self.gathered.len() as u64
    }

    pub(super) fn append(&mut self, part: &Bytes) -> io::Result<()> {
        if part.len() <= GATHER {
            self.gathered.extend_from_slice(part);
            if self.gathered.len() > 16 * GATHER { self.flush() } else { Ok(()) }
        } else {
            self.flush()?;
            self.disk.write(self.file, part, self.offset)?;
            self.offset += part.len() as u64;
            Ok(())
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            self.disk.write(self.file, &self.gathered, self.offset)?;
            self.offset += self.gathered.len() as u64;
            self.gathered.clear();
        }
        Ok(())
    }
}
