//! Address space and pages of a process, and its clock.

use std::ptr::{null_mut, with_exposed_provenance_mut};

use percpu_core::platform::NoMemory;

const PAGE: usize = 4096;

pub(crate) fn reserve(size: usize, align: usize) -> Option<usize> {
    let padded = size.checked_add(align)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping where the kernel likes, which touches nothing that exists.
    let start = unsafe { libc::mmap(null_mut(), padded, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start = start.expose_provenance();
    let addr = start.next_multiple_of(align);
    for (at, len) in [(start, addr - start), (addr + size, start + padded - (addr + size))] {
        if len != 0 {
            // SAFETY: the part of the fresh mapping that is not handed out.
            unsafe { release(at, len) };
        }
    }
    Some(addr)
}

/// # Safety
///
/// The range is one of `reserve`, and nothing uses it.
pub(crate) unsafe fn release(addr: usize, size: usize) {
    // SAFETY: passed on to the caller.
    unsafe { libc::munmap(with_exposed_provenance_mut(addr), size) };
}

/// # Safety
///
/// The pages belong to a range of `reserve`, and nothing uses them.
pub(crate) unsafe fn protect(addr: usize, pages: usize, access: i32) -> Result<(), NoMemory> {
    let at = with_exposed_provenance_mut(addr);
    // SAFETY: passed on to the caller.
    if unsafe { libc::mprotect(at, pages * PAGE, access) } == 0 { Ok(()) } else { Err(NoMemory) }
}

/// # Safety
///
/// As [`protect`].
pub(crate) unsafe fn forget(addr: usize, pages: usize) {
    let at = with_exposed_provenance_mut(addr);
    // SAFETY: passed on to the caller.
    unsafe { libc::madvise(at, pages * PAGE, libc::MADV_DONTNEED) };
}

pub(crate) fn clock_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to `now`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
