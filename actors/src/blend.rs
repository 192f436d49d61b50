//! `RefineDataFromMetaData`: opens the .blend file that a message names, inside the permitted folders only.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};

use crate::payload::read_cached;

/// `O_NONBLOCK` of Linux: opening a pipe that nobody writes to returns at once.
const O_NONBLOCK: i32 = 0o4000;

/// Why a .blend file cannot be sent. The texts name the path as the sender has written it, and no other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlendError {
    /// The message asks for a file and names none.
    #[error("DATA.BINARY_BLEND_FILE is missing or is no str; the path of a .blend file is expected")]
    NoPath,
    /// The path leads out of the permitted folders, by itself or by a link.
    #[error("blend file {0:?} is outside the permitted folders")]
    Outside(String),
    /// Nothing is there.
    #[error("blend file {0:?} is missing")]
    Missing(String),
    /// A folder, a device, a pipe.
    #[error("blend file {0:?} is no regular file")]
    NoRegularFile(String),
    /// The file system refuses.
    #[error("blend file {0:?} is unreadable: {1}")]
    Unreadable(String, io::ErrorKind),
}

/// The permitted folders, held open.
#[derive(Clone, Debug)]
pub struct BlendRoots {
    roots: Arc<[Root]>,
}

#[derive(Debug)]
struct Root {
    /// The names under which absolute paths may begin: as configured, and with links resolved.
    names: Vec<PathBuf>,
    dir: Dir,
}

impl BlendRoots {
    /// Opens the folders. Relative paths of messages are relative to the first.
    ///
    /// # Errors
    /// The folder that cannot be opened, and why.
    pub fn open<P: AsRef<Path>>(folders: &[P]) -> Result<Self, (PathBuf, io::Error)> {
        let roots = folders.iter().map(|folder| {
            let folder = folder.as_ref();
            Root::open(folder).map_err(|error| (folder.to_owned(), error))
        });
        Ok(Self { roots: roots.collect::<Result<_, _>>()? })
    }

    fn open_file(&self, path: &Path) -> io::Result<cap_std::fs::File> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(O_NONBLOCK);
        let outside = || io::Error::from(io::ErrorKind::PermissionDenied);
        if path.is_relative() {
            return self.roots.first().ok_or_else(outside)?.dir.open_with(path, &options);
        }
        let mut result = Err(outside());
        for root in self.roots.iter() {
            if let Some(inside) = root.names.iter().find_map(|name| path.strip_prefix(name).ok()) {
                result = root.dir.open_with(inside, &options);
                if result.is_ok() {
                    break;
                }
            }
        }
        result
    }
}

impl Root {
    fn open(folder: &Path) -> io::Result<Self> {
        let names = vec![std::path::absolute(folder)?, folder.canonicalize()?];
        Ok(Self { names, dir: Dir::open_ambient_dir(folder, ambient_authority())? })
    }
}

/// A .blend file that is being sent: its bytes are those of the moment when it was opened, or reading fails.
#[derive(Debug)]
pub struct BlendFile {
    file: File,
    stamp: Stamp,
}

/// What changes when a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    len: u64,
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl BlendFile {
    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.stamp.len
    }

    /// Whether the file has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Differs between two files, and between two contents of one file, as far as the file system tells.
    pub fn version(&self) -> String {
        let Stamp { len, device, inode, modified, changed } = self.stamp;
        format!("{len:x}-{device:x}-{inode:x}-{:x}.{:x}-{:x}.{:x}", modified.0, modified.1, changed.0, changed.1)
    }

    /// Reads up to `len` bytes that start at `offset`, fewer only where the file ends before. Blocks on the disk.
    ///
    /// # Errors
    /// What the file system reports, and `InvalidData` where the file has changed since it was opened.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let len = self.len().saturating_sub(offset).min(len as u64) as usize;
        let mut chunk = BytesMut::zeroed(len);
        self.file.read_exact_at(&mut chunk, offset)?;
        self.check_unchanged()?;
        Ok(chunk.freeze())
    }

    /// Reads what of the range that starts at `offset` can be had without waiting for the disk, up to the length of
    /// `buffer`. Returns how many bytes that is; 0 says to [`BlendFile::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.len().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let read = read_cached(&self.file, offset, &mut buffer[..len]);
        self.check_unchanged()?;
        Ok(read)
    }

    fn check_unchanged(&self) -> io::Result<()> {
        if Stamp::of(&self.file)? == self.stamp {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the file has changed while it was sent"))
    }
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            len: meta.len(),
            device: meta.dev(),
            inode: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Opens the file that a message names as `path` (`RefineDataFromMetaData` of the specification). Blocks on the disk.
///
/// # Errors
/// See [`BlendError`].
pub fn refine_data_from_metadata(roots: &BlendRoots, path: Option<&str>) -> Result<BlendFile, BlendError> {
    let path = path.filter(|path| !path.is_empty()).ok_or(BlendError::NoPath)?;
    let named = || path.to_owned();
    let file = roots.open_file(Path::new(path)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => BlendError::Missing(named()),
        // cap-std's own answer to a path that leaves the folder carries no code of the system
        io::ErrorKind::PermissionDenied if error.raw_os_error().is_none() => BlendError::Outside(named()),
        io::ErrorKind::InvalidInput if path.contains('\0') => BlendError::Missing(named()),
        _ if leaves(Path::new(path)) => BlendError::Outside(named()),
        kind => BlendError::Unreadable(named(), kind),
    })?;
    let file = file.into_std();
    let regular = file.metadata().is_ok_and(|meta| meta.is_file());
    if !regular {
        return Err(BlendError::NoRegularFile(named()));
    }
    let stamp = Stamp::of(&file).map_err(|error| BlendError::Unreadable(named(), error.kind()))?;
    Ok(BlendFile { file, stamp })
}

/// Whether a path goes up further than it has gone down.
fn leaves(path: &Path) -> bool {
    let mut depth = 0_i64;
    path.components().any(|component| {
        match component {
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
        depth < 0
    })
}
