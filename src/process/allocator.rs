//! How much freed memory glibc's allocator keeps.

/// Blocks from this size on are mappings of their own and go back to the system when freed, in bytes. It is above the
/// 1 MiB chunks that a .blend file is read in, which fell to a third of their speed when each was a new mapping.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 4 << 20;

/// How much is kept free at the end of a heap, in bytes.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: libc::c_int = 8 << 20;

/// Fixes both bounds. Left to itself, glibc raises them to 32 and 64 MiB as blocks of such sizes come and go, and then
/// keeps up to 64 MiB for each thread that has decoded a large body. mimalloc kept 90 MiB after the same requests,
/// since a thread that is idle gives nothing back.
///
/// Called before the first thread is started.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe interface to mallopt: the environment is read before main")]
pub fn set_bounds() {
    // SAFETY: mallopt takes two numbers, and no other thread is there to allocate meanwhile
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
    }
}

/// Other C libraries have no such bounds.
#[cfg(not(target_env = "gnu"))]
pub fn set_bounds() {}
