//! What happens to a large body between the codec and the actor that stores it.

use crate::body_file::{BodyDirectory, BodyFile};
use crate::error::Error;
use crate::payload::{Payload, Piece};
use crate::store::{Composition, StoreError};

/// The largest body, in bytes, that goes from memory into the store's log. A larger one is made of JSON with many small
/// values, for example, or comes from the broker.
const MAX_IN_LOG: u64 = 1 << 20;

/// When the bytes of a body file have to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSync {
    /// Before the actor gets the message: it is about to store it. Here the sync keeps no other message waiting.
    Now,
    /// When the store needs it. Most messages are with the broker before.
    Later,
}

/// Writes a large body to one file in `directory`, if there is such a directory, unless a store can compose it of its
/// own file: so the store's log holds small records only.
///
/// # Errors
/// [`Error::Store`]: the disk is full or has failed.
pub(crate) async fn prepare(
    body: Payload,
    directory: Option<&BodyDirectory>,
    sync: FileSync,
) -> Result<Payload, Error> {
    let Some(directory) = directory else { return Ok(body) };
    let write = match &body {
        Payload::Pieces(pieces) if file_of(&body).is_some() => !Composition::fits(pieces),
        body => body.len() > MAX_IN_LOG,
    };
    if !write && (sync == FileSync::Later || file_of(&body).is_none()) {
        return Ok(body);
    }
    let writing = directory.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        let body = if write { writing.write(&body)? } else { body };
        if let (FileSync::Now, Some(file)) = (sync, file_of(&body)) {
            file.sync()?;
        }
        Ok(body)
    });
    let of_io = |error| StoreError::of_io(directory.path(), &error);
    Ok(prepared.await.map_err(|_| Error::Stopping)?.map_err(of_io)?)
}

/// The body file that a body refers to.
fn file_of(body: &Payload) -> Option<&BodyFile> {
    let Payload::Pieces(pieces) = body else { return None };
    pieces.iter().find_map(|piece| if let Piece::File { file, .. } = piece { Some(&**file) } else { None })
}
