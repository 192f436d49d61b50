//! Files that are never sent, wherever the blend roots are: those in the data directory, and those that hold secrets.
//! They are recognised by device and inode instead of by name, so that hard links and bind mounts are recognised too.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::resolve::{Dir, FileId, OpenedFile};

/// The magic numbers (`linux/magic.h`) of file systems whose files the kernel generates. They reveal, for example, its
/// memory and the environment of processes. They may be mounted anywhere.
const GENERATED: [u32; 10] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6265_6570, // configfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xde5e_81e4, // efivarfs
];

/// The paths of these files. Their device and inode are read for each request, because certificates and tokens may be
/// replaced while the service runs.
#[derive(Debug)]
pub struct NeverSent {
    /// The data directory, with everything below it.
    pub data_dir: Option<PathBuf>,
    /// Single files.
    pub files: Vec<PathBuf>,
}

impl NeverSent {
    /// Whether `found` is one of them. `dirs` are the folders on its path, from the blend root (or `/`) on.
    ///
    /// # Errors
    /// What the file system reports. It is then unknown whether the file is one of them.
    pub fn holds(&self, dirs: &[Dir], found: &OpenedFile) -> io::Result<bool> {
        for path in &self.files {
            if identity(path)? == Some(found.id) {
                return Ok(true);
            }
        }
        // The kernel's own file systems always answer. Others, such as some FUSE file systems, may fail here.
        if rustix::fs::fstatfs(&found.file).is_ok_and(|stat| GENERATED.contains(&(stat.f_type as u32))) {
            return Ok(true);
        }
        let Some(data_dir) = &self.data_dir else { return Ok(false) };
        let Some(data_id) = identity(data_dir)? else { return Ok(false) };
        if dirs.iter().any(|dir| dir.id == data_id) {
            return Ok(true);
        }
        // The blend root itself may be in the data directory.
        if let Some(first) = dirs.first()
            && first.lies_in(data_id)?
        {
            return Ok(true);
        }
        // Otherwise only a hard link or another mount can lead into the data directory. If there is one, the whole data
        // directory is listed.
        let mounts: Vec<FileId> = dirs.iter().filter(|dir| dir.is_mounted).map(|dir| dir.id).collect();
        if mounts.is_empty() && found.links <= 1 && !found.is_mounted {
            return Ok(false);
        }
        let inside = identities_below(data_dir)?;
        Ok(inside.contains(&found.id) || mounts.iter().any(|id| inside.contains(id)))
    }
}

fn identity(path: &Path) -> io::Result<Option<FileId>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(FileId { device: meta.dev(), inode: meta.ino() })),
        // It is being replaced, was deleted, or is in a folder that this process may not enter.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Device and inode of everything in a folder and below.
fn identities_below(folder: &Path) -> io::Result<HashSet<FileId>> {
    let mut identities = HashSet::new();
    let mut folders = vec![folder.to_owned()];
    let mut is_first = true;
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // A folder of another user, such as `lost+found`. It has no files of this process.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_first => continue,
            Err(error) => return Err(error),
        };
        is_first = false;
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // The store has deleted it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            identities.insert(FileId { device: meta.dev(), inode: meta.ino() });
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(identities)
}
