//! Compaction: how a log gives back the space of dead records.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::new_record::NewRecord;
use super::reserve::Pause;
use super::{Location, LogStore, Segment};
use crate::payload::Payload;
use crate::store::disk::transient;
use crate::store::segment::{Kind, RECORD_HEADER, Record};
use crate::store::{Compacted, Durable, Seq, StoreError};

/// One step moves at most this fraction of a segment, because a commit may have to wait for the whole step.
const STEPS_PER_SEGMENT: u64 = 4;

/// The excess that the log may have on a full disk, in bytes. On a disk with space it may have a segment more.
const SLACK_WHEN_FULL: u64 = 64 << 10;

/// The longest pause between attempts to move records on a full disk, since each attempt writes as much as fits. The
/// deletion of a segment ends the pause.
const MAX_MOVE_PAUSE: Duration = Duration::from_secs(64);

/// Why records are not moved out of a segment.
pub(super) enum MoveError {
    Store(StoreError),
    /// A record there cannot be read, now or later: somebody has truncated or changed the file, or the disk cannot read
    /// it.
    Unreadable(io::Error),
}

impl From<StoreError> for MoveError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl LogStore {
    /// One step: deletes a segment without live records (see [`Self::dead_segment`]), or moves some live records out of
    /// the oldest one while the log is too large. Skips segments that cannot be read, and those that the full disk has
    /// no space to move records out of.
    pub(super) fn compaction_step(&mut self) -> Result<Compacted, StoreError> {
        if let Some(relocation) = self.relocation.take() {
            return self.step(relocation.segment(), |store| store.relocate(relocation));
        }
        let is_full = self.refused.is_some() || !self.reserved;
        if let Some(dead) = self.dead_segment(is_full) {
            let more = self.delete(dead)?;
            return Ok(Compacted { more, ..Compacted::default() });
        }
        if self.move_pause.is_over() {
            self.stuck = None;
        } else if self.stuck.is_none() {
            return Ok(Compacted::default());
        }
        let (mut total, mut live) = (self.total, self.live);
        for segment in self.kept() {
            (total, live) = (total - segment.len, live - segment.live);
            // while this segment exists, the removals of its dead records are kept too
            live += segment.put.len() as u64 * RECORD_HEADER;
        }
        // More dead bytes than this would waste disk space; with fewer the same records would be copied again and
        // again.
        let (allowed, slack) = match is_full {
            true => (live + live / 4, SLACK_WHEN_FULL.min(self.segment_bytes)),
            false => (2 * live, self.segment_bytes),
        };
        if total <= allowed + slack {
            return Ok(Compacted::default());
        }
        let first = self.segments.iter().find(|(number, segment)| segment.len > 0 && !self.is_kept(**number));
        let Some((&number, _)) = first else { return Ok(Compacted::default()) };
        if self.next_number() == number + 1 {
            self.step(number, |store| {
                store.leave_newest()?;
                Ok(Compacted { more: true, ..Compacted::default() })
            })
        } else {
            self.step(number, |store| store.move_out_of(number))
        }
    }

    /// The first segment that can be deleted: it has no live record, and neither has any earlier one, apart from those
    /// that compaction keeps. On a full disk, earlier segments may have live records; then the removals of their dead
    /// records have to be written again.
    fn dead_segment(&self, is_full: bool) -> Option<u32> {
        let (&oldest, _) = self.segments.first_key_value()?;
        let (&newest, _) = self.segments.last_key_value()?;
        let is_there = |number: u32, segment: &Segment| segment.len > 0 || number == oldest;
        self.segments
            .range(..newest)
            .filter(|(number, segment)| is_there(**number, segment))
            .find(|(number, segment)| segment.live == 0 || !(is_full || self.is_kept(**number)))
            .filter(|(_, segment)| segment.live == 0)
            .map(|(&number, _)| number)
    }

