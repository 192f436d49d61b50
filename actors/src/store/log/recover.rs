//! Opening a log: reads all segments, and decides whether a crash explains what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::Arc;

use super::append::Preallocated;
use super::bodies::Bodies;
use super::reserve::Pause;
use super::stopped::Stopped;
use super::{BODIES, LogStore, Segment, segment_numbers};
use crate::payload::Payload;
use crate::store::disk::{Disk, create_private, make_directory, sync_directory};
use crate::store::segment::composition::Composition;
use crate::store::segment::{self, Entry, FoundHeader, Kind, MetaMemory, Reader, SEGMENT_HEADER};
use crate::store::{NO_RECORD, OpenError, Recovered, Seq, Store as _};

/// What was found in the segments.
#[derive(Default)]
struct Found {
    /// Every record that was put, with its segment and its offset there. It may be dead.
    records: Vec<(u32, u64, Recovered)>,
    metas: MetaMemory,
    /// Segments before the newest that end with zeros.
    zeros: Vec<Zeros>,
    /// What the log was when it stopped; `None` if that was in a crash, or is not known.
    stopped: Option<Stopped>,
}

/// The place of a segment among those that are there.
#[derive(Clone, Copy)]
struct Place {
    is_oldest: bool,
    is_newest: bool,
}

/// The zeros behind the records of a segment that is not the newest.
struct Zeros {
    segment: u32,
    file: Arc<File>,
    offset: u64,
}

