//! The embedded backend: an append-only log of records in segment files.
//!
//! A commit appends its changes to the newest segment and syncs it, once, at the latest with the next. Space is given back from the oldest
//! segment only: what still lives there is appended again, then the file is deleted. So a removal can never be
//! forgotten before the record that it removes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::payload::Payload;
use crate::store::disk::{Appender, Disk, SystemDisk, Transient, sync_directory, transient};
use crate::store::files::{Files, SegmentFile};
use crate::store::segment::{self, Kind, Place, Record, SEGMENT_HEADER};
use crate::store::{Change, Durable, NO_RECORD, OpenError, Recovered, Seq, Store, StoreError, Tidied};

mod recover;
mod relocate;
mod space;

use relocate::Relocation;
use space::Pause;

/// A commit that finds the newest segment at least this large begins another. Small enough that moving what lives
/// in one segment takes milliseconds, large enough that 4 GiB of messages need no more than 256 open files.
const SEGMENT_BYTES: u64 = 16 << 20;

/// How many zeros are written at the most behind the records of the newest segment: those of 2,500 messages of 300 B,
/// and about a millisecond of the disk's time.
const MAX_AHEAD: u64 = 1 << 20;

/// The least of them.
const MIN_AHEAD: u64 = 64 << 10;

/// A commit longer than this gets no zeros behind it: to write them would take as long as they save.
const MAX_SMALL_COMMIT: u64 = 64 << 10;

/// A store in a directory of its own, which it locks.
#[derive(Debug)]
pub struct LogStore {
    disk: Box<dyn Disk>,
    segment_bytes: u64,
    directory: PathBuf,
    _lock: File,
    files: Arc<Files>,
    segments: BTreeMap<u32, Segment>,
    /// The file of the newest segment, open to be written.
    newest_file: Option<Arc<File>>,
    ahead: Ahead,
    /// How long the newest segment is as far as it is synced; where it is longer, what follows is not.
    synced_len: u64,
    /// Records that were removed, which is not durable yet.
    unsynced_removals: Vec<Seq>,
    /// The removals of these have been cut off with what followed the synced part, and must be written again.
    cut_off: bool,
    /// Names of files have changed, and the directory is not synced.
    unsynced_names: bool,
    /// A tree, which takes growing numbers at its end: faster to fill than a hash table.
    index: BTreeMap<Seq, Location>,
    /// The segments that compaction keeps as they are, because a record there cannot be read.
    unreadable: BTreeSet<u32>,
    /// The last segment that compaction has failed to move records out of because the disk is full. While the pause after
    /// that lasts, compaction works on the segments behind it.
    stuck: Option<u32>,
    /// For a segment: the first segment that may hold removals of its records. It is the segment itself if there is no
    /// entry.
    removals_from: BTreeMap<u32, u32>,
    /// Bytes of all records that live, headers included.
    live: u64,
    /// Bytes of all segments.
    total: u64,
    next_seq: Seq,
    /// The reserve of disk space is there.
    reserved: bool,
    /// How much room a commit was refused for, since when none was taken.
    refused: Option<u64>,
    /// Of trying to get the reserve.
    reserve_pause: Pause,
    /// Of trying to move records.
    move_pause: Pause,
    relocation: Option<Relocation>,
    failed: Option<StoreError>,
}

/// The zeros behind the records of the newest segment. A commit that overwrites them changes neither the length of the
/// file nor where it lies on the disk, so that its sync writes nothing else: 200 µs instead of 300 on ext4. A segment
/// that is no longer the newest has none.
#[derive(Debug, Default)]
struct Ahead {
    /// Where the newest segment's file ends.
    file_end: u64,
    /// How many the next small commit gets that comes to the end of the file. They double while only small ones come, so
    /// that one between large ones costs nothing.
    next: u64,
}

#[derive(Debug)]
struct Segment {
    file: Arc<SegmentFile>,
    salt: u32,
    len: u64,
    live: u64,
    /// The records that were put here, in their order; most may live elsewhere by now, or not at all.
    put: Vec<Seq>,
    /// How many of them have been moved, or were found dead by who moves them.
    passed: usize,
}

