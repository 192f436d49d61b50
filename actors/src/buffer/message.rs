//! A message in the buffer.

use crate::age::Since;
use crate::broker::Fingerprint;
use crate::codec::BlendPlaceholder;
use crate::digest::MessageDigest;
use crate::lease::{BufferMsgView, Progress};
use crate::payload::Payload;
use crate::store::{Seq, cost};

/// A buffered message. There may be millions, so fields that few of them need are in [`ColdFields`].
#[derive(Debug)]
pub(super) struct BufferedMsg {
    pub seq: Seq,
    pub payload: Payload,
    pub meta_len: u32,
    pub stored_at_ms: u64,
    /// The time from which its age counts.
    pub since: Since,
    /// `None` until somebody asks for it, or if there is a .blend file.
    pub digest: Option<MessageDigest>,
    pub cold: Option<Box<ColdFields>>,
}

#[derive(Debug, Default)]
pub(super) struct ColdFields {
    pub blend: Option<BlendPlaceholder>,
    /// The fingerprint of a message that came from a broker.
    pub fingerprint: Option<Fingerprint>,
    /// The progress of a message whose delivery has broken off.
    pub progress: Option<Progress>,
}

impl ColdFields {
    pub fn new(blend: Option<BlendPlaceholder>, fingerprint: Option<Fingerprint>) -> Option<Box<Self>> {
        (blend.is_some() || fingerprint.is_some()).then(|| Box::new(Self { blend, fingerprint, progress: None }))
    }
}

impl BufferedMsg {
    pub fn blend(&self) -> Option<&BlendPlaceholder> {
        self.cold.as_ref()?.blend.as_ref()
    }

    pub fn cost(&self) -> u64 {
        cost(self.meta_len as usize, self.payload.len())
    }

    pub fn view(&mut self) -> BufferMsgView {
        let blend = self.blend().cloned();
        BufferMsgView {
            version: format!("{:x}-{:x}", self.seq, self.stored_at_ms),
            payload: self.payload.clone(),
            digest: blend.is_none().then(|| self.digest.get_or_insert_with(MessageDigest::lazy).clone()),
            blend,
        }
    }

    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.cold.as_ref()?.fingerprint
    }

    pub fn progress(&self) -> Progress {
        self.cold.as_ref().and_then(|cold| cold.progress.clone()).unwrap_or_default()
    }
}
