//! The mark of a running gateway in its data directory: one that is found at the start was left by a process that did
//! not stop in order.

use std::io;
use std::path::{Path, PathBuf};

use metrics::{counter, describe_counter};

use crate::store::disk::{SystemDisk, create_private, sync_directory};

/// An empty file, there while a gateway uses the directory. Versions without it ignore it.
const NAME: &str = "RUNNING";

const UNCLEAN_STARTS: &str = "user_http_server_unclean_starts_total";

/// The mark in one data directory.
#[derive(Debug)]
pub(crate) struct RunningMark(PathBuf);

impl RunningMark {
    /// Sets the mark in a data directory that this process has locked, and counts the start as unclean if it was set.
    /// Without a directory there is nothing to mark.
    pub fn set(data_dir: Option<&Path>) -> Option<Self> {
        describe_counter!(UNCLEAN_STARTS, "1 if the process before this one was not shut down in order.");
        let unclean_starts = counter!(UNCLEAN_STARTS);
        let data_dir = data_dir?;
        let path = data_dir.join(NAME);
        if path.exists() {
            log::info!("the gateway was not shut down in order the last time; what it had acknowledged is there");
            unclean_starts.increment(1);
        } else if let Err(error) = create_private(&path).and_then(|_| sync_directory(&SystemDisk, data_dir)) {
            // such as on a full disk
            log::warn!("if this process is killed, the next start will not notice: {}: {error}", path.display());
        }
        Some(Self(path))
    }

    /// Removes the mark, after everything is on stable storage. Blocks.
    pub fn remove(&self) {
        let removed = std::fs::remove_file(&self.0).and_then(|()| match self.0.parent() {
            Some(data_dir) => sync_directory(&SystemDisk, data_dir),
            None => Ok(()),
        });
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("the next start will take this stop for a crash: {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}