/// Where a record is. There may be millions, so this is no more than what is needed to find it and to forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Location {
    segment: u32,
    offset: u64,
    len: u64,
}

impl Segment {
    fn new(file: Arc<SegmentFile>, salt: u32) -> Self {
        Self { file, salt, len: SEGMENT_HEADER, live: 0, put: Vec::new(), passed: 0 }
    }

    /// One whose file is empty: nothing in it is needed.
    fn given_up(file: Arc<SegmentFile>) -> Self {
        Self { len: 0, ..Self::new(file, 0) }
    }
}

impl LogStore {
    /// Opens the store in `directory`, which is made where it does not exist, and returns the records that live
    /// there in the order of their numbers.
    ///
    /// What a crash has left torn at the end of the newest segment was never acknowledged; it is cut off.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing is changed in a directory that could not be opened.
    pub fn open(directory: &Path) -> Result<(Self, Vec<Recovered>), OpenError> {
        Self::open_on(Box::new(SystemDisk), directory, SEGMENT_BYTES)
    }

    /// The number that the next record is to have.
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// Enters a record that stands in a segment into the index, in place of an earlier copy.
    fn place(&mut self, number: u32, offset: u64, record: &Record) -> Payload {
        let len = record.len();
        if let Some(earlier) = self.index.insert(record.seq, Location { segment: number, offset, len }) {
            self.left(earlier);
        }
        self.live += len;
        let Some(segment) = self.segments.get_mut(&number) else {
            unreachable!("a record is placed in a segment that is there")
        };
        segment.live += len;
        segment.put.push(record.seq);
        Payload::File { file: Arc::clone(&segment.file), offset: record.body_offset(offset), len: record.body_len }
    }

    fn forget(&mut self, seq: Seq) {
        if let Some(location) = self.index.remove(&seq) {
            self.left(location);
        }
    }

