//! A folder of .blend files, by their SHA-256. Workers on one machine share it: each file is downloaded once.
//!
//! A lock (`flock`) on a file ends with the process that holds it. `SHA256.part` is locked by the worker that downloads
//! it, `SHA256.blend` by the workers that use it. A lock says nothing about the name: whoever gets one checks that the
//! name still means the locked file.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use indicatif::HumanBytes;
use url::Url;

use crate::download::{Download, Version};
use crate::job::Reference;
use crate::net::{Client, Refused};
use crate::ui::Ui;
use crate::{Result, digest};

/// How often a file with a wrong digest is fetched again.
const TRIES: u32 = 3;

pub struct Cache {
    pub folder: PathBuf,
    /// In bytes.
    pub limit: u64,
}

/// A file in use. It is not evicted before this is dropped.
pub struct Cached {
    path: PathBuf,
    _lock: File,
}

impl Cache {
    /// The file that a message refers to: from the folder, or else from the server.
    pub fn get(
        &self,
        client: &Client,
        server: &Url,
        reference: &Reference,
    ) -> Result<std::result::Result<Cached, Refused>> {
        fs::create_dir_all(&self.folder)
            .map_err(|error| format!("cannot create the cache {}: {error}", self.folder.display()))?;
        let Reference { sha256, size, path: server_path } = reference;
        let [path, part] = ["blend", "part"].map(|kind| self.folder.join(format!("{sha256}.{kind}")));
        for _ in 0..TRIES {
            // Ends when this worker, or another, has the file.
            let (file, is_new) = loop {
                if let Some(file) = lock_shared(&path)? {
                    break (file, false);
                }
                let file = lock_part(&part, client.ui)?;
                if path.exists() {
                    // Another worker was faster.
                    fs::remove_file(&part)?;
                    continue;
                }
                self.make_room(size.saturating_sub(file.metadata()?.len()))?;
                let url = address(server, server_path);
                let etag = Some(format!("\"{sha256}\""));
                let expected = Some(Version { etag, len: *size });
                let what = "fetching the .blend file";
                let download = Download { client, what, url, prefer: None, part: part.clone(), expected };
                if let Err(refused) = download.run()? {
                    return Ok(Err(refused));
                }
                fs::rename(&part, &path)?;
                let mut permissions = file.metadata()?.permissions();
                permissions.set_readonly(true);
                file.set_permissions(permissions)?;
                file.lock_shared()?;
                // While one lock became the other, another worker may have evicted it.
                if is_named(&file, &path)? {
                    break (file, true);
                }
            };
            let what = if is_new { "verifying" } else { "cached" };
            let bar = client.ui.transfer(what, *size, 0);
            let found = digest::hex(&digest::of_file(&path, |bytes| bar.advance(bytes))?);
            drop(bar);
            if found == *sha256 {
                let how = if is_new { "fetched" } else { "cached" };
                client.ui.say(format!(".blend file: {how}, {}, {}", HumanBytes(*size), path.display()));
                // The least recently used file is evicted first. Another user's file keeps its time.
                let _ = file.set_modified(SystemTime::now());
                return Ok(Ok(Cached { path, _lock: file }));
            }
            client.ui.say(format!("{} has another digest; fetching it again", path.display()));
            if is_named(&file, &path)? {
                fs::remove_file(&path)?;
            }
        }
        Err(format!("what the server sends as {sha256} has had another SHA-256 {TRIES} times").into())
    }

    /// Deletes the least recently used files until there is space for so many bytes; never one that is in use.
    fn make_room(&self, bytes: u64) -> Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let is_cached = path.extension().is_some_and(|kind| kind == "blend" || kind == "part");
            // Another worker may delete it now.
            if let (true, Ok(file)) = (is_cached, fs::metadata(&path)) {
                files.push((file.modified()?, file.len(), path));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if total.saturating_add(bytes) <= self.limit {
                break;
            }
            if let Ok(file) = File::open(&path)
                && file.try_lock().is_ok()
                && is_named(&file, &path)?
            {
                fs::remove_file(&path)?;
                total -= len;
            }
        }
        Ok(())
    }
}

impl Cached {
    /// Makes the file appear as `target`: as a link, or, on another file system, as a copy.
    pub fn link(&self, target: &Path) -> Result<()> {
        if let Err(error) = fs::remove_file(target)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error.into());
        }
        fs::hard_link(&self.path, target)
            .or_else(|_| fs::copy(&self.path, target).map(drop))
            .map_err(|error| format!("cannot write {}: {error}", target.display()))?;
        Ok(())
    }
}

/// A complete file, locked against eviction.
fn lock_shared(path: &Path) -> Result<Option<File>> {
    loop {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|error| format!("cannot read {}: {error}", path.display()))?,
        };
        file.lock_shared()?;
        if is_named(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// The file of a download, locked against other downloads.
fn lock_part(part: &Path, ui: &Ui) -> Result<File> {
    loop {
        let file = OpenOptions::new().create(true).append(true).open(part);
        let file = file.map_err(|error| format!("cannot write {}: {error}", part.display()))?;
        if file.try_lock().is_err() {
            ui.say("waiting for another worker that downloads the same .blend file");
            file.lock()?;
        }
        if is_named(&file, part)? {
            return Ok(file);
        }
    }
}

fn is_named(file: &File, path: &Path) -> Result<bool> {
    let file = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (file.dev(), file.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The URL of a file at the server. A proxy in front of the server may have removed the start of the path, which
/// `server` still has.
fn address(server: &Url, path: &str) -> Url {
    let mut url = server.clone();
    let prefix = server.path().trim_end_matches('/');
    let is_below = path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    url.set_path(&if is_below { path.to_owned() } else { format!("{prefix}{path}") });
    url.set_query(None);
    url
}
