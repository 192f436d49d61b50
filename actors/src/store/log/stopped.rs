//! The mark of a log whose process has stopped in order: where the records of each segment end. A crash leaves none.
//!
//! With it, the next start knows that nothing is torn and nothing may be missing.
//!
//! | bytes | what |
//! | --- | --- |
//! | 7 | `UHSSTOP` |
//! | 1 | format version, a digit: `1` |
//! | 12 for each segment | its number (4), and where its records end (8); 0 if the segment is given up |
//! | 4 | CRC-32C of everything before |
//!
//! It is there only while no process uses the log.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::LogStore;
use crate::store::disk::{Disk, sync_directory};
use crate::store::segment::{self, u32_at, u64_at};
use crate::store::{OpenError, StoreError};

const NAME: &str = "STOPPED";
/// Its name until it is complete.
const INCOMPLETE: &str = "STOPPING";
const MAGIC: &[u8; 7] = b"UHSSTOP";
/// The version that this program writes.
const VERSION: u8 = b'1';
const SEGMENT: usize = 12;
const CRC: usize = 4;

/// The mark: for each segment, where its records end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stopped(BTreeMap<u32, u64>);

impl Stopped {
    /// Reads the mark in the directory of a log. A log without one has stopped in a crash, or never. An empty file
    /// gives it up.
    ///
    /// # Errors
    /// What the file system reports, that a later version has written it, and that it is damaged: it became durable
    /// before it got its name.
    pub fn read(directory: &Path) -> Result<Option<Self>, OpenError> {
        let path = directory.join(NAME);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(OpenError::io(&path))?,
        };
        if bytes.is_empty() {
            log::warn!("{}: empty; the log is read as after a crash", path.display());
            return Ok(None);
        }
        let what = "the mark of a stop in order does not match its checksum";
        match sealed(&bytes) {
            Some([VERSION, segments @ ..]) if segments.len().is_multiple_of(SEGMENT) => {
                let segments = segments.chunks_exact(SEGMENT);
                Ok(Some(Self(segments.map(|segment| (u32_at(segment, 0), u64_at(segment, 4))).collect())))
            }
            Some([found @ b'2'..=b'9', ..]) => {
                let [found, known] = [*found, VERSION].map(|digit| (digit - b'0').into());
                Err(OpenError::Version { path, found, known })
            }
            _ => Err(OpenError::Damaged { path, offset: 0, what }),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let segments =
            self.0.iter().flat_map(|(number, end)| number.to_le_bytes().into_iter().chain(end.to_le_bytes()));
        let mut bytes: Vec<u8> = MAGIC.iter().copied().chain([VERSION]).chain(segments).collect();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    /// Sets the mark in the directory of a log, durably.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn write(&self, disk: &dyn Disk, directory: &Path) -> io::Result<()> {
        let temporary = directory.join(INCOMPLETE);
        let file = disk.create(&temporary)?;
        disk.write(&file, &self.bytes(), 0)?;
        disk.sync(&file)?;
        disk.rename(&temporary, &directory.join(NAME))?;
        sync_directory(disk, directory)
    }

    /// Removes the mark, and what an interrupted stop has left of one. Returns whether there was any of that; its
    /// removal is durable when the directory is synced.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn remove(disk: &dyn Disk, directory: &Path) -> io::Result<bool> {
        let remove = |name| match disk.remove(&directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true),
        };
        Ok(remove(INCOMPLETE)? | remove(NAME)?)
    }

    /// Where the records of a segment have to end. `None` if that is not known.
    pub fn end_of(&self, number: u32) -> Option<u64> {
        self.0.get(&number).copied()
    }

    /// The first of its segments that is not among `numbers`.
    pub fn missing(&self, numbers: &[u32]) -> Option<u32> {
        self.0.keys().copied().find(|number| !numbers.contains(number))
    }
}

/// What is in a mark, from its version on, if its checksum is right.
fn sealed(bytes: &[u8]) -> Option<&[u8]> {
    let (sealed, crc) = bytes.split_at_checked(bytes.len().checked_sub(CRC)?)?;
    (u32_at(crc, 0) == crc32c::crc32c(sealed)).then(|| sealed.strip_prefix(MAGIC)).flatten()
}

impl LogStore {
    /// Makes everything durable and sets the mark. Not if the newest segment is of an earlier version: a program of
    /// that version would go on in it and leave the mark as it is.
    pub(super) fn set_stopped(&mut self) -> Result<(), StoreError> {
        self.sync()?;
        self.sync_names()?;
        let newest = self.segments.last_key_value().map(|(_, newest)| newest);
        if newest.is_none_or(|newest| newest.len == 0 || newest.version != segment::VERSION) {
            return Ok(());
        }
        let mark = Stopped(self.segments.iter().map(|(&number, segment)| (number, segment.len)).collect());
        // whatever comes of it, the next change removes it
        self.stopped = true;
        mark.write(&*self.disk, &self.directory).map_err(|error| StoreError::of_io(&self.directory, &error))
    }

    /// Removes the mark durably: the log is about to be changed.
    pub(super) fn remove_stopped(&mut self) -> io::Result<()> {
        if Stopped::remove(&*self.disk, &self.directory)? || self.stopped {
            sync_directory(&*self.disk, &self.directory)?;
            self.stopped = false;
        }
        Ok(())
    }
}