    /// A record lives no more where it was.
    fn left(&mut self, Location { segment, len, .. }: Location) {
        self.live -= len;
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live -= len;
        }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.directory.join(format!("{number:016}.log"))
    }

    /// The newest segment, with room for more: its number, its file, its salt and its length.
    fn newest(&mut self) -> Result<(u32, Arc<File>, u32, u64), StoreError> {
        // what is acknowledged is in a file that has its name
        self.sync_names()?;
        if let Some((&number, segment)) = self.segments.last_key_value()
            && let Some(file) = &self.newest_file
            && (SEGMENT_HEADER..self.segment_bytes).contains(&segment.len)
            && !self.is_cut(file, segment.len)
        {
            return Ok((number, Arc::clone(file), segment.salt, segment.len));
        }
        self.close_newest()?;
        self.begin_segment()
    }

    /// Whether somebody else has cut `file`, which has records up to `len`. What was cut off must not be read as zeros,
    /// as it would be if more was written behind it.
    fn is_cut(&self, file: &File, len: u64) -> bool {
        let cut = file.metadata().ok().map(|metadata| metadata.len()).filter(|found| *found < len);
        if let Some(found) = cut {
            let directory = self.directory.display();
            log::error!("{directory}: somebody has cut the newest segment from {len} to {found} bytes");
        }
        cut.is_some()
    }

    /// Syncs the newest segment and its name, and cuts off the zeros behind its records, before another segment follows. In
    /// a segment that others follow, anything but a record is damage, and a name that a power failure has lost would be a
    /// missing segment.
    fn close_newest(&mut self) -> Result<(), StoreError> {
        self.sync_names()?;
        self.sync()?;
        let len = self.segments.last_key_value().map_or(0, |(_, newest)| newest.len);
        if let Some(file) = self.newest_file.clone()
            && self.ahead.file_end > len
            && !self.is_cut(&file, len)
        {
            let cut = self.disk.set_len(&file, len).and_then(|()| self.disk.sync(&file));
            cut.map_err(|error| self.refuse(&error))?;
            self.ahead.file_end = len;
        }
        Ok(())
    }

    fn begin_segment(&mut self) -> Result<(u32, Arc<File>, u32, u64), StoreError> {
        let number = self.next_number();
        let path = self.path(number);
        let salt = rand::random();
        let begin = |file: File| -> io::Result<Arc<File>> {
            self.disk.write(&file, &segment::segment_header(number.into(), self.next_seq, salt), 0)?;
            self.disk.sync(&file)?;
            sync_directory(&*self.disk, &self.directory)?;
            Ok(Arc::new(file))
        };
        let file = self.disk.create(&path).and_then(begin).map_err(|error| {
            // half of it is nothing; the next try makes another
            let _ = self.disk.remove(&path);
            self.refuse(&error)
        })?;
        self.add_newest(number, Arc::clone(&file), Segment::new(self.segment_file(number), salt));
        Ok((number, file, salt, SEGMENT_HEADER))
    }

    fn next_number(&self) -> u32 {
        self.segments.last_key_value().map_or(1, |(number, _)| number + 1)
    }

    fn segment_file(&self, number: u32) -> Arc<SegmentFile> {
        SegmentFile::new(&self.files, number, self.path(number))
    }

    /// A segment that is synced as far as it goes is the newest from now on.
    fn add_newest(&mut self, number: u32, file: Arc<File>, segment: Segment) {
        segment.file.is_open(&file);
        self.newest_file = Some(file);
        self.ahead.file_end = segment.len;
        self.synced_len = segment.len;
        self.total += segment.len;
        self.segments.insert(number, segment);
    }

    /// Writes zeros behind a commit that has come to the end of the newest segment's file.
    fn fill_ahead(&mut self, file: &File, start: u64, end: u64) -> io::Result<()> {
        let Ahead { file_end, next } = &mut self.ahead;
        if end <= *file_end {
            return Ok(());
        }
        *file_end = end;
        if end - start > MAX_SMALL_COMMIT {
            *next = 0;
            return Ok(());
        }
        let zeros = std::mem::replace(next, (*next * 2).clamp(MIN_AHEAD, MAX_AHEAD));
        // none where the next segment begins, and the last room belongs to records
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

    /// Syncs the newest segment, unless it is.
    fn sync(&mut self) -> Result<(), StoreError> {
        let Some(file) = self.newest_file.clone().filter(|_| self.has_unsynced()) else { return Ok(()) };
        let Err(error) = self.disk.sync(&file) else {
            self.synced_len = self.segments.last_key_value().map_or(SEGMENT_HEADER, |(_, newest)| newest.len);
            if !self.cut_off {
                self.unsynced_removals.clear();
            }
            return Ok(());
        };
        // The kernel may have dropped the pages and call them clean. Cut off, they are not taken for durable by whoever
        // opens this log next, and what comes in their place is written anew.
        let cut = self.disk.set_len(&file, self.synced_len);
        if transient(&error).is_none() {
            return Err(self.fail(&error));
        }
        cut.map_err(|error| self.fail(&error))?;
        self.ahead.file_end = self.synced_len;
        self.cut_off |= !self.unsynced_removals.is_empty();
        if let Some((_, newest)) = self.segments.iter_mut().next_back() {
            self.total -= newest.len - self.synced_len;
            newest.len = self.synced_len;
        }
        Err(self.refuse(&error))
    }

    /// Syncs the directory, unless it is.
    fn sync_names(&mut self) -> Result<(), StoreError> {
        if self.unsynced_names {
            sync_directory(&*self.disk, &self.directory).map_err(|error| self.refuse(&error))?;
            self.unsynced_names = false;
        }
        Ok(())
    }

    /// Appends records, and syncs them with all before. Returns where each one starts.
    fn append(&mut self, records: &[ToWrite], durable: Durable) -> Result<(u32, Vec<u64>), StoreError> {
        let (number, file, salt, start) = self.newest()?;
        let mut offsets = Vec::with_capacity(records.len());
        let mut appender = Appender::new(&*self.disk, &file, start);
        let has_unsynced = self.has_unsynced();
        let written = records.iter().try_for_each(|ToWrite { record, meta, body }| {
            let place = Place { salt, begins_commit: offsets.is_empty() && !has_unsynced };
            offsets.push(appender.position());
            record.write(meta, place, &mut appender.gathered);
            body.iter().try_for_each(|part| appender.append(part))
        });
        let written = written.and_then(|()| appender.flush());
        let end = appender.position();
        let written = written.and_then(|()| self.fill_ahead(&file, start, end));
        if let Err(error) = written {
            // what was written of it must not stand between this record and the next
            self.ahead.file_end = start;
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
            return Err(self.gone());
        }
        Ok((number, offsets))
    }

    /// An operation has failed: for want of something that may come back, or for good.
    fn refuse(&mut self, error: &io::Error) -> StoreError {
        let words = || format!("{}: {error}", self.directory.display());
        match transient(error) {
            Some(Transient::NoSpace) => StoreError::NoSpace(words()),
            Some(Transient::Busy) => StoreError::Busy(words()),
            None => self.fail(error),
        }
    }

    fn gone(&mut self) -> StoreError {
        let error = StoreError::Gone(self.directory.clone());
        self.failed = Some(error.clone());
        error
    }

    fn fail(&mut self, error: &io::Error) -> StoreError {
        if error.kind() == io::ErrorKind::NotFound {
            return self.gone();
        }
        let error = StoreError::Failed(format!("{}: {error}", self.directory.display()));
        self.failed = Some(error.clone());
        error
    }
}

