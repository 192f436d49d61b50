//! The body files of a log: which records refer to them, when they are durable, and when they are deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use uuid::Uuid;

use super::append::is_the_file_at;
use super::new_record::NewRecord;
use crate::body_file::{BodyDirectory, BodyFile};
use crate::payload::may_be_readable_later;
use crate::store::disk::{Disk, make_directory};
use crate::store::{OpenError, Seq};

/// How many files of one commit are synced at the same time: enough for the disk to have several requests, and few
/// enough to leave half of [`MAX_OPEN_BODY_FILES`](crate::body_file::MAX_OPEN_BODY_FILES) to uploads and readers.
const MAX_SYNCS: usize = 4;

/// How many bytes of a file are read at once.
const CHUNK: u64 = 256 << 10;

/// The body files of a log.
#[derive(Debug)]
pub(super) struct Bodies {
    directory: BodyDirectory,
    /// The directory itself, open so that no other one can pass for it.
    opened: File,
    /// The files of live records.
    live: BTreeMap<Seq, Arc<BodyFile>>,
    /// Bytes of these files.
    live_bytes: u64,
    /// The files of records whose removal is not durable yet.
    removed: Vec<Arc<BodyFile>>,
    /// The files of records that were refused, and that are on the disk until the next sync.
    refused: Vec<Arc<BodyFile>>,
}

/// Why body files cannot be made durable.
#[derive(Debug)]
pub(super) enum SyncError {
    /// This file or directory is not there.
    Missing(PathBuf),
    Io(io::Error),
}

impl SyncError {
    fn of(path: &Path, error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Self::Missing(path.to_owned()) } else { Self::Io(error) }
    }
}

impl Bodies {
    /// The body files in `directory`, which is created if it does not exist.
    pub fn open(disk: Arc<dyn Disk>, directory: &Path) -> Result<Self, OpenError> {
        make_directory(&*disk, directory).map_err(OpenError::io(directory))?;
        let opened = File::open(directory).map_err(OpenError::io(directory))?;
        let directory = BodyDirectory::new(disk, directory.to_owned());
        Ok(Self { directory, opened, live: BTreeMap::new(), live_bytes: 0, removed: Vec::new(), refused: Vec::new() })
    }

    pub fn directory(&self) -> &BodyDirectory {
        &self.directory
    }

    /// The record `seq` refers to `file`.
    pub fn insert(&mut self, seq: Seq, file: Arc<BodyFile>) {
        self.live_bytes += file.len();
        let earlier = self.live.insert(seq, file);
        self.live_bytes -= earlier.map_or(0, |file| file.len());
    }

    /// The files of live records.
    pub fn live(&self) -> impl Iterator<Item = (Seq, &Arc<BodyFile>)> {
        self.live.iter().map(|(seq, file)| (*seq, file))
    }

    /// Bytes of the files of live records.
    pub fn bytes(&self) -> u64 {
        self.live_bytes
    }

    /// The removal of the record `seq` is written.
    pub fn remove(&mut self, seq: Seq) {
        let file = self.take(seq);
        self.removed.extend(file);
    }

    fn take(&mut self, seq: Seq) -> Option<Arc<BodyFile>> {
        let file = self.live.remove(&seq)?;
        self.live_bytes -= file.len();
        Some(file)
    }

    /// All removals that were written are durable: their files are deleted as soon as nobody reads them.
    pub fn removals_are_durable(&mut self) {
        self.removed.drain(..).for_each(|file| file.release());
    }

    /// `records` were refused. They may be on the disk all the same.
    pub fn refuse(&mut self, records: &[NewRecord]) {
        self.refused.extend(records.iter().filter_map(NewRecord::file).cloned());
    }

    /// Nothing of a record that was refused is on the disk any more.
    pub fn refused_are_gone(&mut self) {
        self.refused.drain(..).for_each(|file| file.release());
    }

    /// Makes the files that `records` refer to durable, with their names.
    pub fn sync(&self, records: &[NewRecord]) -> Result<(), SyncError> {
        let files: Vec<&BodyFile> = records.iter().filter_map(NewRecord::file).map(|file| &**file).collect();
        let unsynced: Vec<&BodyFile> = files.iter().copied().filter(|file| !file.is_synced()).collect();
        let synced =
            in_parallel(&unsynced, MAX_SYNCS, |file| file.sync().map_err(|error| SyncError::of(file.path(), error)));
        synced.into_iter().collect::<Result<(), SyncError>>()?;
        self.directory.sync_names(files).map_err(|error| SyncError::of(self.directory.path(), error))
    }

