//! Disk space: how a log gives it back, and what it keeps for the day when there is none.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Location, LogStore};
use crate::payload::Payload;
use crate::store::segment::{RECORD_HEADER, Record};
use crate::store::{Durable, Seq, StoreError};

/// How many bytes of records are moved with one sync while space is given back.
const MOVED_TOGETHER: u64 = 4 << 20;

/// How much of the disk is kept, so that removals can be written when it is full: 8,000 of them, after each of which
/// a segment may be given back.
const RESERVE_BYTES: usize = 256 << 10;

impl LogStore {
    fn reserve_path(&self) -> PathBuf {
        self.directory.join("RESERVE")
    }

    /// Takes the reserve, unless it is there. Says whether it is there now.
    pub(super) fn reserve(&mut self) -> bool {
        if !self.reserved {
            let path = self.reserve_path();
            let write = |file: File| -> io::Result<()> {
                self.disk.write(&file, &vec![0; RESERVE_BYTES], 0)?;
                self.disk.sync(&file)
            };
            self.reserved = self.disk.create(&path).and_then(write).is_ok();
            if !self.reserved {
                // half of it would be no reserve; that it cannot be had is told by the commits that need it
                let _ = self.disk.remove(&path);
            }
        }
        self.reserved
    }

    /// Gives the reserve to whoever needs it now. Says whether there was one.
    pub(super) fn release_reserve(&mut self) -> bool {
        let released = self.reserved && self.disk.remove(&self.reserve_path()).is_ok();
        self.reserved = false;
        released
    }

    /// Deletes the oldest segments while nothing lives there, and empties them while the log is too large.
    pub(super) fn give_space_back(&mut self, moved: &mut Vec<(Seq, Payload)>) -> Result<(), StoreError> {
        while self.segments.len() > 1 {
            let Some((&oldest, segment)) = self.segments.first_key_value() else { break };
            if segment.live > 0 {
                // A larger share than this would waste disk, a smaller one would copy the same records again and again.
                if self.total <= 2 * self.live + self.segment_bytes {
                    break;
                }
                self.move_out_of(oldest, moved)?;
                debug_assert!(self.segments.get(&oldest).is_none_or(|segment| segment.live == 0), "records are left");
            }
            // A power failure must not bring this one back after a later one, which holds its removals, has gone.
            let deleted = self.disk.remove(&self.path(oldest)).and_then(|()| self.disk.sync_directory(&self.directory));
            deleted.map_err(|error| self.fail(&error))?;
            if let Some(segment) = self.segments.remove(&oldest) {
                self.total -= segment.len;
            }
        }
        Ok(())
    }

    fn move_out_of(&mut self, oldest: u32, moved: &mut Vec<(Seq, Payload)>) -> Result<(), StoreError> {
        let Some(segment) = self.segments.get(&oldest) else { return Ok(()) };
        let (file, salt) = (Arc::clone(&segment.file), segment.salt);
        let here = |seq| self.index.get(seq).filter(|location| location.segment == oldest).copied();
        let mut living: Vec<Location> = segment.put.iter().filter_map(here).collect();
        while !living.is_empty() {
            let mut bytes = 0;
            let group = living.iter().take_while(|location| {
                let first = bytes == 0;
                bytes += location.len;
                first || bytes <= MOVED_TOGETHER
            });
            let group: Vec<Location> = living.drain(..group.count()).collect();
            self.move_records(&file, salt, &group, moved)?;
        }
        Ok(())
    }

    fn move_records(
        &mut self,
        file: &Arc<File>,
        salt: u32,
        group: &[Location],
        moved: &mut Vec<(Seq, Payload)>,
    ) -> Result<(), StoreError> {
        let mut wholes = Vec::with_capacity(group.len());
        for &Location { offset, len, .. } in group {
            let whole = Payload::File { file: Arc::clone(file), offset, len };
            let whole = whole.read_all().map_err(|error| self.fail(&error))?;
            let record = Record::parse(&whole, salt).filter(|record| record.len() == len);
            let record = record.ok_or_else(|| self.fail(&io::Error::other("a record has changed on the disk")))?;
            let body_at = record.body_offset(0) as usize;
            wholes.push((record, whole.slice(RECORD_HEADER as usize..body_at), [whole.slice(body_at..)]));
        }
        let records: Vec<_> = wholes.iter().map(|(record, meta, body)| (*record, &meta[..], &body[..])).collect();
        let (number, offsets) = self.append(&records, Durable::Now)?;
        for ((record, ..), offset) in wholes.into_iter().zip(offsets) {
            moved.push((record.seq, self.place(number, offset, &record)));
        }
        Ok(())
    }
}
