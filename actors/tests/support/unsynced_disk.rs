//! A disk that syncs nothing: for images that are read once.

use std::fs::File;
use std::io;
use std::path::Path;

use user_http_actors::store::disk::{Disk, SystemDisk};

/// A disk that is never waited for.
#[derive(Debug)]
pub struct UnsyncedDisk;

impl Disk for UnsyncedDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_directory(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        SystemDisk.create(path)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        SystemDisk.write(file, bytes, offset)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        SystemDisk.set_len(file, len)
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }

    fn check_space(&self, file: &File, bytes: u64) -> io::Result<()> {
        SystemDisk.check_space(file, bytes)
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}
