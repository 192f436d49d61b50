//! A consistent copy of a log that another process may be using: what the log was at one moment after the copy began.
//!
//! The source is only read, without a lock, so its owner never waits for the copy. What makes the copy consistent:
//!
//! - The [segments are pinned](super::pin) first: together they were the whole log at one moment. All but the newest
//!   are complete, and nobody writes to them any more.
//! - The newest one is copied while it may be appended to. Whatever was acknowledged before is complete, so the copy is
//!   cut off where its first incomplete record begins.
//! - Body files are pinned just before and after the newest segment is copied. If one that the copy needs is missing
//!   all the same, its message was removed in that short time, and the copy is made again.
//! - If the log [has stopped](super::stopped) and nobody has used it meanwhile, the copy gets its mark, and nothing may
//!   be missing in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::pin::{PinnedSegment, pin};
use super::stopped::Stopped;
use super::{BODIES, LogStore, SEGMENT_BYTES, segment_numbers, segment_path};
use crate::body_file::BodyDirectory;
use crate::store::disk::{FILE_MODE, SystemDisk, make_directory};
use crate::store::segment::{Entry, FoundHeader, MetaMemory, Reader, SEGMENT_HEADER};
use crate::store::{OpenError, Seq};

/// How often a copy is made again because a body file was deleted just when it was needed.
const ATTEMPTS: usize = 100;

/// What the copy leaves free on a file system that the log is on too, in bytes: its owner needs space for new messages.
const MIN_FREE: u64 = 64 << 20;

/// How many bytes the kernel copies in one call: enough that the calls cost nothing.
const CHUNK: u64 = 8 << 20;

/// How a copy is made.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// How many segments, and how many body files, may be open at the same time. With fewer than the source has, the
    /// copy may have to be made again when its owner deletes one.
    pub max_open: usize,
    /// How many bytes are copied in one call.
    pub chunk: u64,
    /// Called before each access to the source. Tests change the source there.
    pub before_access: &'a (dyn Fn() + Sync),
}

impl Options<'_> {
    /// With so many open segments, and so many open body files.
    pub fn new(max_open: usize) -> Self {
        Self { max_open, chunk: CHUNK, before_access: &|| {} }
    }
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// The records of the copy.
    pub records: u64,
    /// The bytes of its files.
    pub bytes: u64,
}

/// Why a log cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A server could not open the source either.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file could not be copied.
    #[error("cannot copy {from} to {to}: {source}", from = from.display(), to = to.display())]
    Copy {
        /// The file.
        from: PathBuf,
        /// Its copy.
        to: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The copy would take the space that the server needs.
    #[error(
        "cannot copy {from} to {to}: {free} bytes are free on this disk, which the gateway stores its messages on too; \
         back up to another disk, or free some space",
        from = from.display(), to = to.display()
    )]
    NoSpace {
        /// The file.
        from: PathBuf,
        /// Its copy.
        to: PathBuf,
        /// The free space.
        free: u64,
    },
    /// Files were deleted faster than they could be read.
    #[error(
        "files in {} were deleted faster than they could be read; raise the limit of open files (ulimit -n), or try \
         again while fewer messages come and go",
        .0.display()
    )]
    Restless(PathBuf),
}

/// The directory of a log that is being copied.
pub(super) struct Source<'a> {
    pub directory: &'a Path,
    options: &'a Options<'a>,
}

impl Source<'_> {
    pub fn max_open(&self) -> usize {
        self.options.max_open
    }

    /// The mark of a log that nobody uses.
    fn stopped(&self) -> Result<Option<Stopped>, OpenError> {
        self.access();
        Stopped::read(self.directory)
    }

    /// To be called before each access.
    pub fn access(&self) {
        (self.options.before_access)();
    }

    /// Copies a file, from its start to what is its end by then.
    fn copy(&self, file: &File, from: &Path, to: &Path) -> Result<(), CopyError> {
        let failed = |source| CopyError::Copy { from: from.to_owned(), to: to.to_owned(), source };
        if let Some(free) = lacks_space(file, to).map_err(failed)? {
            return Err(CopyError::NoSpace { from: from.to_owned(), to: to.to_owned(), free });
        }
        let copy = || {
            let mut copy = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(to)?;
            loop {
                self.access();
                // the kernel copies; on some file systems the copy shares the blocks of the original
                if io::copy(&mut file.take(self.options.chunk), &mut copy)? == 0 {
                    return copy.sync_data();
                }
            }
        };
        copy().map_err(failed)
    }
}

/// The free space, if it is too little for a copy of `file` at `to` because the server needs it too.
fn lacks_space(file: &File, to: &Path) -> io::Result<Option<u64>> {
    let Some(folder) = to.parent() else { return Ok(None) };
    let original = file.metadata()?;
    if fs::metadata(folder)?.dev() != original.dev() {
        return Ok(None);
    }
    let space = rustix::fs::statvfs(folder)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    Ok(Some(free).filter(|free| *free < original.len().saturating_add(MIN_FREE)))
}

