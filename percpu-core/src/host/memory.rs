//! Address space and pages of a process.
//!
//! Under Miri, which has no `mprotect`, a reserved range is an ordinary allocation.

pub(super) use imp::{free_pages, populate, release, reserve, unmap};

const PAGE: usize = 4096;

#[cfg(not(miri))]
mod imp {
    use core::ffi::c_int;
    use core::ptr::{null_mut, with_exposed_provenance_mut};

    use super::PAGE;
    use crate::platform::NoMemory;

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
        let (head, tail) = (addr - start, start + padded - (addr + size));
        for (at, len) in [(start, head), (addr + size, tail)] {
            if len != 0 {
                // SAFETY: the part of the fresh mapping that is not handed out.
                unsafe { release(at, len) };
            }
        }
        Some(addr)
    }

    /// # Safety
    ///
    /// As [`Platform::release`](crate::platform::Platform::release).
    pub(crate) unsafe fn release(addr: usize, size: usize) {
        // SAFETY: the range is a mapping of `reserve`, and nobody uses it.
        let failed = unsafe { libc::munmap(with_exposed_provenance_mut(addr), size) };
        debug_assert!(failed == 0, "munmap of a range of our own");
    }

    /// # Safety
    ///
    /// As [`Platform::populate`](crate::platform::Platform::populate).
    pub(crate) unsafe fn populate(addr: usize, pages: usize) -> Result<(), NoMemory> {
        // SAFETY: passed on to the caller.
        unsafe { protect(addr, pages, libc::PROT_READ | libc::PROT_WRITE) }
    }

    /// # Safety
    ///
    /// As [`Platform::unmap`](crate::platform::Platform::unmap).
    pub(crate) unsafe fn unmap(addr: usize, pages: usize) {
        // SAFETY: passed on to the caller.
        let _ = unsafe { protect(addr, pages, libc::PROT_NONE) };
    }

    /// # Safety
    ///
    /// As [`Platform::free_pages`](crate::platform::Platform::free_pages).
    pub(crate) unsafe fn free_pages(addr: usize, pages: usize) {
        let at = with_exposed_provenance_mut(addr);
        // It is refused where the process has locked its memory (`mlockall`), which keeps the pages.
        // SAFETY: nothing uses the pages, which belong to a mapping of `reserve`.
        let _ = unsafe { libc::madvise(at, pages * PAGE, libc::MADV_DONTNEED) };
    }

    /// # Safety
    ///
    /// The range belongs to a mapping of `reserve`, and nobody uses it.
    unsafe fn protect(addr: usize, pages: usize, access: c_int) -> Result<(), NoMemory> {
        let at = with_exposed_provenance_mut(addr);
        // SAFETY: passed on to the caller.
        match unsafe { libc::mprotect(at, pages * PAGE, access) } {
            0 => Ok(()),
            _ => Err(NoMemory),
        }
    }
}

#[cfg(miri)]
mod imp {
    use core::ptr::with_exposed_provenance_mut;
    use std::alloc::{Layout, alloc, dealloc};
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::PAGE;
    use crate::platform::NoMemory;

    static RESERVED: Mutex<BTreeMap<usize, Layout>> = Mutex::new(BTreeMap::new());

    pub(crate) fn reserve(size: usize, align: usize) -> Option<usize> {
        let layout = Layout::from_size_align(size, align.max(PAGE)).ok()?;
        // SAFETY: nobody reserves nothing.
        let ptr = unsafe { alloc(layout) };
        if ptr.is_null() {
            return None;
        }
        let addr = ptr.expose_provenance();
        RESERVED.lock().unwrap().insert(addr, layout);
        Some(addr)
    }

    pub(crate) unsafe fn release(addr: usize, _size: usize) {
        let layout = RESERVED.lock().unwrap().remove(&addr).expect("a reserved range");
        // SAFETY: allocated with this layout, and nobody uses it by the trait's contract.
        unsafe { dealloc(with_exposed_provenance_mut(addr), layout) };
    }

    pub(crate) unsafe fn populate(_addr: usize, _pages: usize) -> Result<(), NoMemory> {
        Ok(())
    }

    pub(crate) unsafe fn unmap(_addr: usize, _pages: usize) {}

    pub(crate) unsafe fn free_pages(_addr: usize, _pages: usize) {}
}