impl LogStore {
    /// Like [`LogStore::open`], on another disk than the system's and with segments of about `segment_bytes` bytes.
    ///
    /// # Errors
    /// As for [`LogStore::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        directory: &Path,
        segment_bytes: u64,
    ) -> Result<(Self, Vec<Recovered>), OpenError> {
        let (mut store, recovered) = Self::open_unused_on(disk, directory, segment_bytes)?;
        store.begin()?;
        Ok((store, recovered))
    }

    /// Like [`LogStore::open_unused`], on another disk.
    pub(super) fn open_unused_on(
        disk: Arc<dyn Disk>,
        directory: &Path,
        segment_bytes: u64,
    ) -> Result<(Self, Vec<Recovered>), OpenError> {
        make_directory(&*disk, directory).map_err(OpenError::io(directory))?;
        let lock_path = directory.join("LOCK");
        let lock = create_private(&lock_path).map_err(OpenError::io(&lock_path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse(directory.to_owned()),
            TryLockError::Error(source) => OpenError::Io { path: lock_path, source },
        })?;
        let mut store = Self::new(disk, directory, segment_bytes, Some(lock))?;
        let mut recovered = store.recover()?;
        store.check_bodies()?;
        recovered.retain(|record| store.index.contains_key(&record.seq));
        Ok((store, recovered))
    }

    /// A store that has read nothing yet.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        directory: &Path,
        segment_bytes: u64,
        lock: Option<File>,
    ) -> Result<Self, OpenError> {
        let bodies = Bodies::open(Arc::clone(&disk), &directory.join(BODIES))?;
        Ok(Self {
            disk,
            segment_bytes,
            directory: directory.to_owned(),
            _lock: lock,
            files: Arc::default(),
            bodies,
            segments: BTreeMap::new(),
            newest_file: None,
            preallocated: Preallocated::default(),
            synced_len: 0,
            unsynced_removals: Vec::new(),
            unsynced_cut: false,
            cut_off: false,
            unsynced_names: false,
            index: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            stuck: None,
            removals_from: BTreeMap::new(),
            live: 0,
            total: 0,
            next_seq: NO_RECORD + 1,
            reserved: false,
            refused: None,
            reserve_pause: Pause::default(),
            move_pause: Pause::default(),
            stopped: false,
            relocation: None,
            failed: None,
        })
    }

    /// Checks the body files of the records that were recovered, and deletes all others. Records whose file was given
    /// up are no longer live.
    pub(super) fn check_bodies(&mut self) -> Result<(), OpenError> {
        // The removals that were in a segment that was given up are gone, and the files that they removed too.
        let may_be_missing = self.has_given_up_segments();
        let given_up = self.bodies.check(may_be_missing)?;
        for seq in &given_up {
            if let Some(location) = self.index.remove(seq) {
                self.mark_dead(location);
            }
        }
        self.bodies.sweep(&given_up)
    }

    /// Whether the file of a segment is empty.
    pub(super) fn has_given_up_segments(&self) -> bool {
        self.segments.values().any(|segment| segment.len == 0)
    }

    pub(super) fn recover(&mut self) -> Result<Vec<Recovered>, OpenError> {
        let mut numbers = segment_numbers(&self.directory).map_err(OpenError::io(&self.directory))?;
        numbers.sort_unstable();
        let stopped = Stopped::read(&self.directory)?;
        if let Some(missing) = stopped.as_ref().and_then(|stopped| stopped.missing(&numbers)) {
            return Err(OpenError::Missing(self.path(missing)));
        }
        let mut found = Found { stopped, ..Found::default() };
        for (at, &number) in numbers.iter().enumerate() {
            if at > 0 && numbers[at - 1] + 1 != number {
                return Err(OpenError::Missing(self.path(numbers[at - 1] + 1)));
            }
            let place = Place { is_oldest: at == 0, is_newest: at + 1 == numbers.len() };
            self.recover_segment(number, place, &mut found)?;
            self.check_end(number, &found)?;
        }
        for Zeros { segment, file, offset } in &found.zeros {
            let path = self.path(*segment);
            log::warn!("{}: zeros behind the last record, at byte {offset}, are cut off", path.display());
            let cut = self.disk.set_len(file, *offset).and_then(|()| self.disk.sync(file));
            cut.map_err(OpenError::io(&path))?;
        }
        // an earlier process may have been killed between creating a segment and syncing the directory
        sync_directory(&*self.disk, &self.directory).map_err(OpenError::io(&self.directory))?;
        let lives = |number: u32, offset: u64, seq: Seq| {
            self.index.get(&seq).is_some_and(|location| (location.segment, location.offset) == (number, offset))
        };
        found.records.retain(|(number, offset, record)| lives(*number, *offset, record.seq));
        found.records.sort_unstable_by_key(|(.., record)| record.seq);
        Ok(found.records.into_iter().map(|(.., record)| record).collect())
    }

    fn damaged_by_zeros(&self, number: u32, offset: u64) -> OpenError {
        OpenError::Damaged { path: self.path(number), offset, what: "zeros stand where a record should" }
    }

    /// Whether the records of a segment reach as far as they did when the log stopped.
    fn check_end(&self, number: u32, found: &Found) -> Result<(), OpenError> {
        let end = self.segments.get(&number).map_or(0, |segment| segment.len);
        match found.stopped.as_ref().and_then(|stopped| stopped.end_of(number)) {
            // an empty file gives a segment up
            Some(expected) if end < expected && end > 0 => {
                let what = "records that were there when the log was stopped are missing";
                Err(OpenError::Damaged { path: self.path(number), offset: end, what })
            }
            _ => Ok(()),
        }
    }

    fn recover_segment(&mut self, number: u32, place: Place, found: &mut Found) -> Result<(), OpenError> {
        let path = self.path(number);
        let newest = place.is_newest;
        let stopped_at = found.stopped.as_ref().and_then(|stopped| stopped.end_of(number));
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(OpenError::io(&path))?;
        let file = Arc::new(file);
        let len = file.metadata().map_err(OpenError::io(&path))?.len();
        let mut reader = Reader::new(&file, &mut found.metas).map_err(OpenError::io(&path))?;
        let version = match reader.header(number).map_err(OpenError::io(&path))? {
            FoundHeader::Sound { next_seq, version } => {
                // if a record is missing where the zeros are, they are damage
                let before = found.zeros.last().filter(|zeros| zeros.segment + 1 == number);
                if let Some(zeros) = before.filter(|_| next_seq != self.next_seq) {
                    return Err(self.damaged_by_zeros(zeros.segment, zeros.offset));
                }
                self.next_seq = self.next_seq.max(next_seq);
                version
            }
            FoundHeader::OtherVersion(found) => {
                return Err(OpenError::Version { path, found, known: segment::VERSION });
            }
            // A crash interrupted the beginning of the segment: a record follows only after the header is durable, and
            // so does the deletion of the segment before it.
            FoundHeader::Bad(_)
                if newest && len <= SEGMENT_HEADER && stopped_at.is_none() && (number == 1 || !place.is_oldest) =>
            {
                log::warn!("{}: the segment's header is cut off, as a crash leaves it; removed", path.display());
                return self.disk.remove(&path).map_err(OpenError::io(&path));
            }
            FoundHeader::Bad(_) if len == 0 => {
                log::warn!("{}: empty; nothing that was in it is found", path.display());
                self.segments.insert(number, Segment::given_up(self.segment_file(number)));
                return Ok(());
            }
            FoundHeader::Bad(what) => return Err(OpenError::Damaged { path, offset: 0, what }),
        };
        let salt = reader.salt();
        self.segments.insert(number, Segment { version, ..Segment::new(self.segment_file(number), salt) });
        self.total += SEGMENT_HEADER;
        let mut last_commit = 0;
        loop {
            match reader.next().map_err(OpenError::io(&path))? {
                Entry::Record { offset, begins_commit, record, meta, composition } => {
                    if begins_commit {
                        last_commit = offset;
                    }
                    self.next_seq = self.next_seq.max(record.seq + 1);
                    if let Some(segment) = self.segments.get_mut(&number) {
                        segment.len += record.len();
                    }
                    self.total += record.len();
                    match record.kind {
                        Kind::Put | Kind::Composed => {
                            let in_segment = self.place(number, offset, &record);
                            let body = composition.map_or(in_segment, |found| self.place_composed(record.seq, &found));
                            found.records.push((number, offset, Recovered { seq: record.seq, meta, body }));
                        }
                        Kind::Removed => {
                            self.forget(record.seq);
                        }
                    }
                }
                Entry::End => break,
                Entry::Zeros { offset } if newest && stopped_at.is_none_or(|end| offset >= end) => {
                    // they may be more than the segment will ever overwrite
                    self.disk.set_len(&file, offset).map_err(OpenError::io(&path))?;
                    break;
                }
                Entry::Zeros { offset } if !newest && offset >= self.segment_bytes => {
                    // Version 0.1.0 took zeros of any length behind the newest segment for its end, and left them there
                    // when it began another.
                    found.zeros.push(Zeros { segment: number, file: Arc::clone(&file), offset });
                    break;
                }
                Entry::Zeros { offset } => return Err(self.damaged_by_zeros(number, offset)),
                Entry::Bad { offset, what, may_be_torn } => {
                    let may_be_torn = may_be_torn && newest && stopped_at.is_none_or(|end| offset >= end);
                    if !may_be_torn || reader.has_commit_after(offset).map_err(OpenError::io(&path))? {
                        return Err(OpenError::Damaged { path, offset, what });
                    }
                    log::warn!("{}: {what} at byte {offset}; cut off, as a crash leaves it", path.display());
                    self.disk.set_len(&file, offset).map_err(OpenError::io(&path))?;
                    break;
                }
            }
        }
        if newest {
            let end = self.segments.get(&number).map_or(0, |segment| segment.len);
            // what stands before was synced, says the start of the commit, or the mark of a log that has stopped
            let from = if stopped_at == Some(end) { end } else { last_commit };
            self.make_durable(number, &file, from..end).map_err(OpenError::io(&path))?;
            if let Some(segment) = self.segments.get(&number) {
                segment.file.is_open(&file);
            }
            (self.preallocated.file_end, self.synced_len) = (end, end);
            self.newest_file = Some(file);
        }
        Ok(())
    }

    /// Enters the file of a composed record that recovery has found. Returns the body.
    fn place_composed(&mut self, seq: Seq, composition: &Composition) -> Payload {
        let (name, len, crc) = composition.file();
        let file = self.bodies.directory().stored(name, len, crc);
        let body = composition.payload(&file);
        self.bodies.insert(seq, file);
        body
    }
}
