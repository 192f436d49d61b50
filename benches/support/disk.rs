//! The disk alone, as a limit of what is stored on it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long two threads take that write `count` bodies each, to a file of their own with a sync after each body.
pub fn write_from_two_threads(scratch: &Path, body: &[u8], count: u64) -> io::Result<Duration> {
    let write = |name: &str| -> io::Result<()> {
        let path = scratch.join(name);
        let mut file = File::create(&path)?;
        for _ in 0..count {
            file.write_all(body)?;
            file.sync_data()?;
        }
        fs::remove_file(path)
    };
    let start = Instant::now();
    thread::scope(|scope| {
        let second = scope.spawn(|| write("second"));
        write("first")?;
        second.join().unwrap_or_else(|_| Err(io::Error::other("a thread that writes has failed")))
    })?;
    Ok(start.elapsed())
}
