//! Settings of the process as a whole: memory, scheduling, signals, limits and the log.

pub mod allocator;
pub mod limits;
pub mod logging;
pub mod scheduling;
pub mod signals;
