//! Tracks how much of a message its deliveries have sent. This decides which range request completes the delivery.

/// How far one version of a message has been sent: from its first byte, without a gap.
///
/// The embedded store keeps it in memory only: after a restart the progress is zero, and a worker that resumes must
/// prove what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The version of the representation: of the message and of its .blend file.
    version: Box<str>,
    /// The offset of the first byte that has not been sent.
    sent_to: u64,
}

/// A range of a message that is being sent to a worker.
#[derive(Debug)]
pub(super) struct Transfer {
    version: Box<str>,
    /// The progress of this version when the transfer began.
    sent_before: u64,
    /// The offset of the next byte to send.
    offset: u64,
    /// The length of the whole message.
    len: u64,
}

impl Progress {
    /// What was recorded of an earlier delivery.
    pub fn of(version: String, sent_to: u64) -> Self {
        Self { version: version.into(), sent_to }
    }

    /// The version of the representation.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The offset of the first byte that has not been sent.
    pub fn sent_to(&self) -> u64 {
        self.sent_to
    }

    /// Starts to send the bytes from `start` on of a message of `len` bytes. `None` if they do not count towards the
    /// delivery: they would leave a gap, and the worker has not `proven` that it has the bytes before.
    pub(super) fn transfer(self, version: &str, len: u64, start: u64, proven: bool) -> Option<Transfer> {
        let sent_before = if *self.version == *version { self.sent_to } else { 0 };
        (start <= sent_before || proven).then(|| Transfer { version: version.into(), sent_before, offset: start, len })
    }
}

impl Transfer {
    /// `bytes` more have been sent.
    pub fn add(&mut self, bytes: u64) {
        self.offset += bytes;
    }

    /// Whether everything up to the last byte has been sent.
    pub fn completes(&self) -> bool {
        self.sent_before.max(self.offset) >= self.len
    }

    /// The progress with this transfer.
    pub fn progress(self) -> Progress {
        Progress { version: self.version, sent_to: self.sent_before.max(self.offset) }
    }
}
