//! The system's allocator: how much of the memory that requests have needed it keeps.

#[cfg(target_env = "gnu")]
use std::{
    env,
    os::unix::process::CommandExt,
    process::{self, Command},
};

/// Blocks from this size on are maps of their own, given back when freed, and this much is kept free at the end of
/// each heap. Left to itself, glibc raises both bounds, to 32 and 64 MiB, as blocks of such sizes come and go, and
/// then keeps up to 64 MiB for each thread that has decoded a large body.
#[cfg(target_env = "gnu")]
const KEPT: &str = "1048576";

#[cfg(target_env = "gnu")]
const SETTINGS: [&str; 2] = ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"];

/// Lets glibc give memory back early. It reads its settings when a process starts, so this starts the same program
/// again in the same process, unless they are set already. Where that cannot be done the server keeps more memory.
#[cfg(target_env = "gnu")]
pub fn keep_little() {
    if SETTINGS.iter().any(|name| env::var_os(name).is_some()) {
        return;
    }
    let mut arguments = env::args_os();
    let mut same = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        same.arg0(name);
    }
    let error = same.args(arguments).envs(SETTINGS.map(|name| (name, KEPT))).exec();
    log::warn!("process {} keeps more memory than it needs: cannot start itself again: {error}", process::id());
}

/// Other allocators need no word.
#[cfg(not(target_env = "gnu"))]
pub fn keep_little() {}
