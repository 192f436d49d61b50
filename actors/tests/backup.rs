//! A backup has everything that was acknowledged before it began, whatever the server does meanwhile.
//!
//! `TEST_BACKUPS` sets how many backups the campaign makes, `TEST_SEED` what happens in it.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use user_http_actors::backup::{Backup, BackupError, Options, back_up};
use user_http_actors::payload::Payload;
use user_http_actors::store::log::LogStore;
use user_http_actors::store::{Change, Durable, Put, Recovered, Seq, Store};

mod campaign;
mod damage;
mod given_up;
mod history;
mod owner;
mod target;
mod turns;

use history::{meta, pattern};

/// A folder for a data directory and its backups. In memory, if the system has such folders: nothing here depends on a
/// disk, and a backup syncs every file.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = tempfile::Builder::new();
    let made = if memory.is_dir() { folder.tempdir_in(memory) } else { folder.tempdir() };
    made.expect("a folder")
}

/// Makes a backup with as many open files as it needs.
fn back_up_all(data_dir: &Path, target: &Path) -> Result<Backup, BackupError> {
    back_up(data_dir, target, &Options::new(1_000))
}

/// Puts records with bodies of `len` bytes, each in a commit of its own.
fn put(store: &mut LogStore, seqs: impl IntoIterator<Item = Seq>, len: usize) {
    for seq in seqs {
        let body = Payload::from_parts(vec![Bytes::from(pattern(seq, len))]);
        let put = Change::Put(Put { seq, meta: meta(seq).into(), body });
        store.commit(&[put], Durable::Now).expect("space");
    }
}

/// The segments of a store, oldest first.
fn segments(store: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(store).expect("a store").map(|file| file.expect("an entry").path());
    let mut segments: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    segments.sort();
    segments
}

/// A segment without the zeros behind its records.
fn records(segment: &Path) -> Vec<u8> {
    let mut content = fs::read(segment).expect("a segment");
    content.truncate(content.iter().rposition(|byte| *byte != 0).expect("a record") + 1);
    content
}

/// What a backup has of the store `buffer`.
fn opened(backup: &Path) -> (LogStore, Vec<Recovered>) {
    LogStore::open(&backup.join("buffer")).expect("a server starts on a backup")
}
