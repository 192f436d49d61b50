//! The embedded backend: an append-only log of records in segment files.
//!
//! A commit appends its changes to the newest segment and syncs it once, at the latest together with the next commit.
//! Space is given back from the oldest segment only: its live records are appended again, then the file is deleted. So
//! the removal of a record is never deleted before the record.
//!
//! A large body may be in a file of its own, which its record refers to. The file is durable before the record is
//! written, and deleted once no record that a crash may bring back refers to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::body_file::BodyDirectory;
use crate::payload::Payload;
use crate::store::disk::{Disk, SystemDisk};
use crate::store::files::{Files, SegmentFile};
use crate::store::segment::{self, Kind, Record, SEGMENT_HEADER};
use crate::store::{Change, Compacted, Durable, NO_RECORD, OpenError, Put, Recovered, Seq, Store, StoreError};

mod append;
pub mod backup;
mod bodies;
mod compaction;
mod new_record;
mod pin;
mod recover;
mod relocate;
mod reserve;
mod stopped;
mod tail;

use append::Preallocated;
use bodies::Bodies;
use new_record::{Composed, NewRecord};
use relocate::Relocation;
use reserve::Pause;

/// A commit that finds the newest segment at least this large begins another. Small enough that moving the live records
/// of one segment takes milliseconds, large enough that 4 GiB of messages need no more than 256 files.
const SEGMENT_BYTES: u64 = 16 << 20;

/// The folder of the body files, in the directory of a store.
pub(crate) const BODIES: &str = "bodies";

/// A store in a directory of its own, which it locks.
#[derive(Debug)]
pub struct LogStore {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    directory: PathBuf,
    /// `None` for a copy that no server knows of yet.
    _lock: Option<File>,
    files: Arc<Files>,
    bodies: Bodies,
    segments: BTreeMap<u32, Segment>,
    /// The file of the newest segment, open for writing.
    newest_file: Option<Arc<File>>,
    preallocated: Preallocated,
    /// Up to where the newest segment is synced.
    synced_len: u64,
    /// Records whose removal is written but not synced.
    unsynced_removals: Vec<Seq>,
    /// The newest segment was truncated because something in it was refused, and that is not synced.
    unsynced_cut: bool,
    /// Those removals were cut off after a failed sync, and must be written again.
    cut_off: bool,
    /// Names of files have changed, and the directory is not synced.
    unsynced_names: bool,
    /// Where the live records are. A tree, because growing numbers go to its end: it fills faster than a hash table.
    index: BTreeMap<Seq, Location>,
    /// The segments that compaction keeps as they are, because a record there cannot be read.
    unreadable: BTreeSet<u32>,
    /// The last segment that compaction has failed to move records out of because the disk is full. While the pause
    /// after that lasts, compaction works on the segments behind it.
    stuck: Option<u32>,
    /// For a segment: the first segment that may hold removals of its records. It is the segment itself if there is no
    /// entry.
    removals_from: BTreeMap<u32, u32>,
    /// Bytes of all live records, headers included, without bodies in files of their own.
    live: u64,
    /// Bytes of all segments.
    total: u64,
    next_seq: Seq,
    /// The reserve of disk space exists.
    reserved: bool,
    /// The size in bytes of the largest commit that was refused for want of space; `None` once a commit has succeeded.
    refused: Option<u64>,
    /// Between attempts to write the reserve.
    reserve_pause: Pause,
    /// Between attempts to move records.
    move_pause: Pause,
    /// The [mark](stopped) of a log that has stopped is there, or may be: the next change removes it first.
    stopped: bool,
    relocation: Option<Relocation>,
    failed: Option<StoreError>,
}

#[derive(Debug)]
struct Segment {
    file: Arc<SegmentFile>,
    salt: u32,
    /// The version of its format.
    version: u16,
    len: u64,
    live: u64,
    /// The records that were put here, in their order. Most may be dead by now, or live elsewhere.
    put: Vec<Seq>,
    /// How many of `put` compaction has dealt with.
    passed: usize,
}

/// Where a record is. There may be millions, so this has only what is needed to find the record and to forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Location {
    segment: u32,
    offset: u64,
    len: u64,
}

impl Segment {
    fn new(file: Arc<SegmentFile>, salt: u32) -> Self {
        let version = segment::VERSION;
        Self { file, salt, version, len: SEGMENT_HEADER, live: 0, put: Vec::new(), passed: 0 }
    }

    /// A segment whose file is empty: nothing in it is needed.
    fn given_up(file: Arc<SegmentFile>) -> Self {
        Self { len: 0, ..Self::new(file, 0) }
    }
}

/// The path of a segment's file.
fn segment_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:016}.log"))
}

/// The numbers of the segments in a directory, in no order.
fn segment_numbers(directory: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u32>().ok()));
    }
    Ok(numbers)
}

impl LogStore {
    /// Opens the store in `directory`, which is created if it does not exist, and returns the live records in the order
    /// of their numbers.
    ///
    /// A torn tail that a crash has left in the newest segment is cut off: it was never acknowledged.
    ///
    /// # Errors
    /// See [`OpenError`]. A directory that cannot be opened is not changed, except that a torn tail may be cut off.
    pub fn open(directory: &Path) -> Result<(Self, Vec<Recovered>), OpenError> {
        Self::open_on(Arc::new(SystemDisk), directory, SEGMENT_BYTES)
    }

