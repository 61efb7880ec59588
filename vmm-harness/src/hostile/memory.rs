//! Guest memory that shows who leaves it, and that is as it was after each attack.

use std::cell::RefCell;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::memory::GuestMem;

/// Bytes before and behind it that nobody may touch: more than any offset of a structure.
const GUARD: usize = 64 << 20;

/// `size` bytes of guest memory from address 0 on, between pages that fault. It is never given back.
pub(super) fn guarded(size: usize) -> GuestMem {
    // SAFETY: a new mapping at an address of the kernel's choice: nothing else is there.
    let all = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size + 2 * GUARD,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert!(all != libc::MAP_FAILED, "address space for guest memory");
    let start = all.cast::<u8>().wrapping_add(GUARD);
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the middle of the mapping just made, which nobody uses yet.
    let opened = unsafe { libc::mprotect(start.cast(), size, rights) };
    assert_eq!(opened, 0, "memory for a guest");
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: `size` bytes at `start` are mapped with these rights, and stay so for good.
    let region = unsafe { MmapRegion::build_raw(start, size, rights, flags) }.expect("a region");
    let region = GuestRegionMmap::new(region, GuestAddress(0)).expect("it begins at 0");
    let regions = GuestMemoryMmap::from_regions(vec![region]).expect("one region");
    GuestMem::new(regions)
}

/// What was written, so that it can be undone.
pub(super) struct Changes {
    mem: GuestMem,
    before: RefCell<Vec<(u64, Vec<u8>)>>,
}

impl Changes {
    pub(super) fn of(mem: GuestMem) -> Self {
        Self { mem, before: RefCell::default() }
    }

    pub(super) fn mem(&self) -> &GuestMem {
        &self.mem
    }

    /// Remembers what is in a part of memory that somebody else may change.
    pub(super) fn keep(&self, at: u64, len: usize) {
        let mut bytes = vec![0; len];
        if self.mem.read_into(at, &mut bytes).is_ok() {
            self.before.borrow_mut().push((at, bytes));
        }
    }

    /// Writes bytes, if they lie in guest memory.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.keep(at, bytes.len());
        let _ = self.mem.write(at, bytes);
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        for (at, bytes) in self.before.borrow_mut().drain(..).rev() {
            let _ = self.mem.write(at, &bytes);
        }
    }
}
