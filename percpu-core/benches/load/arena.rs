//! Memory that is there beforehand: what is measured is allocators, not page faults.

use std::collections::BTreeMap;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

const PAGE: usize = 4096;
/// Address space; memory only where it is handed out.
const SIZE: usize = 64 << 30;

/// One large mapping, handed out in spans. It starts anew whenever all of them are back, so that
/// every round finds the same addresses.
pub struct Arena {
    start: usize,
    next: usize,
    /// Below this every page has been written once.
    touched: usize,
    in_use: usize,
    /// Spans that came back, by size.
    spare: BTreeMap<usize, Vec<usize>>,
}

static ARENA: Mutex<Option<Arena>> = Mutex::new(None);

/// Hands out `size` bytes at a multiple of `align`, all pages with memory behind them.
pub fn reserve(size: usize, align: usize) -> Option<usize> {
    locked().get_or_insert_with(Arena::map).reserve(size, align)
}

/// Takes a span of [`reserve`] back.
pub fn release(addr: usize, size: usize) {
    if let Some(arena) = &mut *locked() {
        arena.release(addr, size);
    }
}

fn locked() -> MutexGuard<'static, Option<Arena>> {
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    fn map() -> Self {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nobody.
        let map = unsafe { libc::mmap(null_mut(), SIZE, protection, flags, -1, 0) };
        assert!(map != libc::MAP_FAILED, "no address space: {}", std::io::Error::last_os_error());
        let start = map.expose_provenance();
        Self { start, next: start, touched: start, in_use: 0, spare: BTreeMap::new() }
    }

    fn reserve(&mut self, size: usize, align: usize) -> Option<usize> {
        let spare = self.spare.get_mut(&size).and_then(|spans| {
            let fitting = spans.iter().rposition(|addr| addr.is_multiple_of(align))?;
            Some(spans.swap_remove(fitting))
        });
        let addr = match spare {
            Some(addr) => addr,
            None => {
                let addr = self.next.next_multiple_of(align);
                if addr + size > self.start + SIZE {
                    return None;
                }
                self.next = addr + size;
                addr
            }
        };
        self.in_use += 1;
        while self.touched < self.next {
            // SAFETY: the page lies in the mapping, and nobody has been given it yet.
            unsafe { with_exposed_provenance_mut::<u8>(self.touched).write_volatile(1) };
            self.touched += PAGE;
        }
        Some(addr)
    }

    fn release(&mut self, addr: usize, size: usize) {
        self.spare.entry(size).or_default().push(addr);
        self.in_use -= 1;
        if self.in_use == 0 {
            self.spare.clear();
            self.next = self.start;
        }
    }
}
