//! Giving memory back to the system.

/// Blocks from here on come from the system and go back to it; nothing on the way of a read is as large.
const LARGE_BYTES: libc::c_int = 1 << 20;

/// Has the allocator give back large blocks when they are freed, for the whole process. By itself it
/// learns to keep them, up to 32 MiB in each of its arenas, of which every thread has one; and because
/// the driver's memory is locked, it cannot give them back later. Unpacking large indexes would leave
/// several times behind what a mounted point needs.
pub(crate) fn give_back_large_blocks() {
    // SAFETY: takes two numbers; before the threads that are to come, and safe beside others.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
}
