//! Disk space: how a log gives it back, and what it keeps for the day when there is none.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngCore;

use super::{Location, LogStore, Segment, ToWrite};
use crate::payload::Payload;
use crate::store::disk::transient;
use crate::store::segment::{Kind, RECORD_HEADER, Record};
use crate::store::{Durable, NO_RECORD, Seq, StoreError, Tidied};

/// Which part of a segment's size is moved with one sync while space is given back: a commit waits as long for that.
const MOVED_TOGETHER: u64 = 4;

/// How much of the disk is kept, so that removals can be written when it is full: 8,000 of them, after each of which
/// a segment may be given back.
const RESERVE_BYTES: usize = 256 << 10;

/// How much space a disk must have at the start so that it does not count as full: that of a small frame, in bytes.
const USUAL_MESSAGE: u64 = 1 << 20;

/// How much more than twice what lives the log may have on a full disk; otherwise it is a segment.
const SLACK_WHEN_FULL: u64 = 64 << 10;

/// How long it takes at the most from one try to get the reserve on a full disk to the next. Each writes what there is
/// room for; 503 is over within a second of there being room.
const MAX_RESERVE_PAUSE: Duration = Duration::from_millis(500);

/// How long it takes at the most from one try to move records on a full disk to the next, for the same reason. What was
/// deleted meanwhile ends the pause.
const MAX_MOVE_PAUSE: Duration = Duration::from_secs(64);

/// The time for which something is not tried again that has failed for want of room. There is none after the first
/// failure, which may be a moment's; then it doubles each time.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    next: Duration,
}

impl Pause {
    pub(super) fn is_over(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }

    fn begin(&mut self, max: Duration) {
        self.until = Some(Instant::now() + self.next);
        self.next = (self.next * 2).clamp(Duration::from_millis(125), max);
    }
}

impl LogStore {
    fn reserve_path(&self) -> PathBuf {
        self.directory.join("RESERVE")
    }

    /// Takes the reserve, unless it is there. Says whether it is there now.
    pub(super) fn reserve(&mut self) -> bool {
        if !self.reserved && self.reserve_pause.is_over() {
            let path = self.reserve_path();
            let write = |file: File| -> io::Result<()> {
                // zeros would take no room on a file system that compresses
                let mut bytes = vec![0; RESERVE_BYTES];
                rand::rng().fill_bytes(&mut bytes);
                self.disk.write(&file, &bytes, 0)?;
                self.disk.sync(&file)
            };
            self.reserved = self.disk.create(&path).and_then(write).is_ok();
            if self.reserved {
                self.reserve_pause = Pause::default();
            } else {
                // half of it would be no reserve; that it cannot be had is told by the commits that need it
                let _ = self.disk.remove(&path);
                self.reserve_pause.begin(MAX_RESERVE_PAUSE);
            }
        }
        self.reserved
    }

    /// Gives the reserve to whoever needs it now. Says whether there was one.
    fn release_reserve(&mut self) -> bool {
        let released = self.reserved && self.disk.remove(&self.reserve_path()).is_ok();
        self.reserved = false;
        released
    }

    /// Appends records: the reserve is for those that make room, and the others must leave it.
    pub(super) fn append_with_reserve(
        &mut self,
        records: &[ToWrite],
        durable: Durable,
    ) -> Result<(u32, Vec<u64>), StoreError> {
        let makes_room = |record: &Record| record.kind == Kind::Removed && record.seq != NO_RECORD;
        if records.iter().all(|ToWrite { record, .. }| makes_room(record)) {
            return match self.append(records, durable) {
                Err(StoreError::NoSpace(_)) if self.release_reserve() => self.append(records, durable),
                appended => appended,
            };
        }
        let bytes = records.iter().map(|ToWrite { record, .. }| record.len()).sum();
        let is_probe = records.iter().any(|ToWrite { record, .. }| record.seq == NO_RECORD);
        let appended = if !self.reserve() {
            Err(self.no_reserve())
        } else {
            let space = if is_probe { self.check_refused() } else { Ok(()) };
            space.and_then(|()| self.append(records, durable))
        };
        match &appended {
            Ok(_) => self.refused = None,
            Err(StoreError::NoSpace(_)) => self.refused = self.refused.max(Some(bytes)),
            Err(_) => {}
        }
        appended
    }

    /// Whether there is space for the reserve and for a message of usual size.
    pub(super) fn check_space(&mut self) -> Result<(), StoreError> {
        if !self.reserve() {
            return Err(self.no_reserve());
        }
        self.refused = self.refused.max(Some(USUAL_MESSAGE));
        self.check_refused()?;
        self.refused = None;
        Ok(())
    }

    fn no_reserve(&self) -> StoreError {
        StoreError::NoSpace(format!("{}: no space for the reserve", self.directory.display()))
    }

