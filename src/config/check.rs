//! What would stop the service at its start although every value is accepted. Nothing is changed or locked, so this can
//! run beside a service that uses the same configuration.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat};
use rustix::io::Errno;
use user_http_actors::blend::TagKey;
use user_http_actors::system::STORES;

use super::error::ConfigError;
use super::layers::Layers;
use super::{Config, settings};
use crate::UserHttpServer;

impl Layers {
    /// The configuration, after everything was checked that can be checked without starting the service: the settings,
    /// the data directory, and the limits of this process.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(&mut self) -> Result<Config, Vec<ConfigError>> {
        let config = super::read(self);
        if self.text(&settings::MEMORY) != "true"
            && let data_dir = self.text(&settings::DATA_DIR)
            && !data_dir.is_empty()
            && let Err(why) = check_data_dir(Path::new(data_dir))
        {
            self.refuse(&settings::DATA_DIR, why);
        }
        match config.as_ref().map(UserHttpServer::check_limits) {
            Some(Err(error)) => self.refuse(&settings::MAX_CONNECTIONS, error.to_string()),
            Some(Ok(Some(warning))) => self.warn(warning),
            Some(Ok(None)) | None => {}
        }
        self.finish(config)
    }
}

/// Checks that the stores in a data directory can be opened and written, or that it can be created.
fn check_data_dir(path: &Path) -> Result<(), String> {
    let nearest =
        path.ancestors().find(|path| !matches!(fs::symlink_metadata(named(path)), Err(error) if is_missing(&error)));
    let nearest = named(nearest.unwrap_or(path));
    if nearest != named(path) {
        let check = check_creation(nearest, Access::WRITE_OK | Access::EXEC_OK);
        return check.map_err(|why| format!("it does not exist, and cannot be created: {why}"));
    }
    check_creation(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?;
    STORES.iter().try_for_each(|store| check_store(&path.join(store)))?;
    match TagKey::read(path) {
        Ok(_) => Ok(()),
        Err((file, error)) if error.kind() == ErrorKind::InvalidData => Err(format!("{}: {error}", file.display())),
        Err((file, error)) => Err(unusable(&file, &error)),
    }
}

/// Checks that something can be created in a folder. Rights alone do not tell: root has all of them, even in /proc.
fn check_creation(folder: &Path, access: Access) -> Result<(), String> {
    check_folder(folder, access)?;
    create(folder).map_err(|error| unusable(folder, &error))
}

/// Creates something in a folder, and removes it.
fn create(folder: &Path) -> io::Result<()> {
    // a file without a name, which is gone at once
    match rustix::fs::open(folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
        // The service starts on a full disk.
        Ok(_) | Err(Errno::NOSPC | Errno::DQUOT) => Ok(()),
        // Some file systems have no such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let probe = folder.join(format!(".user-http-server-check-{}", std::process::id()));
            fs::create_dir(&probe)?;
            fs::remove_dir(&probe)
        }
        Err(error) => Err(error.into()),
    }
}

/// The files of a store are created with the rights of the user that has started the service first.
fn check_store(path: &Path) -> Result<(), String> {
    let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    if let Err(error) = fs::symlink_metadata(path)
        && is_missing(&error)
    {
        return Ok(());
    }
    check_folder(path, all)?;
    let entries = fs::read_dir(path).map_err(|error| unusable(path, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| unusable(path, &error))?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let access = if is_folder { all } else { Access::READ_OK | Access::WRITE_OK };
        match may(&entry.path(), access) {
            // a running service may have deleted it meanwhile
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(unusable(&entry.path(), &error)),
            _ => {}
        }
    }
    Ok(())
}

fn check_folder(path: &Path, access: Access) -> Result<(), String> {
    let is_folder = fs::metadata(path).map_err(|error| unusable(path, &error))?.is_dir();
    if !is_folder {
        return Err(format!("{} is not a folder; move it away, or give another folder", path.display()));
    }
    may(path, access).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    let remedy = match error.kind() {
        ErrorKind::ReadOnlyFilesystem => "mount it for writing, or name it in ReadWritePaths= of the service's unit",
        _ => "chown or chmod it",
    };
    format!("expected a folder that the service's user can read and write, but {path}: {error}; {remedy}")
}

/// Whether this process may do this with a file.
fn may(path: &Path, access: Access) -> io::Result<()> {
    Ok(accessat(CWD, path, access, AtFlags::EACCESS)?)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The current folder instead of a path without any folder.
fn named(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}
