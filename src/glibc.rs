//! What glibc is told: how much of the memory that requests have needed it keeps, and how it copies.

#[cfg(target_env = "gnu")]
use std::{
    env,
    os::unix::process::CommandExt,
    process::{self, Command},
};

/// Blocks from 4 MiB on are maps of their own, given back when freed, and 8 MiB are kept free at the end of each heap:
/// above the chunks of 1 MiB that a .blend file is read in, which fall to a third of their speed where each is a new
/// map. Left to itself, glibc raises both bounds, to 32 and 64 MiB, as blocks of such sizes come and go, and then keeps
/// up to 64 MiB for each thread that has decoded a large body.
///
/// It copies blocks of 2 KiB up to the size of the second cache with `rep movsb` where the processor calls that fast. On a
/// Zen 3, which is slow at it unless the blocks are aligned, this took 40 % of a download's time (perf, glibc 2.36).
#[cfg(target_env = "gnu")]
const SETTINGS: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "4194304"),
    ("MALLOC_TRIM_THRESHOLD_", "8388608"),
    ("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1000000000"),
];

/// Lets glibc give memory back early and copy fast. It reads its settings when a process starts, so this starts the same program
/// again in the same process, unless they are set already. Where that cannot be done the server
/// is slower and keeps more memory.
#[cfg(target_env = "gnu")]
pub fn set() {
    if SETTINGS.iter().any(|(name, _)| env::var_os(name).is_some()) {
        return;
    }
    let mut arguments = env::args_os();
    let mut same = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        same.arg0(name);
    }
    let error = same.args(arguments).envs(SETTINGS).exec();
    log::warn!("process {} cannot start itself again, and keeps more memory than it needs: {error}", process::id());
}

/// Others need no word.
#[cfg(not(target_env = "gnu"))]
pub fn set() {}
