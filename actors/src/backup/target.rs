//! The folder of a backup: it has another name until the backup is complete, so that no incomplete one passes for one.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::BackupError;
use crate::store::disk::{DIRECTORY_MODE, SystemDisk, create_private, sync_directory};
use crate::store::log::BODIES;
use crate::system::STORES;

/// The end of the folder's name until the backup is complete.
const SUFFIX: &str = ".partial";

/// A file in a folder that is not complete. The process that writes the folder has locked it, so what a killed one has
/// left can be recognized, and replaced.
const MARK: &str = "INCOMPLETE";

/// The folder of a backup that is being made. Removed when this is dropped before the backup is complete.
#[derive(Debug)]
pub(super) struct Target {
    /// Where the backup will be.
    path: PathBuf,
    /// Where it is until it is complete; `None` once it is.
    partial: Option<PathBuf>,
    /// The locked mark.
    _mark: File,
}

impl Target {
    /// Creates the folder for a backup of `data_dir`, whose path is canonical, in `target`.
    pub fn prepare(target: &Path, data_dir: &Path) -> Result<Self, BackupError> {
        let path = resolve(target)?;
        if let Some(folder) = holder(&path, data_dir) {
            return Err(BackupError::Inside { target: target.to_owned(), folder });
        }
        let Some(parent) = path.parent() else { return Err(BackupError::NotEmpty(path)) };
        if path.exists() {
            let is_empty = || Ok(path.is_dir() && fs::read_dir(&path)?.next().is_none());
            if !is_empty().map_err(BackupError::io(&path))? {
                return Err(BackupError::NotEmpty(path));
            }
            let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).map_err(BackupError::io(path));
            if device(&path)? != device(parent)? {
                return Err(BackupError::MountPoint(path));
            }
        }
        let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
        name.push(SUFFIX);
        let partial = parent.join(name);
        let mark = take(&partial)?;
        Ok(Self { path, partial: Some(partial), _mark: mark })
    }

    /// The folder to write to.
    pub fn folder(&self) -> &Path {
        self.partial.as_deref().unwrap_or(&self.path)
    }

    /// Gives the folder, all of which is durable, its name. Returns its path.
    pub fn complete(mut self) -> Result<PathBuf, BackupError> {
        let (path, parent) = (self.path.clone(), self.path.parent().unwrap_or(Path::new("/")));
        fs::rename(self.folder(), &path).map_err(|source| match source.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => BackupError::NotEmpty(path.clone()),
            _ => BackupError::Io { path: path.clone(), source },
        })?;
        self.partial = None;
        sync_directory(&SystemDisk, parent).map_err(BackupError::io(parent))?;
        let mark = path.join(MARK);
        fs::remove_file(&mark).map_err(BackupError::io(&mark))?;
        sync_directory(&SystemDisk, &path).map_err(BackupError::io(&path))?;
        Ok(path)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial
            && let Err(error) = fs::remove_dir_all(partial)
        {
            log::warn!("cannot remove {}, which is no complete backup: {error}", partial.display());
        }
    }
}

/// The absolute path of a folder that may not exist yet, without symbolic links.
fn resolve(target: &Path) -> Result<PathBuf, BackupError> {
    match fs::canonicalize(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found.map_err(BackupError::io(target)),
    }
    // such as `x/..`, or a link to something that does not exist
    let (Some(name), Err(_)) = (target.file_name(), fs::symlink_metadata(target)) else {
        return Err(BackupError::NotEmpty(target.to_owned()));
    };
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(fs::canonicalize(parent).map_err(BackupError::io(parent))?.join(name))
}

/// The folder of the data directory that `path` is in, whatever way leads there: a store may be a link to another disk,
/// and a mount can give a folder a second path.
fn holder(path: &Path, data_dir: &Path) -> Option<PathBuf> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let above: Vec<_> = path.ancestors().filter_map(identity).collect();
    let stores = STORES.into_iter().map(|name| data_dir.join(name));
    let mut folders = stores.flat_map(|store| [store.join(BODIES), store]).chain([data_dir.to_owned()]);
    folders.find(|folder| identity(folder).is_some_and(|identity| above.contains(&identity)))
}

/// Creates the folder `partial`, or empties the one that a killed process has left. Returns its locked mark.
fn take(partial: &Path) -> Result<File, BackupError> {
    let path = partial.join(MARK);
    let mark = match DirBuilder::new().mode(DIRECTORY_MODE).create(partial) {
        // what could not be marked is empty
        Ok(()) => create_private(&path).inspect_err(|_| drop(fs::remove_dir(partial))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => OpenOptions::new().write(true).open(&path),
        Err(error) => Err(error),
    };
    let mark = mark.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if partial.exists() => {
            BackupError::Occupied(partial.to_owned())
        }
        _ => BackupError::io(partial)(error),
    })?;
    match mark.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(BackupError::InProgress(partial.to_owned())),
        Err(TryLockError::Error(error)) => return Err(BackupError::io(&path)(error)),
    }
    // the process that had it may just have completed it
    let is_in_place = |mark: &File| -> io::Result<bool> {
        let (ours, found) = (mark.metadata()?, fs::metadata(&path)?);
        Ok((ours.dev(), ours.ino()) == (found.dev(), found.ino()))
    };
    if !is_in_place(&mark).unwrap_or(false) {
        return Err(BackupError::InProgress(partial.to_owned()));
    }
    empty(partial).map_err(BackupError::io(partial))?;
    Ok(mark)
}

/// Removes everything but the mark.
fn empty(partial: &Path) -> io::Result<()> {
    for entry in fs::read_dir(partial)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false if entry.file_name() == MARK => {}
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}
