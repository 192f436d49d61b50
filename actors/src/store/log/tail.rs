//! The end of the newest segment as a start finds it: read from the page cache, and perhaps not on the disk.
//!
//! A process may have ended between a write and its sync, or because the sync failed. Linux keeps a page that it could
//! not write and takes it for written. So the next process reads it, and another sync succeeds without writing it. What
//! is found must be durable before anybody relies on it: before a retry is answered, and above all before anything is
//! deleted that it takes the place of. So it is written once more.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::LogStore;
use crate::store::disk::{Transient, transient};
use crate::store::segment::{FoundHeader, MetaMemory, Reader, SEGMENT_HEADER};

/// How many bytes are written at once.
const CHUNK: u64 = 1 << 20;

impl LogStore {
    /// Makes the newest segment durable. The records in the range `tail` are all that was perhaps never synced; if it
    /// starts at 0, so is the segment's header.
    ///
    /// The same bytes are written to the same place. So a crash in the middle changes nothing, and after an error the
    /// next start finds the same tail and writes it again.
    ///
    /// # Errors
    /// What the file system reports, and `InvalidData` if what was read before came from the page cache alone and has
    /// left it meanwhile.
    pub(super) fn make_durable(&self, number: u32, file: &File, tail: Range<u64>) -> io::Result<()> {
        match self.write_again(file, &tail) {
            // a file system that writes to another place needs space even for that
            Err(error)
                if transient(&error) == Some(Transient::NoSpace) && self.disk.remove(&self.reserve_path()).is_ok() =>
            {
                self.write_again(file, &tail)?;
            }
            written => written?,
        }
        if tail.is_empty() || is_sound(number, file, tail)? {
            return Ok(());
        }
        let what = "its last records were never written, and have left the page cache; the next start cuts them off";
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    fn write_again(&self, file: &File, tail: &Range<u64>) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK.min(tail.end - tail.start) as usize];
        let mut at = tail.start;
        while at < tail.end {
            let part = &mut chunk[..CHUNK.min(tail.end - at) as usize];
            file.read_exact_at(part, at)?;
            self.disk.write(file, part, at)?;
            at += part.len() as u64;
        }
        self.disk.sync(file)
    }
}

/// Whether the records that were read before were also those that have been written.
fn is_sound(number: u32, file: &File, tail: Range<u64>) -> io::Result<bool> {
    let mut metas = MetaMemory::default();
    let mut reader = Reader::new(file, &mut metas)?;
    let is_segment = matches!(reader.header(number)?, FoundHeader::Sound { .. });
    Ok(is_segment && reader.is_sound(tail.start.max(SEGMENT_HEADER), tail.end)?)
}
