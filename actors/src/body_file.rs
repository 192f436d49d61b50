//! A received body in a file of its own, so that no large body is in memory whole.
//!
//! The file is written while the body arrives. A store that accepts the message keeps the file as it is: its record
//! refers to it. Otherwise the file is deleted with the last handle.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::payload::{Payload, Piece, check, read_cached};
use crate::store::disk::{Disk, sync_directory};

/// The end of the names of body files.
const SUFFIX: &str = ".body";

/// The most body files of a directory that are open at the same time. Each is open only while a part of it is written,
/// read or synced; further ones wait for that.
pub const MAX_OPEN_BODY_FILES: usize = 8;

/// How many bytes are read at once to be compared with a checksum: few enough for the processor's cache.
const VERIFIED_TOGETHER: u64 = 256 << 10;

/// The directory in which a store keeps its body files. Clones are the same directory.
#[derive(Clone, Debug)]
pub struct BodyDirectory(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// How many files have been created.
    created: AtomicU64,
    /// The names of so many of them are durable, in the order of their creation.
    synced: AtomicU64,
    /// How many files are open.
    open: Mutex<usize>,
    /// Signalled when a file is closed.
    closed: Condvar,
}

impl BodyDirectory {
    /// The directory at `path`, which exists.
    pub fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        let (created, synced) = (AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Directory { disk, path, created, synced, open: Mutex::default(), closed: Condvar::new() }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The path of the file with this name.
    pub fn path_of(&self, name: Uuid) -> PathBuf {
        Self::path_in(&self.0.path, name)
    }

    /// The path of the body file with this name in `directory`.
    pub(crate) fn path_in(directory: &Path, name: Uuid) -> PathBuf {
        directory.join(format!("{}{SUFFIX}", name.simple()))
    }

    /// The name of the body file at `path`; `None` if the path is that of no body file.
    pub fn name_of(path: &Path) -> Option<Uuid> {
        let stem = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
        Uuid::try_parse(stem).ok().filter(|name| name.simple().to_string() == stem)
    }

    /// Creates an empty file. Blocks.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn create(&self) -> io::Result<BodyWriter> {
        let name = Uuid::new_v4();
        let _slot = self.slot();
        self.0.disk.create(&self.path_of(name))?;
        let number = self.0.created.fetch_add(1, Ordering::AcqRel) + 1;
        Ok(BodyWriter(BodyFile::new(self.clone(), name, SyncState::Never, number)))
    }

    /// Writes a body to a file. Blocks.
    ///
    /// # Errors
    /// What the file system reports for either.
    pub fn write(&self, body: &Payload) -> io::Result<Payload> {
        let mut writer = self.create()?;
        body.for_each_part(|part| writer.append(part))?;
        let len = writer.len();
        Ok([Piece::File { file: writer.finish(), offset: 0, len }].into_iter().collect())
    }

    /// The file of a stored body, which exists and is durable.
    pub(crate) fn stored(&self, name: Uuid, len: u64, crc: u32) -> Arc<BodyFile> {
        let mut file = BodyFile::new(self.clone(), name, SyncState::Done, 0);
        (file.len, file.crc, file.kept) = (len, crc, AtomicBool::new(true));
        Arc::new(file)
    }

    /// Makes the names of these files durable. Blocks.
    ///
    /// # Errors
    /// What the file system reports.
    pub(crate) fn sync_names<'a>(&self, files: impl IntoIterator<Item = &'a BodyFile>) -> io::Result<()> {
        let newest = files.into_iter().map(|file| file.number).max().unwrap_or(0);
        if newest > self.0.synced.load(Ordering::Acquire) {
            let created = self.0.created.load(Ordering::Acquire);
            sync_directory(&*self.0.disk, &self.0.path)?;
            self.0.synced.fetch_max(created, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Deletes a file.
    ///
    /// # Errors
    /// What the file system reports.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.disk.remove(path)
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn open_files(&self) -> MutexGuard<'_, usize> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another file may be open.
    fn slot(&self) -> Slot<'_> {
        let mut open = self.open_files();
        while *open == MAX_OPEN_BODY_FILES {
            open = self.0.closed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
        *open += 1;
        Slot(self)
    }

    /// As [`BodyDirectory::slot`], if that requires no waiting.
    fn free_slot(&self) -> Option<Slot<'_>> {
        let mut open = self.open_files();
        (*open < MAX_OPEN_BODY_FILES).then(|| {
            *open += 1;
            Slot(self)
        })
    }
}

/// The right to have one file open.
struct Slot<'a>(&'a BodyDirectory);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.open_files() -= 1;
        self.0.0.closed.notify_one();
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
        let _slot = directory.slot();
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

    /// Drops `permit` when a record of a store refers to the file, or when the file is deleted.
    pub fn hold(&mut self, permit: impl Send + 'static) {
        self.0.permit = Mutex::new(Some(Box::new(permit)));
    }

    /// The whole body has been written. It is not durable yet: see [`BodyFile::sync`].
    pub fn finish(self) -> Arc<BodyFile> {
        Arc::new(self.0)
    }
}

