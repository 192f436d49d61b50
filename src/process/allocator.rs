//! Bounds how much freed memory glibc's allocator keeps.

/// Blocks of at least this size, in bytes, are separate mappings, which return to the system when they are freed.
/// Larger than the 1 MiB chunks in which .blend files are read: with a new mapping for each chunk, reading took three
/// times as long.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 4 << 20;

/// How much free memory stays at the end of a heap, in bytes.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: libc::c_int = 8 << 20;

/// Fixes both bounds. By default, glibc raises them, up to 32 and 64 MiB, when blocks of such sizes are freed, and then
/// keeps up to 64 MiB for each thread that has decoded a large body. After the same requests, mimalloc kept 90 MiB,
/// because an idle thread does not return its memory.
///
/// Call this before the first thread starts.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "mallopt has no safe interface, and its environment variables are read before main")]
pub fn set_bounds() {
    // SAFETY: mallopt takes two integers, and no other thread exists that could allocate meanwhile
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
    }
}

/// Other C libraries have no such bounds.
#[cfg(not(target_env = "gnu"))]
pub fn set_bounds() {}
