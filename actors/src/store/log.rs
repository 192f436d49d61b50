//! The embedded backend: an append-only log of records in segment files.
//!
//! A commit appends its changes to the newest segment and syncs it, once. Space is given back from the oldest
//! segment only: what still lives there is appended again, then the file is deleted. So a removal can never be
//! forgotten before the record that it removes.

use std::collections::{BTreeMap, HashMap, btree_map::Entry};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::payload::Payload;
use crate::store::segment::{self, Found, FoundHeader, Kind, Reader, Record, SEGMENT_HEADER};
use crate::store::{Change, Committed, NO_RECORD, OpenError, Recovered, Seq, Store, StoreError};

/// A commit that finds the newest segment at least this large begins another. Small enough that moving what lives
/// in one segment takes milliseconds, large enough that 4 GiB of messages need no more than 256 open files.
const SEGMENT_BYTES: u64 = 16 << 20;

/// How much the files may exceed twice what lives in them before the oldest segment is emptied. A larger share
/// would waste disk, a smaller one would copy the same records again and again.
const SLACK_BYTES: u64 = 32 << 20;

/// Bodies up to this length stay in memory too, as long as [`INLINE_BUDGET`] lasts: fetching one then costs no
/// trip to a thread that may block.
const INLINE_BODY: u64 = 16 << 10;

/// How many bytes of bodies a store keeps in memory beside those on disk.
const INLINE_BUDGET: u64 = 64 << 20;

/// How many bytes of records are moved with one sync while space is given back.
const MOVED_TOGETHER: u64 = 4 << 20;

/// Parts of a body up to this length are gathered into one write with their neighbours.
const GATHER: usize = 64 << 10;

/// A store in a directory of its own, which it locks.
#[derive(Debug)]
pub struct LogStore {
    directory: PathBuf,
    _lock: File,
    segments: BTreeMap<u64, Segment>,
    index: HashMap<Seq, Location>,
    /// Bytes of all records that live, headers included.
    live: u64,
    /// Bytes of all segments.
    total: u64,
    inline: u64,
    next_seq: Seq,
    failed: Option<StoreError>,
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    len: u64,
    live: u64,
}

