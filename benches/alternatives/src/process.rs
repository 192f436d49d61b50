//! What the kernel counts for this process.

use std::error::Error;
use std::fs;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

/// Processor time of all threads, user and system, in seconds.
pub fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Bytes that this process has caused to be written to a disk, in whole pages. It includes pages written through a
/// memory map, and no journal of the file system.
pub fn written_bytes() -> Result<u64, Box<dyn Error>> {
    number("/proc/self/io", "write_bytes:")
}

/// The peak of resident memory in MiB.
pub fn peak_mib() -> Result<f64, Box<dyn Error>> {
    Ok(number("/proc/self/status", "VmHWM:")? as f64 / 1024.0)
}

fn number(path: &str, name: &str) -> Result<u64, Box<dyn Error>> {
    let text = fs::read_to_string(path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| format!("{path} has no {name}").into())
}

/// Bytes that the files below a folder take on the disk.
pub fn disk_bytes(folder: &Path) -> Result<u64, Box<dyn Error>> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        sum += match entry.metadata() {
            Ok(data) if data.is_dir() => disk_bytes(&entry.path())?,
            Ok(data) => data.blocks() * 512,
            // deleted in the meantime
            Err(_) => 0,
        };
    }
    Ok(sum)
}
