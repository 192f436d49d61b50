//! Bodies in files of their own, as an upload leaves them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use user_http_actors::body_file::{BodyDirectory, BodyFile};
use user_http_actors::payload::{Payload, Piece};

/// A file with these bytes, written in two parts.
pub fn file(bodies: &BodyDirectory, content: &[u8]) -> io::Result<Arc<BodyFile>> {
    let mut writer = bodies.create()?;
    let (head, tail) = content.split_at(content.len() / 2);
    writer.append(head)?;
    writer.append(tail)?;
    Ok(writer.finish())
}

pub fn range(file: &Arc<BodyFile>, offset: usize, len: usize) -> Piece {
    Piece::File { file: Arc::clone(file), offset: offset as u64, len: len as u64 }
}

/// A body of pieces: the first two bytes, its middle and its end in a file, and between those some in memory, as those
/// of an envelope are. `body` has more than ten bytes.
pub fn in_file(bodies: &BodyDirectory, body: &[u8]) -> io::Result<Payload> {
    let memory = |from: usize, to: usize| Piece::Memory(Bytes::copy_from_slice(&body[from..to]));
    let middle = body.len() / 2;
    let file = file(bodies, &[b"not of the body", &body[2..middle], b"nor this", &body[middle + 3..]].concat())?;
    let first = range(&file, 15, middle - 2);
    let second = range(&file, 15 + middle - 2 + 8, body.len() - middle - 3);
    Ok([memory(0, 2), first, memory(middle, middle + 3), second].into_iter().collect())
}

/// The files in the directory of body files of the store in `directory`.
pub fn body_files(directory: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(directory.join("bodies")).expect("the store has made it");
    found.map(|file| file.expect("an entry").path()).collect()
}

/// Whether a part of the body is in a file of its own.
pub fn is_in_file(body: &Payload) -> bool {
    body.files().next().is_some()
}
