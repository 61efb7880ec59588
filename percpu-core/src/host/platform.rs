//! The platform that a Linux process makes.

use core::alloc::Layout;
use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;
use core::time::Duration;
use std::io::Write;
use std::sync::LazyLock;
use std::time::Instant;

use super::{memory, ops};
use crate::arch;
use crate::cpu;
use crate::platform::{IrqState, NoMemory, Platform};
use crate::preempt;

std::thread_local! {
    /// Times that this thread has masked interrupts.
    static MASKED: Cell<usize> = const { Cell::new(0) };
}

/// Makes up for guards that a callback has forgotten on this thread.
pub(super) fn forget_irq_guards() {
    MASKED.set(0);
}

/// How many guards keep interrupts away from this thread.
pub(super) fn irq_depth() -> usize {
    MASKED.get()
}

/// Writes a line to the standard error stream. A stream that takes none is no reason to panic.
pub(super) fn log(args: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{args}");
}

/// The services of a Linux process.
///
/// Memory comes from `mmap`; a page that is not populated faults. The log goes to the standard error
/// stream if the environment has `PERCPU_LOG`.
#[derive(Clone, Copy, Debug)]
pub enum Host {}

// SAFETY:
// 1. A thread is a CPU alone, by the rules of `seat`, and does not leave while it has masked
//    interrupts; there are no interrupt handlers. Whichever order guards go in, the count is right.
// 2. The allocator of the standard library makes these promises.
// 3. and 4. The kernel makes them about `mmap`, `mprotect` and `madvise`.
// 5. Nothing here panics, unless the caller has passed a CPU that is not up or a function that panics;
//    a process that can have no further thread aborts.
// 6. See `ops::run_on`; threads are started and joined.
// 7. A thread is its CPU until it leaves, which it does not while it holds a guard.
unsafe impl Platform for Host {
    fn irq_save() -> IrqState {
        MASKED.set(MASKED.get() + 1);
        IrqState(0)
    }

    unsafe fn irq_restore(_state: IrqState) {
        // It wraps where a guard outlives `forget_irq_guards`, in a thread-local say: as the thread ends.
        MASKED.set(MASKED.get().wrapping_sub(1));
    }

    fn preempt_schedule() {
        if irq_depth() == 0 {
            preempt::clear_need_resched();
            std::thread::yield_now();
        }
    }

    fn relax(spins: u32) {
        // The one we wait for may need our host CPU.
        #[cfg(any(loom, shuttle))]
        if crate::atomic::model::is_running() {
            return crate::atomic::model::yield_now();
        }
        if spins < 64 { core::hint::spin_loop() } else { std::thread::yield_now() }
    }

    fn yield_now() {
        #[cfg(any(loom, shuttle))]
        if crate::atomic::model::is_running() {
            return crate::atomic::model::yield_now();
        }
        // Whoever yields waits for others; a short sleep, unlike a yield, is not charged with the
        // time slices of all threads that have something to do.
        std::thread::sleep(Duration::from_micros(20));
    }

    fn is_pinned() -> bool {
        // A thread leaves its CPU of its own accord, and not while it has masked interrupts.
        irq_depth() != 0
    }

    /// The address of what the thread has for itself. Under a model all CPUs are one thread.
    fn thread_id() -> usize {
        #[cfg(any(loom, shuttle))]
        if crate::atomic::model::is_running() {
            return 0;
        }
        MASKED.with(|masked| core::ptr::from_ref(masked).addr())
    }

    fn cache_cpu() -> u32 {
        // A thread that is no CPU uses the first one's.
        if arch::host::offset_of_thread().is_none() { 0 } else { cpu::this_cpu_raw() }
    }

    fn clock_ns() -> u64 {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed().as_nanos() as u64
    }

    fn alloc_meta(layout: Layout) -> Option<NonNull<u8>> {
        if layout.size() == 0 {
            return NonNull::new(core::ptr::without_provenance_mut(layout.align()));
        }
        // SAFETY: the size is not 0.
        NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
    }

    unsafe fn free_meta(ptr: NonNull<u8>, layout: Layout) {
        if layout.size() != 0 {
            // SAFETY: by the trait's contract it came from `alloc_zeroed` with this layout.
            unsafe { std::alloc::dealloc(ptr.as_ptr(), layout) };
        }
    }

    fn reserve(size: usize, align: usize) -> Option<usize> {
        memory::reserve(size, align)
    }

    unsafe fn release(addr: usize, size: usize) {
        // SAFETY: passed on to the caller.
        unsafe { memory::release(addr, size) };
    }

    unsafe fn populate(addr: usize, pages: usize, _cpu: u32) -> Result<(), NoMemory> {
        // SAFETY: passed on to the caller.
        unsafe { memory::populate(addr, pages) }
    }

    unsafe fn unmap(addr: usize, pages: usize) {
        // SAFETY: passed on to the caller.
        unsafe { memory::unmap(addr, pages) };
    }

    /// `mprotect` has flushed already.
    fn flush_tlb(_addr: usize, _size: usize) {}

    unsafe fn free_pages(addr: usize, pages: usize) {
        // SAFETY: passed on to the caller.
        unsafe { memory::free_pages(addr, pages) };
    }

    /// Nothing interrupts a thread that is a CPU: this waits until it leaves, and then becomes the
    /// CPU for a moment.
    fn run_on_cpu(cpu: u32, f: fn(usize), arg: usize) {
        ops::run_on(cpu, f, arg);
    }

    /// Whoever is the CPU cannot be interrupted.
    fn offer_to_cpu(cpu: u32, f: fn(usize), arg: usize) -> bool {
        ops::offer_to(cpu, f, arg)
    }

    fn log(args: fmt::Arguments<'_>) {
        static WANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("PERCPU_LOG").is_some());
        if *WANTED {
            log(args);
        }
    }
}
