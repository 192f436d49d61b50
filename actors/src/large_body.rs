//! What happens to a large body between the codec and the actor that stores it.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::body_file::BodyDirectory;
use crate::codec::Body;
use crate::error::Error;
use crate::payload::Payload;
use crate::store::{Composition, StoreError};

/// The largest body, in bytes, that goes from memory into the store's log. A larger one is made of JSON with many small
/// values, for example, or comes from the broker.
const MAX_IN_LOG: u64 = 1 << 20;

/// How many large bodies are decoded and prepared at the same time. Each takes a thread that blocks. What the codec
/// makes of one may be in memory until it is stored.
const MAX_AT_ONCE: usize = 4;

/// Lets [`MAX_AT_ONCE`] large bodies at a time through. Clones share the permits.
#[derive(Clone, Debug)]
pub(crate) struct LargeBodies(Arc<Semaphore>);

impl Default for LargeBodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_AT_ONCE)))
    }
}

impl LargeBodies {
    /// Waits for a permit if the body is in a file.
    pub async fn permit(&self, body: &Body) -> Option<SemaphorePermit<'_>> {
        match body {
            Body::Memory(_) => None,
            Body::File { .. } => self.0.acquire().await.ok(),
        }
    }
}

/// Who makes the bytes of a body file durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSync {
    /// [`prepare`], on its own thread: the message is about to be stored, and the store's thread then need not.
    Now,
    /// The store, if it gets the message at all: most are with the broker before.
    InStore,
}

/// Brings a large body into the form in which it is stored. A body that is a composition of its file stays there. Any
/// other goes to a file of its own in `directory`, if there is such a directory, and a short one into memory: so the
/// store's log holds small records only, and no file holds much more than a message.
///
/// # Errors
/// [`Error::Store`]: the disk is full or has failed.
pub(crate) async fn prepare(
    body: Payload,
    directory: Option<&BodyDirectory>,
    sync: FileSync,
) -> Result<Payload, Error> {
    let Some(directory) = directory else { return Ok(body) };
    let form = Form::of(&body);
    if form == Form::Memory || form == Form::Composed && sync == FileSync::InStore {
        return Ok(body);
    }
    let writing = directory.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        let body = match form {
            Form::Memory | Form::Composed => body,
            Form::IntoMemory => Payload::from_parts(vec![body.read_all()?]),
            Form::IntoFile => writing.write(&body)?,
        };
        if sync == FileSync::Now {
            body.files().try_for_each(|file| file.sync())?;
        }
        Ok(body)
    });
    let of_io = |error| StoreError::of_io(directory.path(), &error);
    Ok(prepared.await.map_err(|_| Error::Stopping)?.map_err(of_io)?)
}

/// What becomes of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// It is in memory and stays there.
    Memory,
    /// It stays in its file.
    Composed,
    /// It is read into memory.
    IntoMemory,
    /// It is written to another file.
    IntoFile,
}

impl Form {
    fn of(body: &Payload) -> Self {
        let (Payload::Pieces(pieces), len) = (body, body.len()) else { return Self::Memory };
        match body.files().next() {
            None if len <= MAX_IN_LOG => Self::Memory,
            // otherwise a sender could fill the disk with what is in no message and counts towards no limit
            Some(file) if Composition::fits(pieces) && file.len() / 2 <= len => Self::Composed,
            Some(_) if len <= MAX_IN_LOG => Self::IntoMemory,
            _ => Self::IntoFile,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::payload::Piece;
    use crate::store::disk::SystemDisk;

    #[test]
    fn a_body_stays_in_its_file_only_if_the_file_holds_little_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = BodyDirectory::new(Arc::new(SystemDisk), folder.path().to_owned());
        let len = 4 << 20;
        let mut writer = directory.create().expect("space");
        writer.append(&vec![7; len as usize]).expect("space");
        let file = writer.finish();
        let piece = |len| Piece::File { file: file.clone(), offset: 0, len };
        let memory = |len| Piece::Memory(Bytes::from(vec![7; len]));
        for (pieces, form) in [
            (vec![memory(1 << 20)], Form::Memory),
            (vec![memory((1 << 20) + 1)], Form::IntoFile),
            (vec![memory(100), piece(len), memory(100)], Form::Composed),
            (vec![piece(len / 2)], Form::Composed),
            (vec![piece(len / 2 - 1)], Form::IntoFile),
            (vec![piece(5_000)], Form::IntoMemory),
            (vec![piece(len), memory(20 << 10)], Form::IntoFile),
        ] {
            assert_eq!(Form::of(&pieces.iter().cloned().collect()), form, "{pieces:?}");
        }
    }
}