    /// The file that `records` refer to, or the directory, that the next start will not find where it is expected.
    pub fn missing(&self, records: &[NewRecord]) -> Option<PathBuf> {
        let is_there = |file: &&Arc<BodyFile>| match fs::metadata(file.path()) {
            Ok(found) => found.len() == file.len(),
            Err(error) => may_be_readable_later(&error),
        };
        let directory = self.directory.path();
        if !is_the_file_at(&self.opened, directory) {
            return Some(directory.to_owned());
        }
        records.iter().filter_map(NewRecord::file).find(|file| !is_there(file)).map(|file| file.path().to_owned())
    }

    /// Checks the file of each live record. Returns the records whose file is empty, or not there if that
    /// `may_be_missing`: they are given up.
    ///
    /// # Errors
    /// A file is missing or damaged. All of them are in the log; the error names one.
    pub fn check(&self, may_be_missing: bool) -> Result<Vec<Seq>, OpenError> {
        let live: Vec<(&Seq, &Arc<BodyFile>)> = self.live.iter().collect();
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let (mut given_up, mut first_error) = (Vec::new(), Ok(()));
        for (checked, (seq, file)) in in_parallel(&live, cores, |(_, file)| check(file)).into_iter().zip(&live) {
            match checked {
                Ok(true) => {}
                Ok(false) => {
                    log::warn!("{}: empty; the message that was in it is given up", file.path().display());
                    given_up.push(**seq);
                }
                Err(OpenError::Missing(path)) if may_be_missing => {
                    log::warn!("{}: missing; the message that was in it is given up", path.display());
                    given_up.push(**seq);
                }
                Err(error) => {
                    log::error!("{error}");
                    first_error = first_error.and(Err(error));
                }
            }
        }
        first_error.map(|()| given_up)
    }

    /// Forgets the removals that recovery has read, and deletes the files that no record refers to: those of dead
    /// records, and uploads that a crash has interrupted. The records `given_up` are live in the log, so their empty
    /// files stay.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn sweep(&mut self, given_up: &[Seq]) -> Result<(), OpenError> {
        self.removed.clear();
        let needed: BTreeSet<Uuid> = self.live.values().map(|file| file.name()).collect();
        given_up.iter().for_each(|seq| drop(self.take(*seq)));
        let path = self.directory.path();
        let mut deleted = 0;
        for entry in fs::read_dir(path).map_err(OpenError::io(path))? {
            let file = entry.map_err(OpenError::io(path))?.path();
            if BodyDirectory::name_of(&file).is_none_or(|name| needed.contains(&name)) {
                continue;
            }
            match self.directory.remove(&file) {
                Ok(()) => deleted += 1,
                Err(error) => log::warn!("cannot delete {}, which is not needed: {error}", file.display()),
            }
        }
        if deleted > 0 {
            log::info!("{}: {deleted} files that belong to no message are deleted", path.display());
        }
        Ok(())
    }
}

/// Whether a file is what its record says. `false` if it is empty.
fn check(file: &BodyFile) -> Result<bool, OpenError> {
    let path = file.path();
    let damaged = |offset, what| Err(OpenError::Damaged { path: path.to_owned(), offset, what });
    let mut found = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::Missing(path.to_owned())),
        found => found.map_err(OpenError::io(path))?,
    };
    let len = found.metadata().map_err(OpenError::io(path))?.len();
    if len == 0 {
        return Ok(false);
    }
    if len != file.len() {
        return damaged(len.min(file.len()), "the body has another length than its record says");
    }
    let (mut crc, mut chunk) = (0, vec![0; len.min(CHUNK) as usize]);
    loop {
        match found.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => crc = crc32c::crc32c_append(crc, &chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(OpenError::io(path)(error)),
        }
    }
    if crc == file.crc() { Ok(true) } else { damaged(0, "the body does not match its checksum") }
}

/// Calls `work` with each item, on up to `threads` threads. Returns the results in the order of the items.
fn in_parallel<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let run = || {
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?)));
        while let Some((at, item)) = take() {
            let result = work(item);
            results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(items.len()) {
            // if the system has no thread left, the others do the work
            let _ = thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