#[derive(Clone, Copy, Debug)]
struct Location {
    segment: u64,
    offset: u64,
    record: Record,
    inline: bool,
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
        fs::create_dir_all(directory).map_err(OpenError::io(directory))?;
        let lock_path = directory.join("LOCK");
        let lock = File::create(&lock_path).map_err(OpenError::io(&lock_path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse(directory.to_owned()),
            TryLockError::Error(source) => OpenError::Io { path: lock_path, source },
        })?;
        let mut store = Self {
            directory: directory.to_owned(),
            _lock: lock,
            segments: BTreeMap::new(),
            index: HashMap::new(),
            live: 0,
            total: 0,
            inline: 0,
            next_seq: NO_RECORD + 1,
            failed: None,
        };
        let recovered = store.recover()?;
        Ok((store, recovered))
    }

    /// The number that the next record is to have.
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    fn recover(&mut self) -> Result<Vec<Recovered>, OpenError> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(OpenError::io(&self.directory))? {
            let name = entry.map_err(OpenError::io(&self.directory))?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        let mut records = BTreeMap::new();
        for (at, &number) in numbers.iter().enumerate() {
            self.recover_segment(number, at + 1 == numbers.len(), &mut records)?;
        }
        Ok(records.into_values().collect())
    }

    fn recover_segment(
        &mut self,
        number: u64,
        newest: bool,
        records: &mut BTreeMap<Seq, Recovered>,
    ) -> Result<(), OpenError> {
        let path = self.path(number);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(OpenError::io(&path))?;
        let file = Arc::new(file);
        let mut reader = Reader::new(&file, INLINE_BODY).map_err(OpenError::io(&path))?;
        match reader.header(number).map_err(OpenError::io(&path))? {
            FoundHeader::Sound { next_seq } => self.next_seq = self.next_seq.max(next_seq),
            FoundHeader::OtherVersion(found) => {
                return Err(OpenError::Version { path, found, known: segment::VERSION });
            }
            FoundHeader::Bad(_) if newest && file.metadata().is_ok_and(|file| file.len() <= SEGMENT_HEADER) => {
                // the crash came while the segment was begun
                return fs::remove_file(&path).map_err(OpenError::io(&path));
            }
            FoundHeader::Bad(what) => return Err(OpenError::Damaged { path, offset: 0, what }),
        }
        self.segments.insert(number, Segment { file: Arc::clone(&file), len: SEGMENT_HEADER, live: 0 });
        self.total += SEGMENT_HEADER;
        loop {
            match reader.next().map_err(OpenError::io(&path))? {
                Found::Record { offset, record, meta, body } => {
                    self.next_seq = self.next_seq.max(record.seq + 1);
                    if let Some(segment) = self.segments.get_mut(&number) {
                        segment.len += record.len();
                    }
                    self.total += record.len();
                    match record.kind {
                        Kind::Put => {
                            let body = self.place(number, offset, record, body.as_ref().map(std::slice::from_ref));
                            records.insert(record.seq, Recovered { seq: record.seq, meta, body });
                        }
                        Kind::Removed => {
                            self.forget(record.seq);
                            records.remove(&record.seq);
                        }
                    }
                }
                Found::End => return Ok(()),
                Found::Bad { offset, what } if newest => {
                    log::warn!("{}: {what} at byte {offset}; cut off, as a crash leaves it", path.display());
                    file.set_len(offset).and_then(|()| file.sync_all()).map_err(OpenError::io(&path))?;
                    return Ok(());
                }
                Found::Bad { offset, what } => return Err(OpenError::Damaged { path, offset, what }),
            }
        }
    }

    /// Enters a record that stands in a segment into the index, in place of an earlier copy. A small `body` is kept
    /// in memory while there is room.
    fn place(&mut self, number: u64, offset: u64, record: Record, body: Option<&[Bytes]>) -> Payload {
        self.forget(record.seq);
        let inline = body.filter(|_| record.body_len <= INLINE_BODY && self.inline + record.body_len <= INLINE_BUDGET);
        self.live += record.len();
        if inline.is_some() {
            self.inline += record.body_len;
        }
        self.index.insert(record.seq, Location { segment: number, offset, record, inline: inline.is_some() });
        let segment = self.segments.entry(number).and_modify(|segment| segment.live += record.len());
        match (inline, segment) {
            // a copy: the parts may be slices of something far larger
            (Some(parts), _) => Payload::from_parts(vec![parts.concat().into()]),
            (None, Entry::Occupied(segment)) => Payload::File {
                file: Arc::clone(&segment.get().file),
                offset: record.body_offset(offset),
                len: record.body_len,
            },
            (None, Entry::Vacant(_)) => unreachable!("a record is placed in a segment that is there"),
        }
    }

    fn forget(&mut self, seq: Seq) -> bool {
        let Some(location) = self.index.remove(&seq) else { return false };
        self.live -= location.record.len();
        if location.inline {
            self.inline -= location.record.body_len;
        }
        if let Some(segment) = self.segments.get_mut(&location.segment) {
            segment.live -= location.record.len();
        }
        true
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:016}.log"))
    }

    /// The newest segment, with room for more: its number, its file and its length.
    fn newest(&mut self) -> io::Result<(u64, Arc<File>, u64)> {
        if let Some((&number, segment)) = self.segments.last_key_value()
            && segment.len < SEGMENT_BYTES
        {
            return Ok((number, Arc::clone(&segment.file), segment.len));
        }
        let number = self.segments.last_key_value().map_or(1, |(number, _)| number + 1);
        let path = self.path(number);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.write_all_at(&segment::segment_header(number, self.next_seq), 0)?;
        file.sync_all()?;
        File::open(&self.directory)?.sync_all()?;
        let file = Arc::new(file);
        self.segments.insert(number, Segment { file: Arc::clone(&file), len: SEGMENT_HEADER, live: 0 });
        self.total += SEGMENT_HEADER;
        Ok((number, file, SEGMENT_HEADER))
    }

    /// Appends records and syncs them. Returns where each one starts.
    fn append(&mut self, records: &[(Record, &[u8], &[Bytes])]) -> Result<(u64, Vec<u64>), StoreError> {
        let (number, file, start) = self.newest().map_err(|error| StoreError::from_write(&error))?;
        let mut offsets = Vec::with_capacity(records.len());
        let mut appender = Appender { file: &file, offset: start, gathered: Vec::new() };
        let written = records.iter().try_for_each(|(record, meta, body)| {
            offsets.push(appender.position());
            record.write(meta, &mut appender.gathered);
            body.iter().try_for_each(|part| appender.append(part))
        });
        if let Err(error) = written.and_then(|()| appender.flush()) {
            let error = StoreError::from_write(&error);
            // what was written of it must not stand between this record and the next
            return Err(match file.set_len(start) {
                Ok(()) => error,
                Err(second) => self.fail(&second),
            });
        }
        let end = appender.position();
        if let Err(error) = file.sync_data() {
            // the kernel may have dropped the dirty pages: nothing can be said of this file any more
            return Err(self.fail(&error));
        }
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.len = end;
        }
        self.total += end - start;
        Ok((number, offsets))
    }

    fn fail(&mut self, error: &io::Error) -> StoreError {
        let error = StoreError::Failed(format!("{}: {error}", self.directory.display()));
        self.failed = Some(error.clone());
        error
    }

    /// Deletes the oldest segments while nothing lives there, and empties them while the log is too large.
    fn give_space_back(&mut self, moved: &mut Vec<(Seq, Payload)>) -> Result<(), StoreError> {
        while self.segments.len() > 1 {
            let Some((&oldest, segment)) = self.segments.first_key_value() else { break };
            if segment.live > 0 {
                if self.total <= 2 * self.live + SLACK_BYTES {
                    break;
                }
                self.move_out_of(oldest, moved)?;
            }
            let path = self.path(oldest);
            fs::remove_file(&path).map_err(|error| self.fail(&error))?;
            if let Some(segment) = self.segments.remove(&oldest) {
                self.total -= segment.len;
            }
        }
        Ok(())
    }

    fn move_out_of(&mut self, oldest: u64, moved: &mut Vec<(Seq, Payload)>) -> Result<(), StoreError> {
        let Some(segment) = self.segments.get(&oldest) else { return Ok(()) };
        let file = Arc::clone(&segment.file);
        let mut living: Vec<_> = self.index.values().filter(|location| location.segment == oldest).copied().collect();
        living.sort_unstable_by_key(|location| location.offset);
        while !living.is_empty() {
            let mut bytes = 0;
            let group = living.iter().take_while(|location| {
                let first = bytes == 0;
                bytes += location.record.len();
                first || bytes <= MOVED_TOGETHER
            });
            let group: Vec<Location> = living.drain(..group.count()).collect();
            self.move_records(&file, &group, moved)?;
        }
        Ok(())
    }

    fn move_records(
        &mut self,
        file: &Arc<File>,
        group: &[Location],
        moved: &mut Vec<(Seq, Payload)>,
    ) -> Result<(), StoreError> {
        let mut wholes = Vec::with_capacity(group.len());
        for Location { offset, record, .. } in group {
            let whole = Payload::File { file: Arc::clone(file), offset: *offset, len: record.len() };
            let whole = whole.read_all().map_err(|error| self.fail(&error))?;
            let meta = whole.slice(segment::RECORD_HEADER as usize..record.body_offset(0) as usize);
            wholes.push((*record, meta, [whole.slice(record.body_offset(0) as usize..)]));
        }
        let records: Vec<_> = wholes.iter().map(|(record, meta, body)| (*record, &meta[..], &body[..])).collect();
        let (number, offsets) = self.append(&records)?;
        for ((location, (record, _, body)), offset) in group.iter().zip(wholes).zip(offsets) {
            let body = self.place(number, offset, record, location.inline.then_some(&body[..]));
            if !location.inline {
                moved.push((record.seq, body));
            }
        }
        Ok(())
    }
}

