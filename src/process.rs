//! What concerns the process rather than the service: memory, scheduling, signals, limits and the log.

pub mod allocator;
pub mod limits;
pub mod logging;
pub mod scheduling;
pub mod signals;
