//! Pins the segments of a log that another process may be using: opens files that, together, were the whole log at one
//! moment. An open file stays readable after its deletion.
//!
//! A directory cannot be listed atomically: compaction may move a record out of a segment that was not listed yet into
//! one that was begun after its place in the list had passed. So the list is only a hint. What is used is the order in
//! which a log begins and gives up its segments:
//!
//! - Segments are begun in the order of their numbers, without gaps. When the file with the next number is found to be
//!   missing, nothing has been written behind the segments that were opened before.
//! - Only the oldest segment is deleted, and only once nothing in it is needed. So while the first one is still there,
//!   all later ones are, and once the one before it is missing, nothing older is needed.
//! - On a full disk a segment in between is replaced by an empty one, and one that could not be begun is deleted and
//!   begun again under the same number. Both change the identity of the file, which is compared in the end.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::backup::{CopyError, Source};
use super::{segment_numbers, segment_path};
use crate::store::OpenError;

/// How often pinning starts again because a segment was given up meanwhile. An attempt takes about 10 µs per segment;
/// a server that gives up one segment in that time, again and again, writes 16 MiB in it.
const ATTEMPTS: usize = 1_000;

/// Which file a name is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(found: &fs::Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino() }
    }
}

/// A segment of the log.
#[derive(Debug)]
pub(super) struct PinnedSegment {
    pub number: u32,
    pub path: PathBuf,
    identity: Identity,
    /// `None` if too many files are open already. It may be deleted until it is read.
    file: Option<File>,
}

impl PinnedSegment {
    /// `None` if there is no such segment.
    fn find(source: &Source<'_>, number: u32, open: bool) -> io::Result<Option<Self>> {
        source.access();
        let path = segment_path(source.directory, number);
        let found = if open { File::open(&path).and_then(Self::identified) } else { Self::named(&path) };
        match found {
            Ok((identity, file)) => Ok(Some(Self { number, path, identity, file })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn identified(file: File) -> io::Result<(Identity, Option<File>)> {
        Ok((Identity::of(&file.metadata()?), Some(file)))
    }

    fn named(path: &Path) -> io::Result<(Identity, Option<File>)> {
        Ok((Identity::of(&fs::metadata(path)?), None))
    }

    /// Whether its name is still that of the same file.
    pub fn is_in_place(&self, source: &Source<'_>) -> io::Result<bool> {
        source.access();
        match fs::metadata(&self.path) {
            Ok(found) => Ok(Identity::of(&found) == self.identity),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Its file. `None` if it was not open, and is no longer there.
    pub fn take_file(&mut self, source: &Source<'_>) -> io::Result<Option<File>> {
        if let Some(file) = self.file.take() {
            return Ok(Some(file));
        }
        let found = Self::find(source, self.number, true)?.filter(|found| found.identity == self.identity);
        Ok(found.and_then(|found| found.file))
    }
}

/// Pins the segments of a log, in their order.
pub(super) fn pin(source: &Source<'_>) -> Result<Vec<PinnedSegment>, CopyError> {
    for _ in 0..ATTEMPTS {
        if let Some(pinned) = try_pin(source)? {
            return Ok(pinned);
        }
    }
    Err(CopyError::Restless(source.directory.to_owned()))
}

/// `None` if a segment was given up meanwhile.
fn try_pin(source: &Source<'_>) -> Result<Option<Vec<PinnedSegment>>, CopyError> {
    let failed = |error| CopyError::from(OpenError::io(source.directory)(error));
    let find = |number, open| PinnedSegment::find(source, number, open).map_err(failed);
    let Some(mut first) = list(source)?.into_iter().min() else {
        // A log that has segments always has one. If the only one has been replaced during the list, the next one is
        // in the next list.
        return Ok(list(source)?.is_empty().then(Vec::new));
    };
    while first > 0 && find(first - 1, false)?.is_some() {
        first -= 1;
    }
    let mut pinned = Vec::new();
    for number in first.. {
        match find(number, pinned.len() < source.max_open())? {
            Some(segment) => pinned.push(segment),
            None => break,
        }
    }
    let Some(last) = pinned.last() else { return Ok(None) };
    // the next one may have been begun meanwhile; or been given up, if there is none behind it
    let next = last.number + 1;
    let is_missing = list(source)?.into_iter().any(|number| number > next) && find(next, false)?.is_none();
    for segment in &pinned {
        if !segment.is_in_place(source).map_err(failed)? {
            return Ok(None);
        }
    }
    if is_missing { Err(OpenError::Missing(segment_path(source.directory, next)).into()) } else { Ok(Some(pinned)) }
}

fn list(source: &Source<'_>) -> Result<Vec<u32>, CopyError> {
    source.access();
    Ok(segment_numbers(source.directory).map_err(OpenError::io(source.directory))?)
}
