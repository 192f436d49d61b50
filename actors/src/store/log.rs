//! The embedded backend: an append-only log of records in segment files.
//!
//! A commit appends its changes to the newest segment and syncs it, once, at the latest with the next. Space is given back from the oldest
//! segment only: what still lives there is appended again, then the file is deleted. So a removal can never be
//! forgotten before the record that it removes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::payload::Payload;
use crate::store::disk::{Appender, Disk, SystemDisk};
use crate::store::segment::{self, Kind, Place, Record, SEGMENT_HEADER};
use crate::store::{Change, Committed, Durable, NO_RECORD, OpenError, Recovered, Seq, Store, StoreError};

mod recover;
mod space;

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
    segments: BTreeMap<u32, Segment>,
    ahead: Ahead,
    /// The newest segment has records that are not synced.
    unsynced: bool,
    /// A tree, which takes growing numbers at its end: faster to fill than a hash table.
    index: BTreeMap<Seq, Location>,
    /// Bytes of all records that live, headers included.
    live: u64,
    /// Bytes of all segments.
    total: u64,
    next_seq: Seq,
    /// The reserve of disk space is there.
    reserved: bool,
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
    file: Arc<File>,
    salt: u32,
    len: u64,
    live: u64,
    /// The records that were put here, in their order; most may live elsewhere by now, or not at all.
    put: Vec<Seq>,
}

/// Where a record is. There may be millions, so this is no more than what is needed to find it and to forget it.
#[derive(Clone, Copy, Debug)]
struct Location {
    segment: u32,
    offset: u64,
    len: u64,
}

impl Segment {
    fn new(file: Arc<File>, salt: u32) -> Self {
        Self { file, salt, len: SEGMENT_HEADER, live: 0, put: Vec::new() }
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
        if let Some((&number, segment)) = self.segments.last_key_value()
            && (SEGMENT_HEADER..self.segment_bytes).contains(&segment.len)
        {
            return Ok((number, Arc::clone(&segment.file), segment.salt, segment.len));
        }
        self.sync().map_err(|error| self.fail(&error))?;
        self.begin_segment().map_err(|error| self.refuse(&error))
    }

    fn begin_segment(&mut self) -> io::Result<(u32, Arc<File>, u32, u64)> {
        let number = self.segments.last_key_value().map_or(1, |(number, _)| number + 1);
        let path = self.path(number);
        let salt = rand::random();
        let file = self.disk.create(&path)?;
        self.disk.write(&file, &segment::segment_header(number.into(), self.next_seq, salt), 0)?;
        self.disk.sync(&file)?;
        self.disk.sync_directory(&self.directory)?;
        let file = Arc::new(file);
        self.segments.insert(number, Segment::new(Arc::clone(&file), salt));
        self.ahead.file_end = SEGMENT_HEADER;
        self.total += SEGMENT_HEADER;
        Ok((number, file, salt, SEGMENT_HEADER))
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
        // none where the next segment begins: there, what is not a record is damage
        let zeros = zeros.min(self.segment_bytes.saturating_sub(end));
        if zeros > 0 && self.disk.write(file, &vec![0; zeros as usize], end).is_err() {
            // the last room belongs to records
            *next = 0;
            return self.disk.set_len(file, end);
        }
        *file_end += zeros;
        Ok(())
    }

    /// Syncs the newest segment, unless it is.
    fn sync(&mut self) -> io::Result<()> {
        if let Some((_, segment)) = self.segments.last_key_value()
            && self.unsynced
        {
            self.disk.sync(&segment.file)?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Appends records, and syncs them with all before. Returns where each one starts.
    fn append(
        &mut self,
        records: &[(Record, &[u8], &[Bytes])],
        durable: Durable,
    ) -> Result<(u32, Vec<u64>), StoreError> {
        let (number, file, salt, start) = self.newest()?;
        let mut offsets = Vec::with_capacity(records.len());
        let mut appender = Appender::new(&*self.disk, &file, start);
        let written = records.iter().try_for_each(|(record, meta, body)| {
            let place = Place { salt, begins_commit: offsets.is_empty() && !self.unsynced };
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
        self.unsynced = true;
        if durable == Durable::Now
            && let Err(error) = self.sync()
        {
            // The kernel may have dropped the pages and call them clean. Cut off, they are not taken for durable by
            // whoever opens this log next, and what is written in their place is written anew.
            let _ = self.disk.set_len(&file, start);
            return Err(self.fail(&error));
        }
        if !is_the_file_at(&file, &self.path(number)) {
            return Err(self.gone());
        }
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.len = end;
        }
        self.total += end - start;
        Ok((number, offsets))
    }

    /// A write has failed: for want of room, which may come back, or for good.
    fn refuse(&mut self, error: &io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StoreError::NoSpace(format!("{}: {error}", self.directory.display()))
            }
            _ => self.fail(error),
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

/// Whether the next start will find `file` at `path`. A record in a file that has been deleted, or whose directory has
/// been moved away, is durable and lost all the same.
fn is_the_file_at(file: &File, path: &Path) -> bool {
    let identity = |of: fs::Metadata| (of.dev(), of.ino());
    file.metadata().is_ok_and(|open| fs::metadata(path).is_ok_and(|named| identity(open) == identity(named)))
}

impl Store for LogStore {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Committed, StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        changes.iter().try_for_each(Change::check)?;
        let mut records: Vec<(Record, &[u8], &[Bytes])> = Vec::with_capacity(changes.len());
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
                    records.push((record, meta, body));
                }
                Change::Remove(seq) if *seq == NO_RECORD || self.index.contains_key(seq) => {
                    let record = Record { kind: Kind::Removed, seq: *seq, meta_len: 0, body_crc: 0, body_len: 0 };
                    records.push((record, &[], &[]));
                }
                Change::Remove(_) => {}
            }
        }
        let mut committed = Committed::default();
        if records.is_empty() {
            if durable == Durable::Now {
                self.sync().map_err(|error| self.fail(&error))?;
            }
            return Ok(committed);
        }
        let frees_only = records.iter().all(|(record, ..)| record.kind == Kind::Removed && record.seq != NO_RECORD);
        if !frees_only && !self.reserve() {
            return Err(StoreError::NoSpace(format!("{}: no room for the reserve", self.directory.display())));
        }
        let (number, offsets) = match self.append(&records, durable) {
            Err(StoreError::NoSpace(_)) if frees_only && self.release_reserve() => self.append(&records, durable)?,
            appended => appended?,
        };
        for ((record, ..), offset) in records.into_iter().zip(offsets) {
            match record.kind {
                Kind::Put => {
                    self.next_seq = self.next_seq.max(record.seq + 1);
                    let body = self.place(number, offset, &record);
                    committed.bodies.push(body);
                }
                Kind::Removed => {
                    self.forget(record.seq);
                }
            }
        }
        // the changes are made, whatever becomes of the space that they free
        if let Err(error) = self.give_space_back(&mut committed.moved) {
            log::warn!("cannot give disk space back: {error}");
        }
        Ok(committed)
    }
}