/// Copies the log in the directory `from` into the directory `to`, which does not exist. The data of the copy is
/// synced, but its names are not.
///
/// # Errors
/// See [`CopyError`]. What was copied until then stays.
pub fn copy_log(from: &Path, to: &Path, options: &Options<'_>) -> Result<Copied, CopyError> {
    make_directory(&SystemDisk, to).map_err(OpenError::io(to))?;
    let bodies_to = to.join(BODIES);
    make_directory(&SystemDisk, &bodies_to).map_err(OpenError::io(&bodies_to))?;
    let source = Source { directory: from, options };
    let mut bodies = Bodies { source: &source, from: from.join(BODIES), to: bodies_to, pinned: BTreeMap::new() };
    let mut missing_before = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        remove_segments(to)?;
        let stopped = source.stopped()?;
        if !copy_segments(&source, &mut bodies, to)? {
            continue;
        }
        // a mark that is still the same was there all the time: it is removed before anything is changed
        if let Some(stopped) = stopped
            && source.stopped()?.as_ref() == Some(&stopped)
        {
            stopped.write(&SystemDisk, to).map_err(OpenError::io(to))?;
        }
        let mut copy = LogStore::new(Arc::new(SystemDisk), to, SEGMENT_BYTES, None)?;
        let in_source = |error: OpenError| error.moved(to, from);
        copy.recover().map_err(in_source)?;
        let missing = bodies.copy(&copy)?;
        if let Some(seq) = missing.intersection(&missing_before).next()
            && !copy.has_given_up_segments()
        {
            // it was missing before this record was read again
            let path = copy.bodies.live().find(|(live, _)| live == seq).map(|(_, file)| bodies.path(file.name()));
            return Err(OpenError::Missing(path.unwrap_or_default()).into());
        }
        if missing.is_subset(&missing_before) {
            copy.check_bodies().map_err(in_source)?;
            return Ok(Copied { records: copy.index.len() as u64, bytes: copy.total + copy.bodies.bytes() });
        }
        missing_before = missing;
    }
    Err(CopyError::Restless(from.to_owned()))
}

/// Removes what an earlier attempt has copied.
fn remove_segments(to: &Path) -> Result<(), OpenError> {
    Stopped::remove(&SystemDisk, to).map_err(OpenError::io(to))?;
    for number in segment_numbers(to).map_err(OpenError::io(to))? {
        let path = segment_path(to, number);
        fs::remove_file(&path).map_err(OpenError::io(&path))?;
    }
    Ok(())
}

/// Copies the segments, and pins the body files that their records refer to. False if a segment was deleted before it
/// could be opened.
fn copy_segments(source: &Source<'_>, bodies: &mut Bodies<'_>, to: &Path) -> Result<bool, CopyError> {
    let mut segments = pin(source)?;
    let newest = segments.len().saturating_sub(1);
    let mut files = BTreeMap::new();
    for (at, segment) in segments.iter_mut().enumerate() {
        let file = segment.take_file(source).map_err(OpenError::io(&segment.path))?;
        let Some(file) = file else { return Ok(false) };
        if at == newest {
            bodies.pin(source.max_open())?;
        }
        source.copy(&file, &segment.path, &segment_path(to, segment.number))?;
        // the newest two may be needed again
        files.insert(segment.number, file);
        if files.len() > 2 {
            files.pop_first();
        }
    }
    bodies.pin(source.max_open())?;
    cut_tail(source, &segments, &files, to)?;
    Ok(true)
}

/// Cuts the incomplete end off the copy of the newest segment, as if a crash had torn it.
fn cut_tail(
    source: &Source<'_>,
    segments: &[PinnedSegment],
    files: &BTreeMap<u32, File>,
    to: &Path,
) -> Result<(), CopyError> {
    for segment in segments.iter().rev() {
        let path = segment_path(to, segment.number);
        let copy = OpenOptions::new().read(true).write(true).open(&path).map_err(OpenError::io(&path))?;
        let end = find_end(&copy, segment.number).map_err(OpenError::io(&path))?;
        if let Some(what) = end.stopped {
            let is_damaged = files.get(&segment.number).map(|file| is_damaged(file, segment.number, end.offset));
            if end.is_damaged || is_damaged.unwrap_or(Ok(false)).map_err(OpenError::io(&segment.path))? {
                return Err(OpenError::Damaged { path: segment.path.clone(), offset: end.offset, what }.into());
            }
            copy.set_len(end.offset).and_then(|()| copy.sync_data()).map_err(OpenError::io(&path))?;
        }
        let is_newest = end.has_records || segment.is_in_place(source).map_err(OpenError::io(&segment.path))?;
        if end.has_header && is_newest {
            return Ok(());
        }
        // its beginning was not finished, or was given up: then the log goes on in the segment before it
        fs::remove_file(&path).map_err(OpenError::io(&path))?;
        if is_newest {
            return Ok(());
        }
    }
    Ok(())
}

