//! A consistent copy of a data directory, made while a gateway may be using it.
//!
//! The copy has what a gateway needs to start: the two stores, and the key of the ETags. It has neither the locks nor
//! the mark of a running gateway: no process has used the copy yet, so its first start is not an unclean one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use crate::blend::TagKey;
use crate::store::disk::{SystemDisk, sync_directory};
use crate::store::log::backup::{CopyError, copy_log};
use crate::system::STORES;

mod target;

pub use crate::store::log::backup::{Copied, Options};
use target::Target;

/// What a backup has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The absolute path of the copy.
    pub folder: PathBuf,
    /// The store of the messages for workers.
    pub buffer: Copied,
    /// The store of the messages for the user manager.
    pub outbox: Copied,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is something else where the backup should be.
    #[error("{} exists and is not an empty folder; name a new folder", .0.display())]
    NotEmpty(PathBuf),
    /// The backup would be a part of what it copies.
    #[error(
        "{target} is inside {folder}, where the gateway keeps its messages; name a folder elsewhere",
        target = target.display(), folder = folder.display()
    )]
    Inside {
        /// Where the backup should be.
        target: PathBuf,
        /// The data directory, or a folder of it.
        folder: PathBuf,
    },
    /// A folder cannot be renamed to the name of a mount point.
    #[error("{path} is a mount point; name a new folder in it, such as {path}/backup", path = .0.display())]
    MountPoint(PathBuf),
    /// Another process makes a backup of this name.
    #[error("another backup is being written to {}", .0.display())]
    InProgress(PathBuf),
    /// Something else has the name that the backup has until it is complete.
    #[error("{} is needed until the backup is complete, but exists and is no interrupted backup; move it away", .0.display())]
    Occupied(PathBuf),
    /// There is no data directory.
    #[error("there is no data directory {}; name the one that the gateway uses with --data-dir", .0.display())]
    NoDataDirectory(PathBuf),
    /// The directory is empty, or belongs to something else.
    #[error(
        "{} is not the data directory of a gateway; name the one that the gateway uses with --data-dir, and see whether \
         its disk is mounted",
        .0.display()
    )]
    NotADataDirectory(PathBuf),
    /// A file or folder cannot be used.
    #[error("cannot use {path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The messages could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

impl BackupError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    fn in_file((path, source): (PathBuf, io::Error)) -> Self {
        Self::Io { path, source }
    }

    /// Whether another `target` would have been accepted.
    pub fn is_about_target(&self) -> bool {
        matches!(self, Self::NotEmpty(_) | Self::Inside { .. } | Self::MountPoint(_))
    }
}

/// Copies `data_dir` to the new folder `target`. Everything that was acknowledged before is in the copy. When this
/// returns, the copy is on stable storage.
///
/// A gateway may use `data_dir` meanwhile; it is only read. Until the copy is complete, its name ends with `.partial`.
///
/// # Errors
/// See [`BackupError`]. Nothing stays behind then.
pub fn back_up(data_dir: &Path, target: &Path, options: &Options<'_>) -> Result<Backup, BackupError> {
    let data_dir = &match fs::canonicalize(data_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(BackupError::NoDataDirectory(data_dir.to_owned()));
        }
        found => found.map_err(BackupError::io(data_dir))?,
    };
    fs::read_dir(data_dir).map_err(BackupError::io(data_dir))?;
    let stores = STORES.map(|name| (name, data_dir.join(name).is_dir()));
    // an empty one may be a disk that is not mounted
    if stores.iter().all(|(_, exists)| !exists) {
        return Err(BackupError::NotADataDirectory(data_dir.clone()));
    }
    let target = Target::prepare(target, data_dir)?;
    let [buffer, outbox] = stores.map(|(name, exists)| match exists {
        true => copy_log(&data_dir.join(name), &target.folder().join(name), options),
        false => Ok(Copied::default()),
    });
    let (buffer, outbox) = (buffer?, outbox?);
    if let Some(key) = TagKey::read(data_dir).map_err(BackupError::in_file)? {
        key.write(target.folder()).map_err(BackupError::in_file)?;
    }
    seal(target.folder(), &owner(data_dir)?)?;
    let folder = target.complete()?;
    Ok(Backup { folder, buffer, outbox })
}

/// Whom the files of a data directory belong to: the user and the group of the gateway.
fn owner(data_dir: &Path) -> Result<fs::Metadata, BackupError> {
    let store = STORES.into_iter().map(|name| data_dir.join(name)).find(|path| path.exists());
    let path = store.as_deref().unwrap_or(data_dir);
    fs::metadata(path).map_err(BackupError::io(path))
}

/// Gives everything in `folder`, and the folder, to the owner of the original, as far as that is permitted, and makes
/// all of it durable.
fn seal(folder: &Path, owner: &fs::Metadata) -> Result<(), BackupError> {
    for entry in fs::read_dir(folder).map_err(BackupError::io(folder))? {
        let entry = entry.map_err(BackupError::io(folder))?;
        let path = entry.path();
        if entry.file_type().map_err(BackupError::io(&path))?.is_dir() {
            seal(&path, owner)?;
        } else {
            give(&path, owner)?;
            File::open(&path).and_then(|file| file.sync_all()).map_err(BackupError::io(&path))?;
        }
    }
    give(folder, owner)?;
    sync_directory(&SystemDisk, folder).map_err(BackupError::io(folder))
}

fn give(path: &Path, owner: &fs::Metadata) -> Result<(), BackupError> {
    let found = fs::metadata(path).map_err(BackupError::io(path))?;
    if (found.uid(), found.gid()) != (owner.uid(), owner.gid()) {
        // fails for anybody but root, who needs it: a gateway with an account of its own must be able to use the copy
        let _ = lchown(path, Some(owner.uid()), Some(owner.gid()));
    }
    Ok(())
}