/// A body file that is complete. Nothing writes to it any more.
pub struct BodyFile {
    directory: BodyDirectory,
    name: Uuid,
    path: PathBuf,
    len: u64,
    crc: u32,
    /// A record of a store refers to the file, or may do so after a crash.
    kept: AtomicBool,
    sync: Mutex<SyncState>,
    /// This process has compared the file with its checksum. Locked while it does: whoever asks meanwhile waits for the
    /// same result.
    verified: Mutex<bool>,
    /// The file was the one of this number to be created in its directory, from 1 on; 0 if that was done by an earlier
    /// process.
    number: u64,
    /// See [`BodyWriter::hold`].
    permit: Mutex<Option<Box<dyn Send>>>,
}

/// What has become of the sync of a body file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyncState {
    Never,
    Done,
    /// With this error of the system. The kernel may have dropped what it could not write, so another attempt would
    /// succeed and prove nothing.
    Failed(i32),
}

impl BodyFile {
    fn new(directory: BodyDirectory, name: Uuid, sync: SyncState, number: u64) -> Self {
        let path = directory.path_of(name);
        let (kept, sync, verified) = (AtomicBool::new(false), Mutex::new(sync), Mutex::default());
        Self { directory, name, path, len: 0, crc: 0, kept, sync, verified, number, permit: Mutex::default() }
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

    /// Whether it is in this directory.
    pub(crate) fn is_in(&self, directory: &BodyDirectory) -> bool {
        self.directory.is(directory)
    }

    /// Takes the file for a record, which keeps it when the last handle is dropped. False if a record has it already.
    pub(crate) fn take(&self) -> bool {
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
        !self.kept.swap(true, Ordering::AcqRel)
    }

    /// No record refers to the file, even after a crash: it is deleted with its last handle.
    pub(crate) fn release(&self) {
        self.kept.store(false, Ordering::Release);
    }

    fn sync_state(&self) -> MutexGuard<'_, SyncState> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the bytes are durable.
    pub fn is_synced(&self) -> bool {
        *self.sync_state() == SyncState::Done
    }

    /// Makes the bytes durable, but not the name. Blocks.
    ///
    /// A store does this for each record that refers to a file. The thread that has received the body should do it
    /// before: then nobody else waits for it.
    ///
    /// # Errors
    /// What the file system reports. After a sync that has failed, every later one fails too.
    pub fn sync(&self) -> io::Result<()> {
        let mut state = self.sync_state();
        match *state {
            SyncState::Done => Ok(()),
            SyncState::Failed(error) => Err(io::Error::from_raw_os_error(error)),
            SyncState::Never => {
                let _slot = self.directory.slot();
                let file = File::open(&self.path)?;
                let synced = self.directory.0.disk.sync(&file);
                *state = match &synced {
                    Ok(()) => SyncState::Done,
                    Err(error) => SyncState::Failed(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())),
                };
                synced
            }
        }
    }

    /// Fills `buffer` from `offset` on. Blocks.
    ///
    /// # Errors
    /// What the file system reports, and `UnexpectedEof` if the file has become shorter.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let _slot = self.directory.slot();
        File::open(&self.path)?.read_exact_at(buffer, offset)
    }

    /// Compares the file with its checksum, once it was found to match never again. Blocks.
    ///
    /// # Errors
    /// What the file system reports, and `InvalidData` if it has changed.
    pub(crate) fn verify(&self) -> io::Result<()> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if *verified {
            return Ok(());
        }
        let (mut crc, mut offset) = (0, 0);
        let mut chunk = vec![0; self.len.min(VERIFIED_TOGETHER) as usize];
        while offset < self.len {
            let part = &mut chunk[..(self.len - offset).min(VERIFIED_TOGETHER) as usize];
            self.read_exact_at(part, offset)?;
            crc = crc32c::crc32c_append(crc, part);
            offset += part.len() as u64;
        }
        check(&self.path, crc, self.crc)?;
        *verified = true;
        Ok(())
    }

    /// Reads what the page cache has; see [`read_cached`].
    pub(crate) fn read_cached(&self, buffer: &mut [u8], offset: u64) -> usize {
        let Some(_slot) = self.directory.free_slot() else { return 0 };
        // only if the kernel finds the file without the disk
        let file = openat2(CWD, &self.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED);
        file.map_or(0, |file| read_cached(&File::from(file), offset, buffer))
    }
}

impl fmt::Debug for BodyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyFile").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for BodyFile {
    fn drop(&mut self) {
        if *self.kept.get_mut() {
            return;
        }
        let (directory, path) = (self.directory.clone(), std::mem::take(&mut self.path));
        let delete = move || match directory.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot delete {}; the next start will: {error}", path.display());
            }
            _ => {}
        };
        // deleting a large file takes milliseconds, which an event loop does not have
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(delete)),
            Err(_) => delete(),
        }
    }
}
