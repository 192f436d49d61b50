//! Relocation: moves a record that is too large for one compaction step into a segment of its own, a slice at a time.
//!
//! The file has another name until it is complete. Then it becomes the newest segment, so that what the one before says
//! about the record, above all its removal, comes first.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::compaction::{MoveError, check_body};
use super::{Location, LogStore, Segment};
use crate::store::segment::{self, Mark, Record, SEGMENT_HEADER};
use crate::store::{Compacted, Seq, StoreError};

/// How many bytes are read at once.
const CHUNK: u64 = 1 << 20;

/// A record that is being moved.
#[derive(Debug)]
pub(super) struct Relocation {
    from: Location,
    record: Record,
    /// The length of the record's header and its meta.
    head_len: u64,
    file: Arc<File>,
    salt: u32,
    /// How many bytes of the body are written and synced.
    copied: u64,
    /// The checksum of those.
    crc: u32,
}

impl Relocation {
    /// The segment out of which the record is moved.
    pub(super) fn segment(&self) -> u32 {
        self.from.segment
    }
}

impl LogStore {
    /// The name of the file until it is complete.
    pub(super) fn relocation_path(&self) -> PathBuf {
        self.directory.join("MOVING")
    }

    /// Removes what is not complete, unless it is gone already.
    pub(super) fn remove_leftover(&self) -> io::Result<()> {
        match self.disk.remove(&self.relocation_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Begins to move the record `seq`, which is at `from`.
    pub(super) fn begin_relocation(&mut self, seq: Seq, from: Location) -> Result<Compacted, MoveError> {
        let (record, meta) = self.read_head(&from)?;
        debug_assert_eq!(record.seq, seq);
        let salt = rand::random();
        let mut head = Vec::new();
        record.write(&meta, Mark { salt, begins_commit: true }, &mut head);
        let begun = self.disk.create(&self.relocation_path()).and_then(|file| {
            self.disk.write(&file, &head, SEGMENT_HEADER)?;
            Ok(Arc::new(file))
        });
        let file = begun.or_else(|error| self.abandon(&error))?;
        self.relocation = Some(Relocation { from, record, head_len: head.len() as u64, file, salt, copied: 0, crc: 0 });
        Ok(Compacted { more: true, ..Compacted::default() })
    }

    /// Copies the next slice, or finishes.
    pub(super) fn relocate(&mut self, mut relocation: Relocation) -> Result<Compacted, MoveError> {
        let Relocation { from, record, head_len, .. } = relocation;
        let lives = self.index.get(&record.seq).is_some_and(|location| *location == from);
        if !lives {
            // if this fails, the next relocation overwrites the file, or the next start removes it
            self.remove_leftover().map_err(|error| self.refuse(&error))?;
            return Ok(Compacted { more: true, ..Compacted::default() });
        }
        let end = record.body_len.min(relocation.copied + self.segment_bytes / 4);
        while relocation.copied < end {
            let len = CHUNK.min(end - relocation.copied);
            let chunk = self.read(&from, head_len + relocation.copied, len).inspect_err(|_| self.remove_relocated())?;
            let written = self.disk.write(&relocation.file, &chunk, SEGMENT_HEADER + head_len + relocation.copied);
            written.or_else(|error| self.abandon(&error))?;
            relocation.crc = crc32c::crc32c_append(relocation.crc, &chunk);
            relocation.copied += len;
        }
        // one sync of the whole would delay commits
        self.disk.sync(&relocation.file).or_else(|error| self.abandon(&error))?;
        if relocation.copied < record.body_len {
            self.relocation = Some(relocation);
            return Ok(Compacted { more: true, ..Compacted::default() });
        }
        check_body(&record, relocation.crc).inspect_err(|_| self.remove_relocated())?;
        Ok(self.finish(relocation)?)
    }

    fn finish(&mut self, Relocation { record, file, salt, .. }: Relocation) -> Result<Compacted, StoreError> {
        self.close_newest().inspect_err(|_| self.remove_relocated())?;
        let number = self.next_number();
        let head = segment::segment_header(number, self.next_seq, salt);
        let written = self.disk.write(&file, &head, 0).and_then(|()| self.disk.sync(&file));
        written.or_else(|error| self.abandon(&error))?;
        let renamed = self.disk.rename(&self.relocation_path(), &self.path(number));
        renamed.or_else(|error| self.abandon(&error))?;
        // The directory is synced before anything else in this segment is acknowledged, and before the old copy is
        // deleted. Not here: if that failed, the owner would not learn where the record is now.
        self.unsynced_names = true;
        let segment = Segment { len: SEGMENT_HEADER + record.len(), ..Segment::new(self.segment_file(number), salt) };
        self.add_newest(number, file, segment);
        let moved = self.place_moved(number, SEGMENT_HEADER, &record).into_iter().collect();
        Ok(Compacted { moved, more: true })
    }

    /// Gives up what is written; the next attempt begins anew.
    fn abandon<T>(&mut self, error: &io::Error) -> Result<T, StoreError> {
        self.remove_relocated();
        Err(match error.kind() {
            // This file holds nothing that is needed. If the whole directory is gone, the next commit finds that out.
            io::ErrorKind::NotFound => StoreError::Busy(format!("{}: {error}", self.relocation_path().display())),
            _ => self.refuse(error),
        })
    }

    /// Frees the space of what is written. If this fails, the next start does it.
    fn remove_relocated(&self) {
        let _ = self.disk.remove(&self.relocation_path());
    }
}
