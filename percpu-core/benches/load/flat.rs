//! A platform that costs next to nothing: memory is there, interrupts are a count, threads are
//! CPUs. What remains is the allocator.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use percpu_core::platform::{IrqState, NoMemory, Platform};

use super::arena;

/// Pages that are populated, of all CPUs.
static POPULATED: AtomicUsize = AtomicUsize::new(0);

std::thread_local! {
    static MASKED: Cell<usize> = const { Cell::new(0) };
    static CPU: Cell<u32> = const { Cell::new(0) };
}

/// Pages of all CPUs that have memory behind them, as the allocator sees it.
pub fn populated_pages() -> usize {
    POPULATED.load(Ordering::Relaxed)
}

/// Makes the calling thread a CPU.
pub fn enter(cpu: u32) {
    CPU.set(cpu);
}

pub enum Flat {}

// SAFETY:
// 1. There are no interrupts. Threads stand for CPUs; one that the host moves stays the same CPU.
// 2. The standard library's allocator promises it.
// 3. The arena hands a span out once until it is back, with memory behind all its pages.
// 4. The memory of pages stays with their span, so none is reused before `release`.
// 5. It panics for want of address space at its first use, or never.
// 6. Nothing is ever run elsewhere.
unsafe impl Platform for Flat {
    #[inline]
    fn irq_save() -> IrqState {
        MASKED.set(MASKED.get() + 1);
        IrqState(0)
    }

    #[inline]
    unsafe fn irq_restore(_state: IrqState) {
        MASKED.set(MASKED.get() - 1);
    }

    fn is_pinned() -> bool {
        true
    }

    fn preempt_schedule() {}

    #[inline]
    fn relax(spins: u32) {
        // A host with fewer CPUs than threads must let the holder of a lock run.
        if spins < 100 { std::hint::spin_loop() } else { std::thread::yield_now() }
    }

    fn yield_now() {
        std::thread::yield_now();
    }

    #[inline]
    fn cache_cpu() -> u32 {
        CPU.get()
    }

    fn clock_ns() -> u64 {
        0
    }

    fn alloc_meta(layout: Layout) -> Option<NonNull<u8>> {
        assert_ne!(layout.size(), 0);
        // SAFETY: the size is not 0.
        NonNull::new(unsafe { alloc_zeroed(layout) })
    }

    unsafe fn free_meta(ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: allocated above with this layout, says the caller.
        unsafe { dealloc(ptr.as_ptr(), layout) };
    }

    fn reserve(size: usize, align: usize) -> Option<usize> {
        arena::reserve(size, align)
    }

    unsafe fn release(addr: usize, size: usize) {
        arena::release(addr, size);
    }

    unsafe fn populate(_addr: usize, pages: usize, _cpu: u32) -> Result<(), NoMemory> {
        POPULATED.fetch_add(pages, Ordering::Relaxed);
        Ok(())
    }

    unsafe fn unmap(_addr: usize, _pages: usize) {}

    fn flush_tlb(_addr: usize, _size: usize) {}

    unsafe fn free_pages(_addr: usize, pages: usize) {
        POPULATED.fetch_sub(pages, Ordering::Relaxed);
    }

    fn run_on_cpu(_cpu: u32, _f: fn(usize), _arg: usize) {
        unreachable!("an allocator runs nothing elsewhere");
    }

    fn log(args: fmt::Arguments<'_>) {
        eprintln!("percpu: {args}");
    }
}
