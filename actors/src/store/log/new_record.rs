//! A record that is about to be appended.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::body_file::{BodyDirectory, BodyFile};
use crate::payload::Payload;
use crate::store::segment::composition::Composition;
use crate::store::segment::{Kind, RECORD_HEADER, Record};
use crate::store::{Change, NO_RECORD, Seq};

/// A record that is about to be appended.
#[derive(Debug)]
pub(super) struct NewRecord {
    pub kind: Kind,
    pub seq: Seq,
    pub meta: Bytes,
    /// What follows the meta.
    pub body: Payload,
    /// What a put refers to, if its body is in a file of its own.
    pub composed: Option<Composed>,
}

/// A body in a file of its own.
#[derive(Debug)]
pub(super) struct Composed {
    pub file: Arc<BodyFile>,
    pub payload: Payload,
}

impl NewRecord {
    /// The record that makes `change`. It takes the body file that it refers to.
    pub fn of(change: &Change, bodies: &BodyDirectory) -> Self {
        match change {
            Change::Remove(seq) => Self::removal(*seq),
            Change::Put(put) => {
                let composed = compose(&put.body, bodies);
                let (seq, meta) = (put.seq, put.meta.clone());
                match composed {
                    Some((composition, composed)) => {
                        let body = Payload::from_parts(vec![composition.bytes().clone()]);
                        Self { kind: Kind::Composed, seq, meta, body, composed: Some(composed) }
                    }
                    None => Self { kind: Kind::Put, seq, meta, body: put.body.clone(), composed: None },
                }
            }
        }
    }

    pub fn removal(seq: Seq) -> Self {
        Self { kind: Kind::Removed, seq, meta: Bytes::new(), body: Payload::empty(), composed: None }
    }

    /// A record that is there already, in another segment.
    pub fn moved(record: &Record, meta: Bytes, body: Bytes) -> Self {
        let body = Payload::from_parts(vec![body]);
        Self { kind: record.kind, seq: record.seq, meta, body, composed: None }
    }

    /// Its header.
    ///
    /// # Errors
    /// What reading the body reports.
    pub fn header(&self) -> io::Result<Record> {
        Record::of(self.kind, self.seq, &self.meta, &self.body)
    }

    pub fn is_probe(&self) -> bool {
        self.kind == Kind::Removed && self.seq == NO_RECORD
    }

    /// How many bytes on the disk a message like this takes, in the log or in a file of its own.
    pub fn space(&self) -> u64 {
        let body = self.composed.as_ref().map_or(&self.body, |composed| &composed.payload);
        RECORD_HEADER + self.meta.len() as u64 + body.len()
    }

    /// The body file that it refers to for the first time.
    pub fn file(&self) -> Option<&Arc<BodyFile>> {
        self.composed.as_ref().map(|composed| &composed.file)
    }
}

/// The composition of a body with pieces of one file of this directory, which no record has yet. Takes the file.
///
/// The payload keeps no memory of the original: its pieces in memory may be slices of a much larger received message.
fn compose(body: &Payload, bodies: &BodyDirectory) -> Option<(Composition, Composed)> {
    let Payload::Pieces(pieces) = body else { return None };
    let mut files = body.files();
    let file = files.next()?;
    if !file.is_in(bodies) || file.is_empty() || files.any(|other| other.name() != file.name()) {
        return None;
    }
    let composition = Composition::new(pieces, file)?;
    let payload = composition.payload(file);
    file.take().then(|| (composition, Composed { file: Arc::clone(file), payload }))
}