/// A record that is to be written.
struct ToWrite<'a> {
    record: Record,
    meta: &'a [u8],
    body: &'a [Bytes],
}

impl ToWrite<'_> {
    fn removal(seq: Seq) -> Self {
        let record = Record { kind: Kind::Removed, seq, meta_len: 0, body_crc: 0, body_len: 0 };
        Self { record, meta: &[], body: &[] }
    }
}

/// Whether the next start will find `file` at `path`. A record in a file that has been deleted, or whose directory has
/// been moved away, is durable and lost all the same. What cannot be found out counts as true.
fn is_the_file_at(file: &File, path: &Path) -> bool {
    let identity = |of: fs::Metadata| (of.dev(), of.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        (_, Err(error)) => transient(&error).is_some(),
        (Err(_), Ok(_)) => true,
    }
}

impl Store for LogStore {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        changes.iter().try_for_each(Change::check)?;
        let again = if self.cut_off { self.unsynced_removals.clone() } else { Vec::new() };
        let mut records: Vec<ToWrite> = again.iter().copied().map(ToWrite::removal).collect();
        for change in changes {
            match change {
                Change::Put { seq, meta, body } => {
                    let record = Record {
                        kind: Kind::Put,
                        seq: *seq,
                        meta_len: meta.len() as u32,
                        body_crc: body.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part)),
                        body_len: body.iter().map(|part| part.len() as u64).sum(),
                    };
                    records.push(ToWrite { record, meta, body });
                }
                Change::Remove(seq) if *seq == NO_RECORD || self.index.contains_key(seq) => {
                    records.push(ToWrite::removal(*seq));
                }
                Change::Remove(_) => {}
            }
        }
        if records.is_empty() {
            if durable == Durable::Now {
                self.sync()?;
            }
            return Ok(Vec::new());
        }
        let (number, offsets) = self.append_with_reserve(&records, durable)?;
        if self.cut_off {
            self.cut_off = false;
            self.unsynced_removals.clear();
        }
        let mut bodies = Vec::new();
        for (ToWrite { record, .. }, offset) in records.iter().zip(offsets) {
            match record.kind {
                Kind::Put => {
                    self.next_seq = self.next_seq.max(record.seq + 1);
                    bodies.push(self.place(number, offset, record));
                }
                Kind::Removed => {
                    self.forget(record.seq);
                    if durable == Durable::Later {
                        self.unsynced_removals.push(record.seq);
                    }
                }
            }
        }
        if durable == Durable::Now {
            self.unsynced_removals.clear();
        }
        Ok(bodies)
    }

    fn check_space(&mut self) -> Result<(), StoreError> {
        LogStore::check_space(self)
    }

    fn tidy(&mut self) -> Result<Tidied, StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.give_space_back()
    }
}
