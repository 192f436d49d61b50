//! The newest segment: records are appended to it, overwrite preallocated zeros there, and are synced.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::bodies::SyncError;
use super::new_record::NewRecord;
use super::{LogStore, Segment};
use crate::store::disk::{Appender, sync_directory, transient};
use crate::store::segment::{self, Mark, Record, SEGMENT_HEADER};
use crate::store::{Durable, StoreError};

/// The most zeros that are preallocated behind the records of the newest segment: space for 2,500 messages of 300 B,
/// and about a millisecond of disk time.
const MAX_PREALLOCATED: u64 = 1 << 20;

/// The fewest zeros that are preallocated.
const MIN_PREALLOCATED: u64 = 64 << 10;

/// A longer commit gets no zeros behind it: writing them would take as long as they save.
const MAX_SMALL_COMMIT: u64 = 64 << 10;

/// The zeros behind the records of the newest segment. A commit that overwrites them changes neither the length of the
/// file nor its extents, so its sync writes no metadata: 200 µs instead of 300 on ext4. Older segments have no zeros.
#[derive(Debug, Default)]
pub(super) struct Preallocated {
    /// Where the file of the newest segment ends.
    pub file_end: u64,
    /// How many zeros the next small commit gets that reaches the end of the file. Doubles while only small commits
    /// come, so that a small one between large ones costs nothing.
    next: u64,
}

/// The newest segment, as far as appending needs it.
struct Newest {
    number: u32,
    file: Arc<File>,
    salt: u32,
    len: u64,
}

impl LogStore {
    /// How many zeros there are behind the records of the newest segment.
    pub(super) fn preallocated_bytes(&self) -> u64 {
        let len = self.segments.last_key_value().map_or(0, |(_, segment)| segment.len);
        self.preallocated.file_end.saturating_sub(len)
    }

    /// The newest segment, if it has space for more and is of the version that this program writes; begins another if
    /// not.
    fn newest(&mut self) -> Result<Newest, StoreError> {
        // what is acknowledged is in a file whose name is durable
        self.sync_names()?;
        if let Some((&number, segment)) = self.segments.last_key_value()
            && let Some(file) = &self.newest_file
            && (SEGMENT_HEADER..self.segment_bytes).contains(&segment.len)
            && segment.version == segment::VERSION
            && !self.is_truncated(file, segment.len)
        {
            return Ok(Newest { number, file: Arc::clone(file), salt: segment.salt, len: segment.len });
        }
        self.close_newest()?;
        self.begin_segment()
    }

    /// Whether somebody else has truncated `file`, which has records up to `len`. If more were written behind the
    /// missing part, it would be read as zeros.
    fn is_truncated(&self, file: &File, len: u64) -> bool {
        let found = file.metadata().ok().map(|metadata| metadata.len()).filter(|found| *found < len);
        if let Some(found) = found {
            let directory = self.directory.display();
            log::error!("{directory}: somebody has truncated the newest segment from {len} to {found} bytes");
        }
        found.is_some()
    }

    /// Syncs the newest segment and its name, and cuts off the zeros behind its records, before another segment
    /// follows. In a segment that others follow, anything but a record is damage, and a name that a power failure has
    /// lost would be a missing segment.
    pub(super) fn close_newest(&mut self) -> Result<(), StoreError> {
        self.sync_names()?;
        self.sync()?;
        let len = self.segments.last_key_value().map_or(0, |(_, newest)| newest.len);
        if let Some(file) = self.newest_file.clone()
            && self.preallocated.file_end > len
            && !self.is_truncated(&file, len)
        {
            let cut = self.disk.set_len(&file, len).and_then(|()| self.disk.sync(&file));
            cut.map_err(|error| self.refuse(&error))?;
            self.preallocated.file_end = len;
        }
        Ok(())
    }

    /// Begins another segment before the newest is full, so that the space of the newest can be given back.
    pub(super) fn leave_newest(&mut self) -> Result<(), StoreError> {
        self.close_newest()?;
        match self.begin_segment() {
            Err(StoreError::NoSpace(_)) if self.release_reserve() => self.begin_segment().map(drop),
            begun => begun.map(drop),
        }
    }

