//! Disk space: how a log gives it back, and what it keeps for the day when there is none.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngCore;

use super::{Location, LogStore, ToWrite};
use crate::payload::Payload;
use crate::store::segment::{Kind, RECORD_HEADER, Record};
use crate::store::{Durable, NO_RECORD, Seq, StoreError, Tidied};

/// Which part of a segment's size is moved with one sync while space is given back: a commit waits as long for that.
const MOVED_TOGETHER: u64 = 4;

/// How much of the disk is kept, so that removals can be written when it is full: 8,000 of them, after each of which
/// a segment may be given back.
const RESERVE_BYTES: usize = 256 << 10;

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
            Err(StoreError::NoSpace(format!("{}: no room for the reserve", self.directory.display())))
        } else {
            let room = if is_probe { self.check_room() } else { Ok(()) };
            room.and_then(|()| self.append(records, durable))
        };
        match &appended {
            Ok(_) => self.refused = None,
            Err(StoreError::NoSpace(_)) => self.refused = self.refused.max(Some(bytes)),
            Err(_) => {}
        }
        appended
    }

    /// Whether there is room for what was refused last. That some bytes can be written says nothing of that.
    fn check_room(&mut self) -> Result<(), StoreError> {
        let Some(bytes) = self.refused else { return Ok(()) };
        let path = self.directory.join("ROOM");
        let checked = self.disk.create(&path).and_then(|file| self.disk.check_room(&file, bytes));
        let removed = self.disk.remove(&path);
        checked.and(removed).map_err(|error| self.refuse(&error))
    }

    /// A step: deletes the oldest segment where nothing lives there, or moves some records out of it while the log is too
    /// large.
    pub(super) fn give_space_back(&mut self) -> Result<Tidied, StoreError> {
        if let Some(relocation) = self.relocation.take() {
            return self.pausing(|store| store.relocate(relocation));
        }
        let Some((&oldest, segment)) = self.segments.first_key_value() else { return Ok(Tidied::default()) };
        let alone = self.segments.len() == 1;
        if segment.live == 0 && !alone {
            let more = self.delete_oldest(oldest)?;
            return Ok(Tidied { more, ..Tidied::default() });
        }
        // A larger share than this would waste disk, a smaller one would copy the same records again and again.
        let is_full = self.refused.is_some() || !self.reserved;
        let slack = if is_full { SLACK_WHEN_FULL.min(self.segment_bytes) } else { self.segment_bytes };
        if self.total <= 2 * self.live + slack || !self.move_pause.is_over() {
            return Ok(Tidied::default());
        }
        if alone { self.pausing(Self::leave_newest) } else { self.pausing(|store| store.move_out_of(oldest)) }
    }

    /// Takes a step that needs room. Where there is none, the next one is not taken for a while.
    fn pausing(&mut self, step: impl FnOnce(&mut Self) -> Result<Tidied, StoreError>) -> Result<Tidied, StoreError> {
        let tidied = step(self);
        if tidied.is_err() {
            self.move_pause.begin(MAX_MOVE_PAUSE);
        }
        tidied
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

    /// Deletes a segment in which nothing lives, and before which there is none. Says whether that was done: not where too
    /// many of the deleted ones are being read.
    fn delete_oldest(&mut self, oldest: u32) -> Result<bool, StoreError> {
        // A power failure must not bring this one back after a later one, which holds its removals, has gone.
        self.sync_names()?;
        let Some(segment) = self.segments.get(&oldest) else { return Ok(false) };
        let prepared = segment.file.prepare_deletion().map_err(|error| self.refuse(&error))?;
        if !prepared {
            return Ok(false);
        }
        self.disk.remove(&self.path(oldest)).map_err(|error| self.refuse(&error))?;
        self.unsynced_names = true;
        if let Some(segment) = self.segments.remove(&oldest) {
            self.total -= segment.len;
        }
        (self.reserve_pause, self.move_pause) = (Pause::default(), Pause::default());
        self.sync_names()?;
        Ok(true)
    }

    /// Moves the first records that live in a segment, or begins to move one that is too large for a step.
    fn move_out_of(&mut self, oldest: u32) -> Result<Tidied, StoreError> {
        let Some(segment) = self.segments.get(&oldest) else { return Ok(Tidied::default()) };
        let together = self.segment_bytes / MOVED_TOGETHER;
        let (mut group, mut passed, mut bytes) = (Vec::new(), 0, 0);
        for &seq in &segment.put {
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
            segment.put.drain(..passed);
        }
        Ok(Tidied { moved, more: true })
    }

    fn move_records(&mut self, group: &[Location]) -> Result<Vec<(Seq, Payload)>, StoreError> {
        let mut wholes = Vec::with_capacity(group.len());
        for location in group {
            let (record, meta) = self.read_head(location)?;
            let body = self.read(location, record.body_offset(0), record.body_len)?;
            wholes.push((record, meta, [body]));
        }
        let records = wholes.iter().map(|(record, meta, body)| ToWrite { record: *record, meta, body });
        let (number, offsets) = self.append(&records.collect::<Vec<_>>(), Durable::Now)?;
        let moved = wholes.into_iter().zip(offsets);
        Ok(moved.map(|((record, ..), offset)| (record.seq, self.place(number, offset, &record))).collect())
    }

    /// The header of a record that is in a segment, and its meta.
    pub(super) fn read_head(&mut self, location: &Location) -> Result<(Record, Bytes), StoreError> {
        let salt = self.segments.get(&location.segment).map_or(0, |segment| segment.salt);
        let head = self.read(location, 0, RECORD_HEADER)?;
        let len = Record::head_len(&head).min(location.len);
        let head = self.read(location, 0, len)?;
        let record = Record::parse(&head, salt).filter(|record| record.len() == location.len);
        let changed = || io::Error::other("a record has changed on the disk");
        let record = record.ok_or_else(|| self.fail(&changed()))?;
        Ok((record, head.slice(RECORD_HEADER as usize..)))
    }

    /// A part of a record that is in a segment.
    pub(super) fn read(&mut self, location: &Location, offset: u64, len: u64) -> Result<Bytes, StoreError> {
        let Some(segment) = self.segments.get(&location.segment) else { return Ok(Bytes::new()) };
        let file = std::sync::Arc::clone(&segment.file);
        let part = Payload::File { file, offset: location.offset + offset, len };
        part.read_all().map_err(|error| self.refuse(&error))
    }
}
