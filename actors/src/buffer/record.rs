//! What a record of the buffer's store says beside its body.

use serde::{Deserialize, Serialize};

use crate::broker::Fingerprint;
use crate::buffer::age::{BootTime, Since};
use crate::buffer::{Held, Rare};
use crate::buffer_uuid::BufferUuid;
use crate::codec::BlendPlaceholder;
use crate::store::Recovered;

/// What is kept of a message beside its body.
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
    /// Versions up to 0.1.0 did not keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootTime>,
}

/// A message of this fingerprint has gone.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Gone {
    #[serde(rename = "gone")]
    pub fingerprint: Fingerprint,
    pub gone_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootTime>,
}

impl Meta {
    /// The meta of a message that is stored now.
    pub fn of(uuid: BufferUuid, stored_at_ms: u64, boot: Option<BootTime>, rare: Option<&Rare>) -> Self {
        let blend = rare.and_then(|rare| rare.blend.as_ref());
        Self {
            uuid,
            stored_at_ms,
            blend_at: blend.map(|blend| blend.offset),
            blend_path: blend.and_then(|blend| blend.path.clone()),
            fingerprint: rare.and_then(|rare| rare.fingerprint),
            boot,
        }
    }

    /// The message, whose body is that of `record` and whose age is `since`.
    pub fn into_held(self, record: Recovered, since: Since) -> (BufferUuid, Held) {
        let blend = self.blend_at.map(|offset| BlendPlaceholder { offset, path: self.blend_path });
        let rare = Rare::new(blend, self.fingerprint);
        let Recovered { seq, meta, body: payload } = record;
        let held = Held { seq, payload, meta_len: meta.len() as u32, stored_at_ms: self.stored_at_ms, since, rare };
        (self.uuid, held)
    }
}
