//! What several of the tests use.

pub mod books;
pub mod in_file;
pub mod log;
pub mod owner;
pub mod peer;
pub mod publisher;
pub mod scripted_broker;
pub mod unsynced_disk;
