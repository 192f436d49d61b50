//! The .blend files that were handed out by reference: a record for each, so that a restart does not forget them.

use std::collections::HashMap;
use std::time::Duration;

use actix::prelude::*;

use crate::age::{ByAge, Since};
use crate::blend::{BlendDigest, Stamp};
use crate::buffer::record::Reference;
use crate::buffer::{BufferActor, PendingWrite};
use crate::error::Error;
use crate::messages::{AddFileReference, FileReference, FileReferences, FindFileReferences};
use crate::payload::Payload;
use crate::reply::{Deferred, Reply, deferred};
use crate::store::{Seq, StoreError, check_failure, cost, encode_meta, now_ms};

/// A reference that is handed out again within this time is not written again, so that repeated requests cost no disk
/// writes. It then lasts up to this much longer than `--buffer-ttl`.
const RENEWAL: Duration = Duration::from_secs(1);

/// The cost of all references, in bytes. The oldest are dropped first. With paths of 100 bytes that is about 70,000
/// file versions.
const MAX_BYTES: u64 = 64 << 20;

/// How many files of the same content are known at once; the oldest are dropped first. Any of them will do. Each that
/// has changed costs a request an attempt to open it.
const MAX_PATHS: usize = 64;

/// The references, by the numbers of their records.
#[derive(Debug, Default)]
pub struct References {
    records: HashMap<Seq, Kept>,
    /// The records of each digest, oldest first. There are several if files of the same content have several paths.
    by_digest: HashMap<BlendDigest, Vec<Seq>>,
    by_age: ByAge,
    bytes: u64,
}

#[derive(Debug)]
struct Kept {
    reference: FileReference,
    since: Since,
    cost: u64,
}

/// A reference that the store is writing.
#[derive(Debug)]
pub struct PendingReference {
    reference: FileReference,
    cost: u64,
    reply: Reply<Result<(), Error>>,
}

impl References {
    /// The references that were found at the start, in any order; and the records that others replace, because their
    /// removal was not durable.
    pub fn recovered(mut found: Vec<(Since, Seq, FileReference, u64)>) -> (Self, Vec<Seq>) {
        found.sort_unstable_by_key(|(since, seq, ..)| (*since, *seq));
        let mut this = Self::default();
        let replaced =
            found.into_iter().flat_map(|(since, seq, reference, cost)| this.add(since, seq, reference, cost));
        let replaced = replaced.collect();
        (this, replaced)
    }

    /// Adds a reference. Returns the records that it replaces or displaces.
    pub fn add(&mut self, since: Since, seq: Seq, reference: FileReference, cost: u64) -> Vec<Seq> {
        let mut superfluous = Vec::new();
        superfluous.extend(self.record_of(&reference));
        self.bytes += cost;
        let same_content = self.by_digest.entry(reference.digest).or_default();
        if superfluous.is_empty() && same_content.len() == MAX_PATHS {
            superfluous.extend(same_content.first());
        }
        same_content.push(seq);
        self.records.insert(seq, Kept { reference, since, cost });
        superfluous.iter().for_each(|&seq| self.remove(seq));
        self.by_age.push(since, seq, self.records.len(), |seq| self.records.contains_key(&seq));
        while self.bytes > MAX_BYTES
            && let Some(oldest) = self.by_age.pop_due(Since::MAX)
        {
            if self.records.contains_key(&oldest) {
                self.remove(oldest);
                superfluous.push(oldest);
            }
        }
        superfluous
    }

    /// The record of this file under this digest.
    fn record_of(&self, reference: &FileReference) -> Option<Seq> {
        let mut records = self.by_digest.get(&reference.digest)?.iter();
        records.find(|seq| self.records[*seq].reference.path == reference.path).copied()
    }

    fn remove(&mut self, seq: Seq) {
        let Some(Kept { reference, cost, .. }) = self.records.remove(&seq) else { return };
        self.bytes -= cost;
        if let Some(records) = self.by_digest.get_mut(&reference.digest) {
            records.retain(|&record| record != seq);
            if records.is_empty() {
                self.by_digest.remove(&reference.digest);
            }
        }
    }

