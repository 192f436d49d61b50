//! A reserve of disk space, for the time when the disk is full: removals must be written then, because they free space.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::RngCore;

use super::LogStore;
use super::new_record::NewRecord;
use crate::store::segment::{Kind, Record};
use crate::store::{Durable, StoreError};

/// The size of the reserve in bytes: 8,000 removals, after each of which a segment may be given back.
const RESERVE_BYTES: usize = 256 << 10;

/// How much space a disk must have at the start so that it does not count as full, in bytes: that of a small frame.
const USUAL_MESSAGE: u64 = 1 << 20;

/// The longest pause between attempts to write the reserve on a full disk. Each attempt writes as much as fits; 503
/// ends within a second of space being free.
const MAX_RESERVE_PAUSE: Duration = Duration::from_millis(500);

/// A pause after an attempt that failed for want of space. There is none after the first failure, which may be
/// transient; then it doubles each time.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    next: Duration,
}

impl Pause {
    pub(super) fn is_over(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }

    pub(super) fn begin(&mut self, max: Duration) {
        self.until = Some(Instant::now() + self.next);
        self.next = (self.next * 2).clamp(Duration::from_millis(125), max);
    }
}

impl LogStore {
    pub(super) fn reserve_path(&self) -> PathBuf {
        self.directory.join("RESERVE")
    }

    /// How many bytes the reserve takes.
    pub(super) fn reserved_bytes(&self) -> u64 {
        if self.reserved { RESERVE_BYTES as u64 } else { 0 }
    }

    /// Writes the reserve, if it does not exist. Returns whether it exists now.
    pub(super) fn reserve(&mut self) -> bool {
        if !self.reserved && self.reserve_pause.is_over() {
            let path = self.reserve_path();
            let write = |file: File| -> io::Result<()> {
                // zeros would take no space on a file system that compresses
                let mut bytes = vec![0; RESERVE_BYTES];
                rand::rng().fill_bytes(&mut bytes);
                self.disk.write(&file, &bytes, 0)?;
                self.disk.sync(&file)
            };
            self.reserved = self.disk.create(&path).and_then(write).is_ok();
            if self.reserved {
                self.reserve_pause = Pause::default();
            } else {
                // a part of it would be no reserve; the commits that need it report that it is missing
                let _ = self.disk.remove(&path);
                self.reserve_pause.begin(MAX_RESERVE_PAUSE);
            }
        }
        self.reserved
    }

    /// Frees the space of the reserve. Returns whether it existed.
    pub(super) fn release_reserve(&mut self) -> bool {
        let released = self.reserved && self.disk.remove(&self.reserve_path()).is_ok();
        self.reserved = false;
        released
    }

    /// Appends records. Only removals may use the reserve.
    pub(super) fn append_with_reserve(
        &mut self,
        new: &[NewRecord],
        durable: Durable,
    ) -> Result<(u32, Vec<(u64, Record)>), StoreError> {
        if new.iter().all(|new| new.kind == Kind::Removed && !new.is_probe()) {
            return match self.append(new, durable) {
                Err(StoreError::NoSpace(_)) if self.release_reserve() => self.append(new, durable),
                appended => appended,
            };
        }
        let appended = if !self.reserve() {
            Err(self.no_reserve())
        } else {
            let space = if new.iter().any(NewRecord::is_probe) { self.check_refused() } else { Ok(()) };
            space.and_then(|()| self.append(new, durable))
        };
        match &appended {
            Ok(_) => self.refused = None,
            Err(StoreError::NoSpace(_)) => {
                let bytes = new.iter().map(NewRecord::space).sum();
                self.refused = self.refused.max(Some(bytes));
            }
            Err(_) => {}
        }
        appended
    }

    /// Whether there is space for the reserve and for a message of usual size.
    pub(super) fn check_usual_space(&mut self) -> Result<(), StoreError> {
        if !self.reserve() {
            return Err(self.no_reserve());
        }
        self.refused = self.refused.max(Some(USUAL_MESSAGE));
        self.check_refused()?;
        self.refused = None;
        Ok(())
    }

    /// Whether there is space for what was refused last. That some bytes can be written proves nothing about that.
    fn check_refused(&mut self) -> Result<(), StoreError> {
        let Some(bytes) = self.refused else { return Ok(()) };
        let path = self.directory.join("ROOM");
        let checked = self.disk.create(&path).and_then(|file| self.disk.check_space(&file, bytes));
        let removed = self.disk.remove(&path);
        checked.and(removed).map_err(|error| self.refuse(&error))
    }

    fn no_reserve(&self) -> StoreError {
        StoreError::NoSpace(format!("{}: no space for the reserve", self.directory.display()))
    }
}
