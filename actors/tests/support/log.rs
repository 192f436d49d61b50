//! Opens a log that an actor has just closed.

use std::path::Path;

use user_http_actors::store::log::LogStore;
use user_http_actors::store::{OpenError, Recovered};

/// The log in `directory`, as soon as the thread that has it ends with its actor.
pub async fn open(directory: &Path) -> (LogStore, Vec<Recovered>) {
    loop {
        match LogStore::open(directory) {
            Ok(opened) => return opened,
            Err(OpenError::InUse(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}