    /// The segments that compaction moves no records out of at the moment: usually none.
    fn kept(&self) -> impl Iterator<Item = &Segment> {
        let stuck = self.stuck.unwrap_or(0);
        let behind = self.unreadable.range(stuck + 1..).filter_map(|number| self.segments.get(number));
        self.segments.range(..=stuck).map(|(_, segment)| segment).chain(behind)
    }

    /// Whether compaction moves no records out of this segment at the moment.
    fn is_kept(&self, number: u32) -> bool {
        self.unreadable.contains(&number) || self.stuck.is_some_and(|stuck| number <= stuck)
    }

    /// Takes a step that moves records out of the segment `from`. If there is no space, a pause begins, during which
    /// compaction works on newer segments.
    fn step(
        &mut self,
        from: u32,
        step: impl FnOnce(&mut Self) -> Result<Compacted, MoveError>,
    ) -> Result<Compacted, StoreError> {
        match step(self) {
            Ok(compacted) => Ok(compacted),
            Err(MoveError::Store(error)) if error.is_final() => Err(error),
            Err(MoveError::Store(error)) => {
                if self.stuck.is_none() {
                    log::warn!("cannot move records out of {}: {error}", self.path(from).display());
                    self.move_pause.begin(MAX_MOVE_PAUSE);
                }
                self.stuck = Some(from);
                Ok(Compacted { more: true, ..Compacted::default() })
            }
            Err(MoveError::Unreadable(error)) => {
                let path = self.path(from);
                log::error!(
                    "{}: a record cannot be read: {error}; this segment is kept as it is until nothing in it is needed",
                    path.display()
                );
                self.unreadable.insert(from);
                Ok(Compacted { more: true, ..Compacted::default() })
            }
        }
    }

    /// Deletes a segment that has no live record. Returns
    /// whether it was deleted: not while too many deleted segments are still being read.
    fn delete(&mut self, number: u32) -> Result<bool, StoreError> {
        // A power failure must not bring this one back after a later one, which holds its removals, has gone.
        self.sync_names()?;
        let is_oldest = self.segments.range(..number).next().is_none();
        let written = if is_oldest { 0 } else { self.keep_removals(number)? };
        let Some(segment) = self.segments.get(&number) else { return Ok(false) };
        let prepared = segment.file.prepare_deletion().map_err(|error| self.refuse(&error))?;
        if !prepared {
            return Ok(false);
        }
        let path = self.path(number);
        let deleted = if is_oldest { self.disk.remove(&path) } else { self.replace_by_empty(&path) };
        deleted.map_err(|error| self.refuse(&error))?;
        self.unsynced_names = true;
        let freed = self.segments.remove(&number).map_or(0, |segment| segment.len);
        self.total -= freed;
        if !is_oldest {
            self.segments.insert(number, Segment::given_up(self.segment_file(number)));
        }
        self.unreadable.remove(&number);
        self.removals_from.remove(&number);
        if freed > written {
            (self.reserve_pause, self.move_pause) = (Pause::default(), Pause::default());
        }
        self.sync_names()?;
        Ok(true)
    }

    /// Puts an empty file in place of a segment: recovery would take a gap in the numbers for a lost segment.
    fn replace_by_empty(&self, path: &Path) -> io::Result<()> {
        let temporary = self.relocation_path();
        let file = self.disk.create(&temporary)?;
        self.disk.sync(&file)?;
        self.disk.rename(&temporary, path)
    }

    /// Writes again the removals of dead records in the segments before `number`, if their removals may be in segment
    /// `number`, which is about to be deleted. Without them the next start would find those records alive. Returns how
    /// many bytes that took.
    fn keep_removals(&mut self, number: u32) -> Result<u64, StoreError> {
        let removals_from = |before: &u32| self.removals_from.get(before).copied().unwrap_or(*before);
        let before = self.segments.range(..number).filter(|(before, _)| removals_from(before) <= number);
        let before: Vec<u32> = before.map(|(&before, _)| before).collect();
        let put = before.iter().filter_map(|before| self.segments.get(before)).flat_map(|segment| &segment.put);
        let dead: Vec<NewRecord> =
            put.filter(|seq| !self.index.contains_key(seq)).map(|&seq| NewRecord::removal(seq)).collect();
        let written_to = match dead.is_empty() {
            true => number + 1,
            false => self.append_with_reserve(&dead, Durable::Now)?.0,
        };
        self.removals_from.extend(before.into_iter().map(|before| (before, written_to)));
        Ok(dead.len() as u64 * RECORD_HEADER)
    }

