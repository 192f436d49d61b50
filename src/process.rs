//! What concerns the process as a whole: memory, scheduling, signals, limits, the log, and the service manager.

pub mod allocator;
pub mod limits;
pub mod logging;
pub mod scheduling;
pub mod service_manager;
pub mod signals;
pub mod sockets;
