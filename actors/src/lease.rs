//! Leases: values that hold a message for one receiver. A lease that is dropped offers the message again.
//!
//! The guards stand below the actors: they know only where to report their end. actix skips a message whose sender is
//! gone and drops a reply to one, so a message is never handed out by itself, always with its lease.

mod buffer;
mod outbox;
mod progress;

pub use buffer::{BufferLease, BufferMsgView, LeasedBufferMsg};
pub(crate) use buffer::{BufferLeaseEvent, LeaseEnd};
pub use outbox::{NextMessage, OutboxLease};
pub(crate) use outbox::{OutboxLeaseEvent, OutboxLeaseId};
pub(crate) use progress::Progress;
