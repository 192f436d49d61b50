//! The open files of segments: few, however many segments there are.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::body_file::MAX_OPEN_BODY_FILES;
use crate::payload::read_cached;

/// The most file descriptors that one store has open: [`MAX_OPEN_SEGMENTS`], [`MAX_DELETED_SEGMENTS`],
/// [`MAX_OPEN_BODY_FILES`], and 8 for its lock, its two directories, its reserve, the newest segment, one that is being
/// begun, and one that a record is relocated to.
pub const MAX_OPEN_FILES: usize = MAX_OPEN_SEGMENTS + MAX_DELETED_SEGMENTS + MAX_OPEN_BODY_FILES + 8;

/// How many segments are open at once. Opening one takes about 5 µs. A reader who finds all of them being read waits
/// until a part of a body has been read, some milliseconds.
const MAX_OPEN_SEGMENTS: usize = 32;

/// How many deleted segments, which cannot be opened again, are kept open for their readers. While there are so many,
/// no other segment that has readers is deleted.
const MAX_DELETED_SEGMENTS: usize = 24;

/// The files of a store.
#[derive(Default)]
pub(super) struct Files {
    open: Mutex<Open>,
    /// Signalled when a file is no longer in use, or could not be opened.
    released: Condvar,
    deleted: AtomicUsize,
}

#[derive(Default)]
struct Open {
    /// In the order of their last use.
    files: VecDeque<(u32, Arc<File>)>,
    opening: usize,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

/// The file of a segment, opened when it is read.
pub struct SegmentFile {
    files: Arc<Files>,
    number: u32,
    path: PathBuf,
    /// Set when it was deleted while it had readers.
    deleted: OnceLock<Arc<File>>,
}

/// A file that is being read.
struct InUse<'a> {
    files: &'a Files,
    file: Option<Arc<File>>,
}

impl Files {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn find(&mut self, number: u32) -> Option<Arc<File>> {
        let at = self.files.iter().rposition(|(other, _)| *other == number)?;
        let found = self.files.remove(at)?;
        let file = Arc::clone(&found.1);
        self.files.push_back(found);
        Some(file)
    }

    /// Makes sure that one more can be opened: closes the one that was used longest ago. False if all are in use.
    fn make_space(&mut self) -> bool {
        if self.files.len() + self.opening < MAX_OPEN_SEGMENTS {
            return true;
        }
        let unused = self.files.iter().position(|(_, file)| Arc::strong_count(file) == 1);
        unused.and_then(|at| self.files.remove(at)).is_some()
    }
}

impl SegmentFile {
    /// The file of the segment `number` at `path`.
    pub(super) fn new(files: &Arc<Files>, number: u32, path: PathBuf) -> Arc<Self> {
        Arc::new(Self { files: Arc::clone(files), number, path, deleted: OnceLock::new() })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Registers `file`, which is this one and open already.
    pub(super) fn is_open(&self, file: &Arc<File>) {
        let mut open = self.files.open();
        open.make_space();
        open.files.push_back((self.number, Arc::clone(file)));
    }

    /// Prepares for deletion: if it may have readers, it stays open for them. False if too many deleted files are open.
    pub(super) fn prepare_deletion(self: &Arc<Self>) -> io::Result<bool> {
        if Arc::strong_count(self) > 1 && self.deleted.get().is_none() {
            if self.files.deleted.load(Ordering::Relaxed) == MAX_DELETED_SEGMENTS {
                return Ok(false);
            }
            let file = File::open(&self.path)?;
            if self.deleted.set(Arc::new(file)).is_ok() {
                self.files.deleted.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.files.open().files.retain(|(number, _)| *number != self.number);
        Ok(true)
    }

    /// Fills `buffer`. Waits for the disk, and for other readers if too many files are being read.
    ///
    /// # Errors
    /// What the file system reports, and `UnexpectedEof` if the file has become shorter.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(file) = self.deleted.get() {
            return file.read_exact_at(buffer, offset);
        }
        let in_use = self.wait_for_file()?;
        in_use.file.as_ref().map_or(Ok(()), |file| file.read_exact_at(buffer, offset))
    }

    /// Reads what the page cache has of an open file; see [`read_cached`].
    pub(crate) fn read_cached(&self, buffer: &mut [u8], offset: u64) -> usize {
        if let Some(file) = self.deleted.get() {
            return read_cached(file, offset, buffer);
        }
        let found = self.files.open().find(self.number);
        let in_use = InUse { files: &self.files, file: found };
        in_use.file.as_ref().map_or(0, |file| read_cached(file, offset, buffer))
    }

    fn wait_for_file(&self) -> io::Result<InUse<'_>> {
        let files = &*self.files;
        let mut open = files.open();
        loop {
            if let Some(file) = open.find(self.number) {
                return Ok(InUse { files, file: Some(file) });
            }
            if open.make_space() {
                break;
            }
            open = files.released.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
        open.opening += 1;
        drop(open);
        let opened = File::open(&self.path);
        let mut open = files.open();
        open.opening -= 1;
        match opened {
            Ok(file) => {
                // What was opened may be the empty file in place of one that has been deleted meanwhile. Only its
                // readers find the deleted one.
                let file = self.deleted.get().cloned().unwrap_or_else(|| {
                    let file = Arc::new(file);
                    open.files.push_back((self.number, Arc::clone(&file)));
                    file
                });
                Ok(InUse { files, file: Some(file) })
            }
            Err(error) => {
                files.released.notify_one();
                // it may have been deleted meanwhile, and is kept open then
                match self.deleted.get() {
                    Some(file) => Ok(InUse { files, file: Some(Arc::clone(file)) }),
                    None => Err(error),
                }
            }
        }
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let open = self.files.open();
        self.file = None;
        drop(open);
        self.files.released.notify_one();
    }
}

impl Drop for SegmentFile {
    fn drop(&mut self) {
        if self.deleted.get().is_some() {
            self.files.deleted.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for SegmentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SegmentFile").field(&self.path).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What a reader reads that has found the segment not deleted, and opens it only after `delete`.
    fn read_after(delete: impl FnOnce(&Path)) -> Vec<u8> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("segment");
        fs::write(&path, "a record").expect("writable");
        let files = Arc::default();
        let segment = SegmentFile::new(&files, 1, path.clone());
        let reader = Arc::clone(&segment);
        assert!(segment.prepare_deletion().expect("it can be opened"));
        delete(&path);
        let mut read = [0; 8];
        let in_use = reader.wait_for_file().expect("the reader keeps it");
        in_use.file.as_ref().map(|file| file.read_exact_at(&mut read, 0)).expect("a file").expect("readable");
        drop(in_use);
        assert!(files.open().files.is_empty(), "only its readers find a deleted file");
        read.to_vec()
    }

    #[test]
    fn a_reader_that_opens_a_segment_just_after_its_deletion_reads_what_was_in_it() {
        assert_eq!(read_after(|path| fs::remove_file(path).expect("deletable")), b"a record");
    }

    #[test]
    fn a_reader_that_opens_the_empty_file_in_place_of_a_segment_reads_what_was_in_the_segment() {
        let replace = |path: &Path| {
            let empty = path.with_extension("empty");
            fs::write(&empty, "").and_then(|()| fs::rename(&empty, path)).expect("writable");
        };
        assert_eq!(read_after(replace), b"a record");
    }
}