/// Where the sound records of a segment end.
struct End {
    offset: u64,
    has_header: bool,
    has_records: bool,
    /// What stands there instead of another record; `None` at the end of the file.
    stopped: Option<&'static str>,
    /// It cannot be a record that is being written.
    is_damaged: bool,
}

fn find_end(file: &File, number: u32) -> io::Result<End> {
    let len = file.metadata()?.len();
    let mut metas = MetaMemory::default();
    let mut reader = Reader::new(file, &mut metas)?;
    match reader.header(number)? {
        FoundHeader::Sound { .. } => {}
        FoundHeader::Bad(_) if len <= SEGMENT_HEADER => {
            return Ok(End { offset: 0, has_header: false, has_records: false, stopped: None, is_damaged: false });
        }
        // recovery reports that
        FoundHeader::Bad(_) | FoundHeader::OtherVersion(_) => {
            return Ok(End { offset: len, has_header: true, has_records: true, stopped: None, is_damaged: false });
        }
    }
    let mut end =
        End { offset: SEGMENT_HEADER, has_header: true, has_records: false, stopped: None, is_damaged: false };
    loop {
        match reader.next()? {
            Entry::Record { offset, record, .. } => {
                end.offset = offset + record.len();
                end.has_records = true;
            }
            Entry::End => return Ok(end),
            Entry::Zeros { .. } => {
                end.stopped = Some("zeros stand where a record should");
                return Ok(end);
            }
            Entry::Bad { what, may_be_torn, .. } => {
                (end.stopped, end.is_damaged) = (Some(what), !may_be_torn);
                return Ok(end);
            }
        }
    }
}

/// Whether the record at `offset` of a segment is damaged, rather than incomplete because it was being written.
fn is_damaged(file: &File, number: u32, offset: u64) -> io::Result<bool> {
    let look = || -> io::Result<bool> {
        let mut metas = MetaMemory::default();
        let mut reader = Reader::new(file, &mut metas)?;
        if !matches!(reader.header(number)?, FoundHeader::Sound { .. }) {
            return Ok(false);
        }
        // In this order: whatever stands before a commit's start was complete before that was written.
        Ok(reader.has_commit_after(offset)? && find_end(file, number)?.offset <= offset)
    };
    match look() {
        // it has just been cut off, so it was not acknowledged
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        looked => looked,
    }
}

/// The body files of the source.
struct Bodies<'a> {
    source: &'a Source<'a>,
    from: PathBuf,
    to: PathBuf,
    /// Those that are open and not copied yet.
    pinned: BTreeMap<Uuid, File>,
}

impl Bodies<'_> {
    fn path(&self, name: Uuid) -> PathBuf {
        BodyDirectory::path_in(&self.from, name)
    }

    fn copy_path(&self, name: Uuid) -> PathBuf {
        BodyDirectory::path_in(&self.to, name)
    }

    /// Opens all files that are there, up to `max_open`.
    fn pin(&mut self, max_open: usize) -> Result<(), CopyError> {
        self.source.access();
        let entries = match fs::read_dir(&self.from) {
            // none was ever needed
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(OpenError::io(&self.from))?,
        };
        for entry in entries {
            let path = entry.map_err(OpenError::io(&self.from))?.path();
            let Some(name) = BodyDirectory::name_of(&path) else { continue };
            if self.pinned.len() >= max_open {
                break;
            }
            if !self.pinned.contains_key(&name)
                && !self.copy_path(name).exists()
                && let Some(file) = self.open(name)?
            {
                self.pinned.insert(name, file);
            }
        }
        Ok(())
    }

    /// `None` if it is not there.
    fn open(&self, name: Uuid) -> Result<Option<File>, CopyError> {
        self.source.access();
        let path = self.path(name);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OpenError::io(&path)(error).into()),
        }
    }

    /// Copies the files of the live records of `copy`. Returns the records whose file is not there.
    fn copy(&mut self, copy: &LogStore) -> Result<BTreeSet<Seq>, CopyError> {
        let mut missing = BTreeSet::new();
        // those first that may be deleted until they are opened
        let (pinned, others): (Vec<_>, Vec<_>) =
            copy.bodies.live().partition(|(_, file)| self.pinned.contains_key(&file.name()));
        for (seq, name) in others.into_iter().chain(pinned).map(|(seq, file)| (seq, file.name())) {
            let to = self.copy_path(name);
            if to.exists() {
                continue;
            }
            let file = match self.pinned.remove(&name) {
                Some(file) => Some(file),
                None => self.open(name)?,
            };
            match file {
                Some(file) => self.source.copy(&file, &self.path(name), &to)?,
                None => drop(missing.insert(seq)),
            }
        }
        Ok(missing)
    }
}