    /// Whether there is space for what was refused last. That some bytes can be written says nothing about that.
    fn check_refused(&mut self) -> Result<(), StoreError> {
        let Some(bytes) = self.refused else { return Ok(()) };
        let path = self.directory.join("ROOM");
        let checked = self.disk.create(&path).and_then(|file| self.disk.check_room(&file, bytes));
        let removed = self.disk.remove(&path);
        checked.and(removed).map_err(|error| self.refuse(&error))
    }

    /// One step: deletes the oldest segment if it has no live record, or moves some live records out of it while the log is
    /// too large. Skips segments that cannot be read, and those that the full disk has no space to move records out of.
    pub(super) fn give_space_back(&mut self) -> Result<Tidied, StoreError> {
        if let Some(relocation) = self.relocation.take() {
            return self.step(relocation.segment(), |store| store.relocate(relocation));
        }
        let is_full = self.refused.is_some() || !self.reserved;
        if let Some(dead) = self.dead_segment(is_full) {
            let more = self.delete(dead)?;
            return Ok(Tidied { more, ..Tidied::default() });
        }
        if self.move_pause.is_over() {
            self.stuck = None;
        } else if self.stuck.is_none() {
            return Ok(Tidied::default());
        }
        let (mut total, mut live, mut first) = (self.total, self.live, None);
        for (&number, segment) in &self.segments {
            if self.is_kept(number) {
                (total, live) = (total - segment.len, live - segment.live);
            } else if segment.len > 0 {
                first = first.or(Some(number));
            }
        }
        // A larger share of dead records would waste disk, a smaller one would copy the live ones again and again.
        let (allowed, slack) = match is_full {
            true => (live + live / 4, SLACK_WHEN_FULL.min(self.segment_bytes)),
            false => (2 * live, self.segment_bytes),
        };
        let Some(number) = first.filter(|_| total > allowed + slack) else { return Ok(Tidied::default()) };
        if self.next_number() == number + 1 {
            self.step(number, |store| Ok(store.leave_newest()?))
        } else {
            self.step(number, |store| store.move_out_of(number))
        }
    }

    /// A segment that can be deleted, because no record lives in it and in those before it, except in the segments that
    /// compaction keeps. On a full disk any segment without a live record, although that costs a new removal for each dead
    /// record before it.
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

    /// Whether compaction moves no records out of this segment at the moment.
    fn is_kept(&self, number: u32) -> bool {
        self.unreadable.contains(&number) || self.stuck.is_some_and(|stuck| number <= stuck)
    }

    /// Takes a step that needs space and moves records out of the segment `from`. After a failure there is a pause, during
    /// which compaction works on the segments behind it.
    fn step(
        &mut self,
        from: u32,
        step: impl FnOnce(&mut Self) -> Result<Tidied, MoveError>,
    ) -> Result<Tidied, StoreError> {
        match step(self) {
            Ok(tidied) => Ok(tidied),
            Err(MoveError::Store(error)) if error.is_final() => Err(error),
            Err(MoveError::Store(error)) => {
                if self.stuck.is_none() {
                    log::warn!("cannot move records out of {}: {error}", self.path(from).display());
                    self.move_pause.begin(MAX_MOVE_PAUSE);
                }
                self.stuck = Some(from);
                Ok(Tidied { more: true, ..Tidied::default() })
            }
            Err(MoveError::Unreadable(error)) => {
                let path = self.path(from);
                log::error!(
                    "{}: a record cannot be read: {error}; this segment is kept as it is until nothing in it is needed",
                    path.display()
                );
                self.unreadable.insert(from);
                Ok(Tidied { more: true, ..Tidied::default() })
            }
        }
    }

    /// Begins another segment before the newest is full, so that what is in that can be given back.
    fn leave_newest(&mut self) -> Result<Tidied, StoreError> {
        self.close_newest()?;
        match self.begin_segment() {
            Err(StoreError::NoSpace(_)) if self.release_reserve() => self.begin_segment()?,
            begun => begun?,
        };
        Ok(Tidied { more: true, ..Tidied::default() })
    }

    /// Deletes a segment that has no live record. The segments before it are those that compaction skips. Returns whether it
    /// was deleted: not while too many deleted segments are still being read.
    fn delete(&mut self, number: u32) -> Result<bool, StoreError> {
        // A power failure must not bring this one back after a later one, which holds its removals, has gone.
        self.sync_names()?;
        let is_oldest = self.segments.range(..number).next().is_none();
        if !is_oldest {
            self.keep_removals(number)?;
        }
        let Some(segment) = self.segments.get(&number) else { return Ok(false) };
        let prepared = segment.file.prepare_deletion().map_err(|error| self.refuse(&error))?;
        if !prepared {
            return Ok(false);
        }
        let path = self.path(number);
        let deleted = if is_oldest { self.disk.remove(&path) } else { self.replace_by_empty(&path) };
        deleted.map_err(|error| self.refuse(&error))?;
        self.unsynced_names = true;
        if let Some(segment) = self.segments.remove(&number) {
            self.total -= segment.len;
        }
        if !is_oldest {
            self.segments.insert(number, Segment::given_up(self.segment_file(number)));
        }
        self.unreadable.remove(&number);
        self.removals_from.remove(&number);
        (self.reserve_pause, self.move_pause) = (Pause::default(), Pause::default());
        self.sync_names()?;
        Ok(true)
    }