    fn begin_segment(&mut self) -> Result<Newest, StoreError> {
        let number = self.next_number();
        let path = self.path(number);
        let salt = rand::random();
        let begin = |file: File| -> io::Result<Arc<File>> {
            self.disk.write(&file, &segment::segment_header(number, self.next_seq, salt), 0)?;
            self.disk.sync(&file)?;
            sync_directory(&*self.disk, &self.directory)?;
            Ok(Arc::new(file))
        };
        let file = self.disk.create(&path).and_then(begin).map_err(|error| {
            // An incomplete segment is useless. Its name must be gone before a record follows in the segment before:
            // recovery expects a torn tail or zeros in the last segment only.
            self.unsynced_names = true;
            let removed = self.disk.remove(&path);
            if removed.is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
                // nothing is appended until the next attempt has made it anew
                self.newest_file = None;
            }
            self.refuse(&error)
        })?;
        self.add_newest(number, Arc::clone(&file), Segment::new(self.segment_file(number), salt));
        Ok(Newest { number, file, salt, len: SEGMENT_HEADER })
    }

    /// Makes `segment`, which is synced, the newest.
    pub(super) fn add_newest(&mut self, number: u32, file: Arc<File>, segment: Segment) {
        segment.file.is_open(&file);
        self.newest_file = Some(file);
        self.preallocated.file_end = segment.len;
        self.synced_len = segment.len;
        self.total += segment.len;
        self.segments.insert(number, segment);
    }

    /// Writes zeros behind a commit that has reached the end of the newest segment's file.
    fn preallocate(&mut self, file: &File, start: u64, end: u64) -> io::Result<()> {
        let Preallocated { file_end, next } = &mut self.preallocated;
        if end <= *file_end {
            return Ok(());
        }
        *file_end = end;
        if end - start > MAX_SMALL_COMMIT {
            *next = 0;
            return Ok(());
        }
        let zeros = std::mem::replace(next, (*next * 2).clamp(MIN_PREALLOCATED, MAX_PREALLOCATED));
        // none beyond the end of the segment, and none while the disk is full: records need the space
        let zeros = if self.refused.is_some() { 0 } else { zeros.min(self.segment_bytes.saturating_sub(end)) };
        if zeros > 0 && self.disk.write(file, &vec![0; zeros as usize], end).is_err() {
            *next = 0;
            return self.disk.set_len(file, end);
        }
        *file_end += zeros;
        Ok(())
    }

    /// Whether the newest segment has records that are not synced.
    fn has_unsynced(&self) -> bool {
        self.segments.last_key_value().is_some_and(|(_, newest)| newest.len > self.synced_len)
    }

    /// Syncs the newest segment, if necessary.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        let is_synced = !self.unsynced_cut && !self.has_unsynced();
        let Some(file) = self.newest_file.clone().filter(|_| !is_synced) else { return Ok(()) };
        let Err(error) = self.disk.sync(&file) else {
            self.unsynced_cut = false;
            self.bodies.refused_are_gone();
            self.synced_len = self.segments.last_key_value().map_or(SEGMENT_HEADER, |(_, newest)| newest.len);
            if !self.cut_off {
                self.unsynced_removals.clear();
                self.bodies.removals_are_durable();
            }
            return Ok(());
        };
        // The kernel may have dropped the pages and marked them clean. Cut off, they cannot pass for durable at the
        // next start, and what replaces them is written anew.
        self.unsynced_cut = true;
        let cut = self.disk.set_len(&file, self.synced_len);
        if transient(&error).is_none() {
            return Err(self.fail(&error));
        }
        cut.map_err(|error| self.fail(&error))?;
        self.preallocated.file_end = self.synced_len;
        self.cut_off |= !self.unsynced_removals.is_empty();
        if let Some((_, newest)) = self.segments.iter_mut().next_back() {
            self.total -= newest.len - self.synced_len;
            newest.len = self.synced_len;
        }
        Err(self.refuse(&error))
    }

    /// Syncs the directory, if necessary.
    pub(super) fn sync_names(&mut self) -> Result<(), StoreError> {
        if self.unsynced_names {
            sync_directory(&*self.disk, &self.directory).map_err(|error| self.refuse(&error))?;
            self.unsynced_names = false;
        }
        Ok(())
    }

    /// Appends records. Returns the segment, and each record's header with its offset there.
    pub(super) fn append(
        &mut self,
        new: &[NewRecord],
        durable: Durable,
    ) -> Result<(u32, Vec<(u64, Record)>), StoreError> {
        // a crash must not leave a record whose body is not there
        self.bodies.sync(new).map_err(|error| match error {
            SyncError::Missing(path) => self.gone(path),
            SyncError::Io(error) => self.refuse(&error),
        })?;
        let Newest { number, file, salt, len: start } = self.newest()?;
        let mut records = Vec::with_capacity(new.len());
        let mut appender = Appender::new(&*self.disk, &file, start);
        let has_unsynced = self.has_unsynced();
        let written = new.iter().try_for_each(|new| {
            let mark = Mark { salt, begins_commit: records.is_empty() && !has_unsynced };
            let record = new.header()?;
            records.push((appender.position(), record));
            record.write(&new.meta, mark, &mut appender.gathered);
            new.body.for_each_part(|part| appender.append(part))
        });
        let written = written.and_then(|()| appender.flush());
        let end = appender.position();
        let written = written.and_then(|()| self.preallocate(&file, start, end));
        if let Err(error) = written {
            // an incomplete commit must not stand between the last record and the next
            self.preallocated.file_end = start;
            self.unsynced_cut = true;
            return Err(match self.disk.set_len(&file, start) {
                Ok(()) => self.refuse(&error),
                Err(second) => self.fail(&second),
            });
        }
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.len = end;
        }
        self.total += end - start;
        if durable == Durable::Now {
            self.sync()?;
        }
        if !is_the_file_at(&file, &self.path(number)) {
            return Err(self.gone(self.directory.clone()));
        }
        if let Some(path) = self.bodies.missing(new) {
            return Err(self.gone(path));
        }
        Ok((number, records))
    }
}

/// Whether the next start will find `file` at `path`. A record in a file that was deleted, or whose directory was moved
/// away, is durable and lost all the same. True if that cannot be determined.
pub(super) fn is_the_file_at(file: &File, path: &Path) -> bool {
    let identity = |of: fs::Metadata| (of.dev(), of.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        (_, Err(error)) => transient(&error).is_some(),
        (Err(_), Ok(_)) => true,
    }
}
