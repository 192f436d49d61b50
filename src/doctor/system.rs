//! The machine: its clock, and the limits of this process.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use user_http_actors::system::STORES;

use super::Finding;
use crate::{Config, UserHttpServer};

const CLOCK: &str = "clock";
const OPEN_FILES: &str = "open files";

/// The clock of a machine that shows an earlier time was never set: 2025-01-01.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// How far ahead of the clock the files of another machine on a network file system may be.
const TOLERANCE: Duration = Duration::from_secs(60);

/// Ages of messages, certificates and idempotency keys depend on the clock.
pub fn clock(data_dir: Option<&Path>) -> Vec<Finding> {
    let now = SystemTime::now();
    let time = humantime::format_rfc3339_seconds(now);
    let command = "timedatectl set-ntp true";
    if now < SystemTime::UNIX_EPOCH + EARLIEST {
        return vec![Finding::failed(CLOCK, format!("it shows {time}, so it was never set"), command)];
    }
    let newest = data_dir.and_then(newest).filter(|newest| *newest > now + TOLERANCE);
    vec![match newest {
        Some(newest) => {
            let newest = humantime::format_rfc3339_seconds(newest);
            let text = format!(
                "it shows {time}, but a file in the data directory is from {newest}: it was set back, and messages \
                 expire later; type: {command}"
            );
            Finding::warning(CLOCK, text)
        }
        None => Finding::ok(CLOCK, format!("{time}")),
    }]
}

/// When a file in the stores was last changed.
fn newest(data_dir: &Path) -> Option<SystemTime> {
    let folders = STORES.into_iter().chain([""]).map(|name| data_dir.join(name));
    let entries = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
}

pub fn open_files(config: &Config) -> Vec<Finding> {
    vec![match UserHttpServer::check_limits(config) {
        Err(error) => Finding::failed(OPEN_FILES, error, "ulimit -n 65536 (LimitNOFILE=65536 in its systemd unit)"),
        Ok(Some(warning)) => Finding::warning(OPEN_FILES, warning),
        Ok(None) => Finding::ok(OPEN_FILES, format!("enough for --max-connections {}", config.max_connections)),
    }]
}