impl Store for LogStore {
    fn commit(&mut self, changes: &[Change]) -> Result<Committed, StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
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
            return Ok(committed);
        }
        let (number, offsets) = self.append(&records)?;
        for ((record, _, body), offset) in records.into_iter().zip(offsets) {
            match record.kind {
                Kind::Put => {
                    self.next_seq = self.next_seq.max(record.seq + 1);
                    let body = self.place(number, offset, record, Some(body));
                    committed.bodies.push(body);
                }
                Kind::Removed => {
                    self.forget(record.seq);
                }
            }
        }
        // the changes are durable, whatever becomes of the space that they free
        if let Err(error) = self.give_space_back(&mut committed.moved) {
            log::warn!("cannot give disk space back: {error}");
        }
        Ok(committed)
    }
}

/// Writes to the end of a file, small parts gathered, large ones as they are.
struct Appender<'a> {
    file: &'a File,
    offset: u64,
    gathered: Vec<u8>,
}

impl Appender<'_> {
    fn position(&self) -> u64 {
        self.offset + self.gathered.len() as u64
    }

    fn append(&mut self, part: &[u8]) -> io::Result<()> {
        if part.len() <= GATHER {
            self.gathered.extend_from_slice(part);
            if self.gathered.len() > 16 * GATHER { self.flush() } else { Ok(()) }
        } else {
            self.flush()?;
            self.file.write_all_at(part, self.offset)?;
            self.offset += part.len() as u64;
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.gathered, self.offset)?;
        self.offset += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}
