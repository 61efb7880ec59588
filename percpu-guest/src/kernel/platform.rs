//! What this kernel gives to percpu-core.

use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::abi::Doorbell;
use percpu_core::platform::{IrqState, NoMemory, Platform};

use crate::kernel::arch::{doorbell, irq, tsc};
use crate::kernel::mem::{heap, paging, shortage, space};
use crate::kernel::{ipi, log, sched, shared};

/// After so many turns of a spin loop the lock's holder has probably lost its host CPU. Where CPUs
/// run one at a time it certainly does not run now.
const SPINS_BEFORE_YIELD: u32 = 200;

/// This kernel.
pub struct Kernel;

percpu_core::set_platform!(Kernel);

// SAFETY:
// 1. While the mask count is not 0 the entry stub runs no handler, and threads are switched by
//    handlers and by explicit yields only.
// 2. The heap hands a block out once until it is freed, zeroed.
// 3. The chunk space is used by nobody else, ranges are handed out once until released, and a
//    mapped frame is its page's alone.
// 4. `unmap` leaves the frame in the page's entry; only `free_pages` gives it back.
// 5. A panic ends the kernel.
// 6. See `ipi`: a call is taken off its CPU's queue once, by that CPU.
// 7. A tick looks at the preempt count before it switches threads, and a thread that yields has none.
unsafe impl Platform for Kernel {
    #[inline]
    fn irq_save() -> IrqState {
        irq::mask();
        IrqState(0)
    }

    #[inline]
    unsafe fn irq_restore(_: IrqState) {
        // SAFETY: the caller gives up an `irq_save` of its own.
        unsafe { irq::unmask() };
    }

    fn is_pinned() -> bool {
        irq::masked() || sched::is_bound()
    }

    fn preempt_schedule() {
        sched::preempt_schedule();
    }

    fn relax(spins: u32) {
        if cfg!(percpu_steps) || spins % SPINS_BEFORE_YIELD == SPINS_BEFORE_YIELD - 1 {
            doorbell::ring(Doorbell::Yield, 0);
        } else {
            core::hint::spin_loop();
        }
    }

    fn yield_now() {
        sched::yield_to_others();
    }

    fn thread_id() -> usize {
        sched::current()
    }

    fn clock_ns() -> u64 {
        tsc::now_ns()
    }

    fn alloc_meta(layout: Layout) -> Option<NonNull<u8>> {
        if shortage::strikes() {
            return None;
        }
        let memory = heap::alloc(layout)?;
        shared::header().resources.meta.fetch_add(layout.size() as u64, Ordering::Relaxed);
        Some(memory)
    }

    unsafe fn free_meta(ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's contract is the heap's.
        unsafe { heap::free(ptr, layout) };
        shared::header().resources.meta.fetch_sub(layout.size() as u64, Ordering::Relaxed);
    }

    fn reserve(size: usize, align: usize) -> Option<usize> {
        if shortage::strikes() {
            return None;
        }
        let addr = space::reserve(size, align)?;
        shared::header().resources.space.fetch_add(size as u64, Ordering::Relaxed);
        Some(addr)
    }

    unsafe fn release(addr: usize, size: usize) {
        space::release(addr, size);
        shared::header().resources.space.fetch_sub(size as u64, Ordering::Relaxed);
    }

    unsafe fn populate(addr: usize, pages: usize, _cpu: u32) -> Result<(), NoMemory> {
        paging::map(addr, pages)
    }

    unsafe fn unmap(addr: usize, pages: usize) {
        paging::unmap(addr, pages);
    }

    fn flush_tlb(addr: usize, size: usize) {
        ipi::flush_all_tlbs();
        paging::flushed(addr, size);
    }

    unsafe fn free_pages(addr: usize, pages: usize) {
        paging::free(addr, pages);
    }

    fn run_on_cpu(cpu: u32, f: fn(usize), arg: usize) {
        ipi::run_on_cpu(cpu, f, arg);
    }

    fn phys_of(addr: usize) -> Option<usize> {
        paging::translate(addr)
    }

    fn log(args: fmt::Arguments<'_>) {
        log::line(args);
    }
}
