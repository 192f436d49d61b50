//! What the benchmarks share. Included by path from each, and not every one uses all of it.
#![allow(dead_code)]

pub mod bare;
pub mod bench;
pub mod disk;
pub mod frames;
pub mod latency;
pub mod load;
pub mod messages;
pub mod nginx;
pub mod server;
