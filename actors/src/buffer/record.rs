//! The meta of a record in the buffer's store.

use serde::{Deserialize, Serialize};

use crate::age::{BootTime, Since};
use crate::blend::{BlendDigest, Stamp};
use crate::broker::Fingerprint;
use crate::buffer::message::{BufferedMsg, ColdFields};
use crate::buffer_uuid::BufferUuid;
use crate::codec::BlendPlaceholder;
use crate::messages::FileReference;
use crate::store::Recovered;

/// The meta of a buffered message.
#[derive(Serialize, Deserialize)]
pub struct Meta {
    pub uuid: BufferUuid,
    pub stored_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blend_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blend_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// Versions up to 0.1.0 did not store it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootTime>,
}

/// The meta of a record without a body: a message with this fingerprint was in the buffer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Tombstone {
    #[serde(rename = "gone")]
    pub fingerprint: Fingerprint,
    pub gone_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootTime>,
}

/// The meta of a record without a body: a .blend file was handed out by reference.
#[derive(Serialize, Deserialize)]
pub struct Reference {
    #[serde(rename = "blend_sha256")]
    digest: BlendDigest,
    #[serde(rename = "blend_path")]
    path: String,
    #[serde(rename = "blend_stamp")]
    stamp: Stamp,
    pub referred_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootTime>,
}

impl Reference {
    /// The meta of a reference that is handed out now.
    pub fn of(reference: FileReference, referred_at_ms: u64, boot: Option<BootTime>) -> Self {
        let FileReference { digest, path, stamp } = reference;
        Self { digest, path, stamp, referred_at_ms, boot }
    }

    pub fn into_reference(self) -> FileReference {
        FileReference { digest: self.digest, path: self.path, stamp: self.stamp }
    }
}

/// The meta of a record that is not a message. Each kind has required fields that the other does not have.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Trace {
    Tombstone(Tombstone),
    Reference(Reference),
}

impl Meta {
    /// The meta of a message that is stored now.
    pub fn of(uuid: BufferUuid, stored_at_ms: u64, boot: Option<BootTime>, cold: Option<&ColdFields>) -> Self {
        let blend = cold.and_then(|cold| cold.blend.as_ref());
        Self {
            uuid,
            stored_at_ms,
            blend_at: blend.map(|blend| blend.offset),
            blend_path: blend.and_then(|blend| blend.path.clone()),
            fingerprint: cold.and_then(|cold| cold.fingerprint),
            boot,
        }
    }

    /// The message with the body of `record`, stored at `since`.
    pub fn into_message(self, record: Recovered, since: Since) -> (BufferUuid, BufferedMsg) {
        let blend = self.blend_at.map(|offset| BlendPlaceholder { offset, path: self.blend_path });
        let cold = ColdFields::new(blend, self.fingerprint);
        let Recovered { seq, meta, body: payload } = record;
        let meta_len = meta.len() as u32;
        (self.uuid, BufferedMsg { seq, payload, meta_len, stored_at_ms: self.stored_at_ms, since, digest: None, cold })
    }
}
