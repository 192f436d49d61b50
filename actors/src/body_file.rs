//! A received body in a file of its own, so that no large body is in memory whole.
//!
//! The file is written while the body arrives. A store that accepts the message keeps the file as it is: its record
//! refers to it. Otherwise the file is deleted with the last handle.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use crate::payload::read_cached;
use crate::store::disk::Disk;

/// The end of the names of body files.
const SUFFIX: &str = ".body";

/// The directory in which a store keeps its body files. Clones are the same directory.
#[derive(Clone, Debug)]
pub struct BodyDirectory(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl BodyDirectory {
    /// The directory at `path`, which exists.
    pub fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self(Arc::new(Directory { disk, path }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The path of the file with this name.
    pub fn path_of(&self, name: Uuid) -> PathBuf {
        self.0.path.join(format!("{}{SUFFIX}", name.simple()))
    }

    /// The name of the body file at `path`; `None` if the path is that of no body file.
    pub fn name_of(path: &Path) -> Option<Uuid> {
        Uuid::try_parse(path.file_name()?.to_str()?.strip_suffix(SUFFIX)?).ok()
    }

    /// Creates an empty file. Blocks.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn create(&self) -> io::Result<BodyWriter> {
        let name = Uuid::new_v4();
        self.0.disk.create(&self.path_of(name))?;
        Ok(BodyWriter(BodyFile::new(self.clone(), name, 0, 0, Kept::No)))
    }

    /// The file of a stored body, which exists.
    pub fn stored(&self, name: Uuid, len: u64, crc: u32) -> Arc<BodyFile> {
        Arc::new(BodyFile::new(self.clone(), name, len, crc, Kept::Yes))
    }
}

/// A body file that is being written. If it is dropped before it is [finished](BodyWriter::finish), the file is
/// deleted.
///
/// It holds no file descriptor: a slow sender takes one only while it writes.
#[derive(Debug)]
pub struct BodyWriter(BodyFile);

impl BodyWriter {
    /// Appends to the file. Blocks.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let BodyFile { directory, path, len, crc, .. } = &mut self.0;
        let file = OpenOptions::new().write(true).open(path)?;
        directory.0.disk.write(&file, bytes, *len)?;
        *len += bytes.len() as u64;
        *crc = crc32c::crc32c_append(*crc, bytes);
        Ok(())
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole body has been written.
    pub fn finish(self) -> Arc<BodyFile> {
        Arc::new(self.0)
    }
}

/// A body file that is complete. Nothing writes to it any more.
#[derive(Debug)]
pub struct BodyFile {
    directory: BodyDirectory,
    name: Uuid,
    path: PathBuf,
    len: u64,
    crc: u32,
    /// A store needs the file, or may need it after a crash.
    kept: AtomicBool,
}

/// Whether a store needs a body file.
enum Kept {
    Yes,
    No,
}

impl BodyFile {
    fn new(directory: BodyDirectory, name: Uuid, len: u64, crc: u32, kept: Kept) -> Self {
        let path = directory.path_of(name);
        Self { directory, name, path, len, crc, kept: AtomicBool::new(matches!(kept, Kept::Yes)) }
    }

    /// Its name.
    pub fn name(&self) -> Uuid {
        self.name
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The CRC-32C of its bytes.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// Keeps the file when the last handle is dropped, or deletes it then. A store keeps it from before a record refers
    /// to it until the end of that record is durable.
    pub fn keep(&self, keep: bool) {
        self.kept.store(keep, Ordering::Release);
    }

    /// Fills `buffer` from `offset` on. Blocks.
    ///
    /// # Errors
    /// What the file system reports, and `UnexpectedEof` if the file has become shorter.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        File::open(&self.path)?.read_exact_at(buffer, offset)
    }

    /// Reads what the page cache has; see [`read_cached`].
    pub(crate) fn read_cached(&self, buffer: &mut [u8], offset: u64) -> usize {
        File::open(&self.path).map_or(0, |file| read_cached(&file, offset, buffer))
    }
}

impl Drop for BodyFile {
    fn drop(&mut self) {
        if *self.kept.get_mut() {
            return;
        }
        match self.directory.0.disk.remove(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot delete {}; the next start will: {error}", self.path.display());
            }
            _ => {}
        }
    }
}
