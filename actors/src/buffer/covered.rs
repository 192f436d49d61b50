//! How much of a message has been handed over: which part of it completes the delivery.

/// How far one version of a message has been handed over, from its first byte on and without a gap.
///
/// It lives in memory alone. After a restart nothing counts as handed over, and a worker that resumes has to prove what
/// it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Covered {
    /// The version of what is sent: of the message and of its .blend file.
    version: Box<str>,
    /// The first byte that nobody has got.
    up_to: u64,
}

/// A part of a message on its way to a worker.
#[derive(Debug)]
pub(super) struct Transfer {
    version: Box<str>,
    /// How far this version was covered when the transfer began.
    covered: u64,
    /// The next byte to be handed over.
    at: u64,
    /// The length of the whole message.
    len: u64,
}

impl Covered {
    /// Begins to send the bytes from `start` on of a message of `len` bytes. None where they do not count: nobody can have
    /// what comes before them, and the receiver has not `proven` that it does.
    pub fn transfer(self, version: &str, len: u64, start: u64, proven: bool) -> Option<Transfer> {
        let covered = if *self.version == *version { self.up_to } else { 0 };
        (start <= covered || proven).then(|| Transfer { version: version.into(), covered, at: start, len })
    }
}

impl Transfer {
    /// So many bytes more have been handed over.
    pub fn add(&mut self, bytes: u64) {
        self.at += bytes;
    }

    /// Whether everything up to the last byte has been handed over.
    pub fn completes(&self) -> bool {
        self.covered.max(self.at) >= self.len
    }

    /// What is covered now.
    pub fn covered(self) -> Covered {
        Covered { version: self.version, up_to: self.covered.max(self.at) }
    }
}