    /// Moves the first live records out of a segment, or begins to relocate one that is too large for a step.
    fn move_out_of(&mut self, oldest: u32) -> Result<Compacted, MoveError> {
        let Some(segment) = self.segments.get(&oldest) else { return Ok(Compacted::default()) };
        let max_bytes = self.segment_bytes / STEPS_PER_SEGMENT;
        let (mut group, mut passed, mut bytes) = (Vec::new(), segment.passed, 0);
        for &seq in &segment.put[segment.passed..] {
            if let Some(location) = self.index.get(&seq).filter(|location| location.segment == oldest) {
                bytes += location.len;
                if bytes > max_bytes {
                    if group.is_empty() {
                        let location = *location;
                        return self.begin_relocation(seq, location);
                    }
                    break;
                }
                group.push(*location);
            }
            passed += 1;
        }
        let moved = self.move_records(&group)?;
        if let Some(segment) = self.segments.get_mut(&oldest) {
            segment.passed = passed;
        }
        Ok(Compacted { moved, more: true })
    }

    fn move_records(&mut self, group: &[Location]) -> Result<Vec<(Seq, Payload)>, MoveError> {
        let mut new = Vec::with_capacity(group.len());
        for location in group {
            let (record, meta) = self.read_head(location)?;
            let body = self.read(location, record.body_offset(0), record.body_len)?;
            check_body(&record, crc32c::crc32c(&body))?;
            new.push(NewRecord::moved(&record, meta, body));
        }
        let (number, records) = self.append(&new, Durable::Now)?;
        Ok(records.into_iter().filter_map(|(offset, record)| self.place_moved(number, offset, &record)).collect())
    }

    /// Updates the index for a record that has been moved. Returns where its body is now, if that has been moved too.
    pub(super) fn place_moved(&mut self, number: u32, offset: u64, record: &Record) -> Option<(Seq, Payload)> {
        let in_segment = self.place(number, offset, record);
        (record.kind == Kind::Put).then_some((record.seq, in_segment))
    }

    /// Reads the header of a record and its meta.
    pub(super) fn read_head(&mut self, location: &Location) -> Result<(Record, Bytes), MoveError> {
        let salt = self.segments.get(&location.segment).map_or(0, |segment| segment.salt);
        let head = self.read(location, 0, RECORD_HEADER)?;
        let len = Record::head_len(&head).min(location.len);
        let head = self.read(location, 0, len)?;
        let record = Record::parse(&head, salt).filter(|record| record.len() == location.len);
        let record = record.ok_or_else(|| MoveError::Unreadable(io::Error::other("its header has changed")))?;
        Ok((record, head.slice(RECORD_HEADER as usize..)))
    }

    /// Reads a part of a record.
    pub(super) fn read(&mut self, location: &Location, offset: u64, len: u64) -> Result<Bytes, MoveError> {
        let Some(segment) = self.segments.get(&location.segment) else { return Ok(Bytes::new()) };
        let file = Arc::clone(&segment.file);
        let mut part = BytesMut::zeroed(len as usize);
        let read = file.read_exact_at(&mut part, location.offset + offset);
        read.map(|()| part.freeze()).map_err(|error| match transient(&error) {
            None if error.kind() != io::ErrorKind::NotFound => MoveError::Unreadable(error),
            _ => MoveError::Store(self.refuse(&error)),
        })
    }
}

/// Whether a body that was read is the one that was put; `crc` is its checksum.
pub(super) fn check_body(record: &Record, crc: u32) -> Result<(), MoveError> {
    if crc == record.body_crc { Ok(()) } else { Err(MoveError::Unreadable(io::Error::other("its body has changed"))) }
}
