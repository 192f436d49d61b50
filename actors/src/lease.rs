//! Leases: values that hold a message for one receiver. A lease that is dropped offers the message again.
//!
//! The guards do not know the actors, only where to report their end. If the sender of a request has hung up, actix
//! drops the reply. So a buffered message is never handed out alone, but always with its lease.

mod buffer;
mod outbox;
mod progress;
mod term;

pub use buffer::{BufferLease, BufferMsgView, LeasedBufferMsg};
pub(crate) use buffer::{BufferLeaseEvent, LeaseEnd};
pub use outbox::{NextMessage, OutboxLease};
pub(crate) use outbox::{OutboxLeaseEvent, OutboxLeaseId};
pub(crate) use progress::Progress;
pub use term::Term;
pub(crate) use term::{RenewFor, Renewal};