    /// Whether this reference, with this version of the file, was written after `since`.
    fn has_since(&self, reference: &FileReference, since: Since) -> bool {
        let kept = self.record_of(reference).and_then(|seq| self.records.get(&seq));
        kept.is_some_and(|kept| kept.since > since && kept.reference == *reference)
    }

    /// The references with this digest that were written after `since`, newest first.
    fn find(&self, digest: &BlendDigest, since: Since) -> Vec<FileReference> {
        let records = self.by_digest.get(digest).into_iter().flatten().rev();
        let kept = records.filter_map(|seq| self.records.get(seq)).filter(|kept| kept.since > since);
        kept.map(|kept| kept.reference.clone()).collect()
    }

    /// Removes references that were written at `due` or before, at most `limit`. Returns their records, and whether
    /// more may be due.
    pub fn remove_due(&mut self, due: Since, limit: usize) -> (Vec<Seq>, bool) {
        let mut removed = Vec::new();
        for _ in 0..limit {
            let Some(seq) = self.by_age.pop_due(due) else { break };
            if self.records.contains_key(&seq) {
                self.remove(seq);
                removed.push(seq);
            }
        }
        (removed, self.by_age.is_due(due))
    }

    /// The digests of all versions, in no order.
    fn digests(&self) -> impl Iterator<Item = (Stamp, BlendDigest)> {
        self.records.values().map(|kept| (kept.reference.stamp, kept.reference.digest))
    }
}

impl BufferActor {
    /// The digests of the .blend files that were handed out by reference.
    pub(crate) fn known_digests(&self) -> Vec<(Stamp, BlendDigest)> {
        self.references.digests().collect()
    }

    /// References that were written at this time or before have expired.
    pub(super) fn references_due(&self) -> Since {
        self.due().saturating_sub_unsigned(RENEWAL.as_millis() as u64)
    }

    /// Handles the outcome of the put of a reference.
    pub(super) fn finish_reference(
        &mut self,
        pending: PendingReference,
        seq: Seq,
        outcome: Result<Payload, StoreError>,
    ) {
        let PendingReference { reference, cost, reply } = pending;
        if let Err(error) = outcome {
            return reply.send(Err(error.into()));
        }
        let superfluous = self.references.add(self.clock.now(), seq, reference, cost);
        superfluous.into_iter().for_each(|record| self.store.remove(record));
        reply.send(Ok(()));
    }
}

impl Handler<AddFileReference> for BufferActor {
    type Result = Deferred<Result<(), Error>>;

    fn handle(&mut self, AddFileReference(reference): AddFileReference, _: &mut Self::Context) -> Self::Result {
        if self.draining.is_some() {
            return Deferred::now(Err(Error::Stopping));
        }
        if let Err(error) = check_failure(&self.store_failure) {
            return Deferred::now(Err(error.into()));
        }
        let recently = self.clock.now().saturating_sub_unsigned(RENEWAL.as_millis() as u64);
        if self.references.has_since(&reference, recently) {
            return Deferred::now(Ok(()));
        }
        let meta = encode_meta(&Reference::of(reference.clone(), now_ms(), self.clock.boot_time()));
        let cost = cost(meta.len(), 0);
        let (reply, deferred) = deferred();
        let seq = self.store.put(meta, Payload::empty());
        let pending = PendingReference { reference, cost, reply };
        self.pending_puts.insert(seq, PendingWrite::Reference(Box::new(pending)));
        deferred
    }
}

impl Handler<FindFileReferences> for BufferActor {
    type Result = Result<FileReferences, Error>;

    fn handle(&mut self, FindFileReferences(digest): FindFileReferences, _: &mut Self::Context) -> Self::Result {
        Ok(FileReferences(self.references.find(&digest, self.references_due())))
    }
}
