//! The data directory: who uses it, who may read it, and whether the limits fit on its disk.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use bytesize::ByteSize;

use super::{Finding, quote};
use crate::Config;

const DIRECTORY: &str = "data directory";
const SPACE: &str = "disk space";

/// With less free space the store of a gateway counts as full, in bytes: the reserves and a frame.
const MIN_FREE: u64 = 2 << 20;

/// How much the configuration allows on the disk, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--max-buffered` and `--max-outbox`.
    messages: u64,
    /// `--max-upload-space`.
    uploads: u64,
}

impl Limits {
    pub fn of(config: &Config) -> Self {
        let messages = config.actors.max_buffered.saturating_add(config.actors.max_outbox);
        Self { messages, uploads: config.limits.max_upload_space }
    }
}

/// The process that uses a data directory. Its lock is not touched: a gateway that starts at this moment must get it.
pub fn holder(data_dir: &Path) -> Option<i32> {
    let inode = fs::metadata(data_dir.join("buffer/LOCK")).ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // such as "2: FLOCK  ADVISORY  WRITE 652 00:14:16763 0 EOF"; some file systems show another device here than `stat`
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields[..] else { return None };
        if file.rsplit(':').next() == Some(inode.as_str()) { pid.parse().ok() } else { None }
    })
}

/// The path is absolute.
pub fn probe(data_dir: &Path, limits: Option<Limits>, holder: Option<i32>) -> Vec<Finding> {
    let (path, word) = (data_dir.display(), quote(data_dir.display()));
    let metadata = match fs::metadata(data_dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("{path} does not exist; the gateway creates it at its first start");
            return vec![Finding::ok(DIRECTORY, text), space(data_dir, 0, limits)];
        }
        Err(error) => return vec![Finding::failed(DIRECTORY, format!("{path}: {error}"), format!("ls -ld {word}"))],
    };
    let mut findings = Vec::new();
    findings.push(match (fs::read_dir(data_dir), holder) {
        (Err(error), _) => {
            let owner = metadata.uid();
            let text = format!("{path} cannot be read: {error}; it belongs to user {owner}");
            Finding::failed(DIRECTORY, text, format!("sudo -u '#{owner}' user-http-server doctor"))
        }
        (Ok(_), Some(pid)) => Finding::ok(DIRECTORY, format!("{path} is used by the gateway with process id {pid}")),
        (Ok(_), None) if data_dir.join("RUNNING").exists() => {
            let text = format!(
                "{path} is used by no gateway on this machine, and the last one was not stopped in order; what it \
                 acknowledged is there at the next start"
            );
            Finding::warning(DIRECTORY, text)
        }
        (Ok(_), None) => Finding::ok(DIRECTORY, format!("{path} is there, and no gateway on this machine uses it")),
    });
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let text = format!("{path} is open to other users of this machine (mode {mode:04o}); type: chmod 700 {word}");
        findings.push(Finding::warning(DIRECTORY, text));
    }
    findings.push(space(data_dir, used(data_dir), limits));
    findings
}

/// How many bytes the files in a folder and below have. What is deleted meanwhile does not count.
fn used(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => used(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(of).sum()
}

fn space(data_dir: &Path, used: u64, limits: Option<Limits>) -> Finding {
    let folder = data_dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let found = match rustix::fs::statvfs(folder) {
        Ok(found) => found,
        Err(error) => {
            let command = format!("df -h {}", quote(folder.display()));
            return Finding::failed(SPACE, format!("{}: {error}", folder.display()), command);
        }
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let shown = ByteSize(free);
    let command = format!("df -h {}", quote(folder.display()));
    if free < MIN_FREE {
        return Finding::failed(SPACE, format!("{shown} are free; a gateway refuses messages (503)"), command);
    }
    // some file systems have no fixed number of files
    if found.f_files > 0 && found.f_favail < 1_000 {
        let text = format!("only {} more files can be created; large messages are files; type: df -i", found.f_favail);
        return Finding::warning(SPACE, text);
    }
    let Some(Limits { messages, uploads }) = limits else { return Finding::ok(SPACE, format!("{shown} are free")) };
    let limit = ByteSize(messages);
    if free.saturating_add(used) < messages {
        let text = format!(
            "{shown} are free, but --max-buffered and --max-outbox allow {limit} of messages; beyond the disk they are \
             refused (503): lower the limits, or look for more space with: {command}"
        );
        return Finding::warning(SPACE, text);
    }
    let all_uploads = free.saturating_add(used) >= messages.saturating_add(uploads);
    let note = if all_uploads { "" } else { ", but not for all uploads of --max-upload-space" };
    Finding::ok(SPACE, format!("{shown} are free, enough for --max-buffered and --max-outbox ({limit}){note}"))
}