    /// Puts an empty file in place of a segment: a gap between segments would be a missing one.
    fn replace_by_empty(&self, path: &Path) -> io::Result<()> {
        let temporary = self.relocation_path();
        let file = self.disk.create(&temporary)?;
        self.disk.sync(&file)?;
        self.disk.rename(&temporary, path)
    }

    /// Writes again the removals of dead records in the segments before `number`, if their removals may be in segment
    /// `number`, which is about to be deleted. Without them the next start would find those records alive.
    fn keep_removals(&mut self, number: u32) -> Result<(), StoreError> {
        let removals_from = |before: &u32| self.removals_from.get(before).copied().unwrap_or(*before);
        let before = self.segments.range(..number).filter(|(before, _)| removals_from(before) <= number);
        let before: Vec<u32> = before.map(|(&before, _)| before).collect();
        let put = before.iter().filter_map(|before| self.segments.get(before)).flat_map(|segment| &segment.put);
        let dead: Vec<ToWrite> =
            put.filter(|seq| !self.index.contains_key(seq)).map(|&seq| ToWrite::removal(seq)).collect();
        let written_to = if dead.is_empty() { number + 1 } else { self.append_with_reserve(&dead, Durable::Now)?.0 };
        self.removals_from.extend(before.into_iter().map(|before| (before, written_to)));
        Ok(())
    }

    /// Moves the first records that live in a segment, or begins to move one that is too large for a step.
    fn move_out_of(&mut self, oldest: u32) -> Result<Tidied, MoveError> {
        let Some(segment) = self.segments.get(&oldest) else { return Ok(Tidied::default()) };
        let together = self.segment_bytes / MOVED_TOGETHER;
        let (mut group, mut passed, mut bytes) = (Vec::new(), segment.passed, 0);
        for &seq in &segment.put[segment.passed..] {
            if let Some(location) = self.index.get(&seq).filter(|location| location.segment == oldest) {
                bytes += location.len;
                if bytes > together {
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
        Ok(Tidied { moved, more: true })
    }

    fn move_records(&mut self, group: &[Location]) -> Result<Vec<(Seq, Payload)>, MoveError> {
        let mut wholes = Vec::with_capacity(group.len());
        for location in group {
            let (record, meta) = self.read_head(location)?;
            let body = self.read(location, record.body_offset(0), record.body_len)?;
            check_body(&record, crc32c::crc32c(&body))?;
            wholes.push((record, meta, [body]));
        }
        let records = wholes.iter().map(|(record, meta, body)| ToWrite { record: *record, meta, body });
        let (number, offsets) = self.append(&records.collect::<Vec<_>>(), Durable::Now)?;
        let moved = wholes.into_iter().zip(offsets);
        Ok(moved.map(|((record, ..), offset)| (record.seq, self.place(number, offset, &record))).collect())
    }

    /// The header of a record that is in a segment, and its meta.
    pub(super) fn read_head(&mut self, location: &Location) -> Result<(Record, Bytes), MoveError> {
        let salt = self.segments.get(&location.segment).map_or(0, |segment| segment.salt);
        let head = self.read(location, 0, RECORD_HEADER)?;
        let len = Record::head_len(&head).min(location.len);
        let head = self.read(location, 0, len)?;
        let record = Record::parse(&head, salt).filter(|record| record.len() == location.len);
        let record = record.ok_or_else(|| MoveError::Unreadable(io::Error::other("its header has changed")))?;
        Ok((record, head.slice(RECORD_HEADER as usize..)))
    }

    /// A part of a record that is in a segment.
    pub(super) fn read(&mut self, location: &Location, offset: u64, len: u64) -> Result<Bytes, MoveError> {
        let Some(segment) = self.segments.get(&location.segment) else { return Ok(Bytes::new()) };
        let file = std::sync::Arc::clone(&segment.file);
        let part = Payload::File { file, offset: location.offset + offset, len };
        part.read_all().map_err(|error| match transient(&error) {
            None if error.kind() != io::ErrorKind::NotFound => MoveError::Unreadable(error),
            _ => MoveError::Store(self.refuse(&error)),
        })
    }
}

/// Whether a body that was read is the one that was put; `crc` is its checksum.
pub(super) fn check_body(record: &Record, crc: u32) -> Result<(), MoveError> {
    if crc == record.body_crc { Ok(()) } else { Err(MoveError::Unreadable(io::Error::other("its body has changed"))) }
}

/// Why records are not moved out of a segment.
pub(super) enum MoveError {
    Store(StoreError),
    /// A record there cannot be read, now or later: somebody has truncated or changed the file, or the disk cannot read it.
    Unreadable(io::Error),
}

impl From<StoreError> for MoveError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
