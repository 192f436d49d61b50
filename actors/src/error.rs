//! Errors of requests to the actors, and who can act on each.

use crate::blend::BlendError;
use crate::codec::DecodeError;
use crate::store::StoreError;

/// Who can act on an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The client: the same request fails until it is changed.
    Request,
    /// The client, which is not authorized.
    Forbidden,
    /// Nobody: the message does not exist, or no longer.
    Absent,
    /// The client: the message has to be smaller.
    TooLarge,
    /// The client: it has used an idempotency key for another request.
    Conflict,
    /// Nobody, but a retry may succeed: another client holds the lease, or the message is on its way.
    Busy,
    /// Nobody, but a retry may succeed: a limit is reached.
    NoCapacity,
    /// The operator: the configuration does not offer this.
    Setup,
    /// The operator: a part of the service, or the broker, has failed.
    Service,
}

/// Why an actor refuses a request or fails to carry it out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The body is not what the contract asks for.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Nothing is buffered under this UUID, or it has been delivered.
    #[error("No Buffer Message")]
    NoBufferMsg,
    /// Another client holds the lease.
    #[error("Buffer Message In Delivery")]
    InDelivery,
    /// The message names a .blend file that cannot be sent.
    #[error(transparent)]
    Blend(#[from] BlendError),
    /// A limit on memory or disk is reached.
    #[error("no capacity for {size} more bytes: {held} of {limit} bytes of {what} are in use")]
    NoCapacity {
        /// What the limit is for.
        what: &'static str,
        /// How large the message is, in bytes.
        size: u64,
        /// How many bytes are in use.
        held: u64,
        /// How many bytes may be in use.
        limit: u64,
    },
    /// The broker has refused a message of more than `limit` bytes before.
    #[error("the message has {size} bytes, but the AMQP broker accepts at most {limit} (its max_message_size)")]
    TooLargeForBroker {
        /// How large the message is, in bytes.
        size: u64,
        /// How large one may be, in bytes.
        limit: u64,
    },
    /// The broker has not confirmed a message whose sender waits for that alone; see
    /// [`FrameAck::Broker`](crate::publisher::FrameAck::Broker).
    #[error("the AMQP broker has not confirmed the message: {reason}; send it again later")]
    NotConfirmed {
        /// What the broker does instead.
        reason: &'static str,
    },
    /// Too many bodies wait to be decoded.
    #[error("too many bodies wait to be decoded ({limit}); send it again later")]
    DecoderFull {
        /// How many may wait.
        limit: usize,
    },
    /// The message could not be put on stable storage.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Messages for the user manager are published to a broker, so they cannot be fetched here.
    #[error("messages for the user manager go to the AMQP broker; they can be fetched here only without an AMQP URL")]
    BrokerIsConfigured,
    /// A stored message cannot be read, or what is on the disk does not match its checksum. Whoever finds that out logs
    /// the cause, which names files of this machine.
    #[error("the stored message cannot be read; the log of the service says why")]
    Unreadable,
    /// No message for the user manager has this id.
    #[error("no message has this id")]
    NoSuchMessage,
    /// The broker owes an answer for this message.
    #[error("the message is in flight: the broker has it and has not answered yet; try again later")]
    InFlight,
    /// The sender of this message has no answer yet.
    #[error("the sender of the message still waits for the answer to its request; try again in a few seconds")]
    SenderWaits,
    /// No .blend file with this digest is served.
    #[error(
        "no .blend file with this SHA-256 is served: no message has referred to it lately, or it has changed since"
    )]
    NoSuchBlendFile,
    /// `USER_ID` is not the user that the sender's token is bound to.
    #[error("USER_ID is {claimed:?}, which the sender's token is not bound to")]
    OtherUser {
        /// Who it claims to be from.
        claimed: String,
    },
    /// A request with this idempotency key, and with another body, was accepted or is in progress.
    #[error(
        "the Idempotency-Key was used for a request with another body; repeat that body, or use a new key for a new \
         message"
    )]
    KeyReused,
    /// The service is shutting down.
    #[error("the service is shutting down")]
    Stopping,
}

impl Error {
    /// Who can act on it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Blend(error) if error.is_transient() => ErrorKind::NoCapacity,
            Self::Decode(DecodeError::Unreadable(_)) => ErrorKind::Service,
            Self::Decode(_) | Self::Blend(_) | Self::Store(StoreError::TooLarge { .. }) => ErrorKind::Request,
            Self::NoBufferMsg | Self::NoSuchMessage | Self::NoSuchBlendFile => ErrorKind::Absent,
            Self::OtherUser { .. } => ErrorKind::Forbidden,
            Self::TooLargeForBroker { .. } => ErrorKind::TooLarge,
            Self::KeyReused => ErrorKind::Conflict,
            Self::InDelivery | Self::InFlight | Self::SenderWaits => ErrorKind::Busy,
            Self::NoCapacity { .. } | Self::DecoderFull { .. } => ErrorKind::NoCapacity,
            Self::Store(StoreError::NoSpace(_) | StoreError::Busy(_)) => ErrorKind::NoCapacity,
            Self::BrokerIsConfigured => ErrorKind::Setup,
            Self::Store(StoreError::Failed(_) | StoreError::Gone(_) | StoreError::Database(_))
            | Self::NotConfirmed { .. }
            | Self::Unreadable
            | Self::Stopping => ErrorKind::Service,
        }
    }

    /// Whether a retry can never succeed, because the message alone is larger than the limit.
    pub fn never_fits(&self) -> bool {
        matches!(self, Self::NoCapacity { size, limit, .. } if size > limit)
    }
}

impl From<actix::MailboxError> for Error {
    fn from(_: actix::MailboxError) -> Self {
        Self::Stopping
    }
}