    /// Like [`LogStore::open`], but the store is only used after [`Store::begin`]: until then, the next start is as
    /// strict as this one.
    ///
    /// # Errors
    /// As for [`LogStore::open`].
    pub(crate) fn open_unused(directory: &Path) -> Result<(Self, Vec<Recovered>), OpenError> {
        Self::open_unused_on(Arc::new(SystemDisk), directory, SEGMENT_BYTES)
    }

    /// The number of the next record.
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// The directory of its body files. A put whose body is in one of them refers to the file.
    pub fn bodies(&self) -> &BodyDirectory {
        self.bodies.directory()
    }

    /// Enters a record that is in a segment into the index; it replaces an earlier copy. Returns where the rest of the
    /// record is that follows its meta.
    fn place(&mut self, number: u32, offset: u64, record: &Record) -> Payload {
        let len = record.len();
        if let Some(earlier) = self.index.insert(record.seq, Location { segment: number, offset, len }) {
            self.mark_dead(earlier);
        }
        self.live += len;
        let Some(segment) = self.segments.get_mut(&number) else {
            unreachable!("a record is placed in a segment that exists")
        };
        segment.live += len;
        segment.put.push(record.seq);
        let (len, crc) = (record.body_len, record.body_crc);
        Payload::Segment { file: Arc::clone(&segment.file), offset: record.body_offset(offset), len, crc }
    }

    fn forget(&mut self, seq: Seq) {
        if let Some(location) = self.index.remove(&seq) {
            self.mark_dead(location);
            self.bodies.remove(seq);
        }
    }

    /// The copy of a record at this location is dead.
    fn mark_dead(&mut self, Location { segment, len, .. }: Location) {
        self.live -= len;
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live -= len;
        }
    }

    fn path(&self, number: u32) -> PathBuf {
        segment_path(&self.directory, number)
    }

    fn next_number(&self) -> u32 {
        self.segments.last_key_value().map_or(1, |(number, _)| number + 1)
    }

    fn segment_file(&self, number: u32) -> Arc<SegmentFile> {
        SegmentFile::new(&self.files, number, self.path(number))
    }

    /// The error of a failed operation: transient, or final for the store.
    fn refuse(&mut self, error: &io::Error) -> StoreError {
        let refused = StoreError::of_io(&self.directory, error);
        if refused.is_final() { self.fail(error) } else { refused }
    }

    fn gone(&mut self, path: PathBuf) -> StoreError {
        let error = StoreError::Gone(path);
        self.failed = Some(error.clone());
        error
    }

    fn fail(&mut self, error: &io::Error) -> StoreError {
        if error.kind() == io::ErrorKind::NotFound {
            return self.gone(self.directory.clone());
        }
        let error = StoreError::Failed(format!("{}: {error}", self.directory.display()));
        self.failed = Some(error.clone());
        error
    }
}

impl Store for LogStore {
    fn begin(&mut self) -> Result<(), OpenError> {
        let removed = self.remove_leftover().and_then(|()| self.remove_stopped());
        removed.map_err(OpenError::io(&self.directory))?;
        self.reserve();
        Ok(())
    }

    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        changes.iter().filter_map(Change::put).try_for_each(Put::check)?;
        let again: &[Seq] = if self.cut_off { &self.unsynced_removals } else { &[] };
        let put: BTreeSet<Seq> = changes.iter().filter_map(Change::put).map(|put| put.seq).collect();
        // the removal of an unknown record need not be written
        let is_effective = |change: &&Change| match change {
            Change::Put(_) => true,
            Change::Remove(seq) => *seq == NO_RECORD || self.index.contains_key(seq) || put.contains(seq),
        };
        let changes = changes.iter().filter(is_effective);
        let new = changes.map(|change| NewRecord::of(change, self.bodies.directory()));
        let new: Vec<NewRecord> = again.iter().copied().map(NewRecord::removal).chain(new).collect();
        if new.is_empty() {
            if durable == Durable::Now {
                self.sync()?;
            }
            return Ok(Vec::new());
        }
        if self.stopped {
            self.remove_stopped().map_err(|error| self.refuse(&error))?;
        }
        let (number, records) = self.append_with_reserve(&new, durable).inspect_err(|error| {
            // what a final error leaves behind, the next start decides on
            if !error.is_final() {
                self.bodies.refuse(&new);
                if !self.unsynced_cut {
                    self.bodies.refused_are_gone();
                }
            }
        })?;
        if self.cut_off {
            self.cut_off = false;
            self.unsynced_removals.clear();
        }
        let mut bodies = Vec::new();
        for ((offset, record), new) in records.into_iter().zip(new) {
            match record.kind {
                Kind::Put | Kind::Composed => {
                    self.next_seq = self.next_seq.max(record.seq + 1);
                    let in_segment = self.place(number, offset, &record);
                    bodies.push(match new.composed {
                        Some(Composed { file, payload }) => {
                            self.bodies.insert(record.seq, file);
                            payload
                        }
                        None => in_segment,
                    });
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
            self.bodies.removals_are_durable();
        }
        Ok(bodies)
    }

    fn check_space(&mut self) -> Result<(), StoreError> {
        self.check_usual_space()
    }

    fn space_was_refused(&mut self, bytes: u64) {
        self.refused = self.refused.max(Some(bytes));
    }

    fn compact(&mut self) -> Result<Compacted, StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        // nothing is left to do for a store that has stopped
        if self.stopped { Ok(Compacted::default()) } else { self.compaction_step() }
    }

    fn stop(&mut self) -> Result<(), StoreError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => self.set_stopped(),
        }
    }

    fn disk_bytes(&self) -> u64 {
        self.total + self.preallocated_bytes() + self.reserved_bytes() + self.bodies.bytes()
    }
}
