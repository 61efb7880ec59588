//! A kernel made of threads, for tests of percpu-core without its feature `host`.
//!
//! A thread is a CPU once it has installed the CPU's offset, and stays it until it ends. Interrupts
//! are signals: a thread can be interrupted between any two instructions, unless it has masked
//! interrupts. Set-up is one per process, so each file below `tests` is one situation, with one
//! test.
//!
//! ```
//! use kernel_tests::{boot, on_cpus};
//! use percpu_core::{area::Config, cpu::CpuId, percpu};
//!
//! percpu! { static HITS: PerCpu<u32> = 0; }
//!
//! boot(3, &Config::default()).unwrap();
//! on_cpus(1..3, |_| HITS.inc());
//! HITS.inc();
//! assert!((0..3).all(|cpu| HITS.read_on(CpuId::new(cpu).unwrap()) == 1));
//! ```

mod interrupts;
mod memory;
#[cfg(target_arch = "x86_64")]
pub mod stack;

use std::alloc::Layout;
use std::cell::RefCell;
use std::fmt::{self, Write};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use percpu_core::arch;
use percpu_core::area::{self, Config, SetupError};
use percpu_core::cpu::{CpuId, NR_CPUS};
use percpu_core::platform::{IrqState, NoMemory, Platform};

/// CPUs that a thread is.
static TAKEN: [AtomicBool; NR_CPUS] = [const { AtomicBool::new(false) }; NR_CPUS];

/// Sets up areas for the CPUs `0..possible` and makes this thread CPU 0 for good.
///
/// # Errors
///
/// As [`area::setup_per_cpu_areas`].
pub fn boot(possible: u32, config: &Config) -> Result<(), SetupError> {
    // SAFETY: no thread is a CPU before this, because both ways to become one need set-up; so no
    // per-CPU variable was used.
    unsafe { area::setup_per_cpu_areas(0..possible, config) }?;
    become_cpu(CpuId::new(0).expect("set-up has just made CPU 0 possible"));
    Ok(())
}

/// Makes this thread `cpu` until it ends.
///
/// # Panics
///
/// If a thread is the CPU, or was CPU 0.
fn become_cpu(cpu: CpuId) {
    let taken = TAKEN[cpu.index()].swap(true, Ordering::Acquire);
    assert!(!taken, "{cpu:?} is a thread already");
    // SAFETY: this thread alone has the CPU until `TAKEN` says otherwise, which is when it ends; it
    // was no CPU, so it holds no guard.
    unsafe { arch::set_offset(area::offset(cpu)) };
    interrupts::enable(cpu);
}

/// Runs `f` on each of `cpus` at the same time, and returns when all have returned. Each is a new
/// thread.
///
/// # Panics
///
/// If `f` panics, or a CPU is not possible, has no unit, or is another thread.
pub fn on_cpus(cpus: Range<usize>, f: impl Fn(CpuId) + Sync) {
    thread::scope(|scope| {
        for cpu in cpus {
            let (cpu, f) = (CpuId::new(cpu).expect("the CPU is possible"), &f);
            scope.spawn(move || {
                become_cpu(cpu);
                let _leave = Leave(cpu);
                f(cpu);
            });
        }
    });
}

/// The end of a thread that is a CPU.
struct Leave(CpuId);

impl Drop for Leave {
    fn drop(&mut self) {
        interrupts::disable(self.0);
        TAKEN[self.0.index()].store(false, Ordering::Release);
    }
}

/// A kernel of threads.
pub struct Threads;

percpu_core::set_platform!(Threads);

// SAFETY:
// 1. A signal's handler does nothing while the thread's count of masks is not 0, and a thread is its
//    CPU until it ends.
// 2. The allocator of the standard library makes these promises.
// 3. and 4. The kernel makes them about `mmap`, `mprotect` and `madvise`.
// 5. Nothing here panics, unless a caller has passed what is none of ours.
// 6. `interrupts::call` waits until the CPU has taken the call, which happens once.
// 7. A thread is its CPU until it ends, so no other thread runs there.
unsafe impl Platform for Threads {
    fn irq_save() -> IrqState {
        interrupts::mask();
        IrqState(0)
    }

    unsafe fn irq_restore(_: IrqState) {
        interrupts::unmask();
    }

    fn is_pinned() -> bool {
        true
    }

    fn preempt_schedule() {
        percpu_core::preempt::clear_need_resched();
    }

    fn relax(_spins: u32) {
        thread::yield_now();
    }

    fn yield_now() {
        thread::sleep(Duration::from_micros(20));
    }

    fn clock_ns() -> u64 {
        memory::clock_ns()
    }

    fn alloc_meta(layout: Layout) -> Option<NonNull<u8>> {
        if layout.size() == 0 {
            return NonNull::new(std::ptr::without_provenance_mut(layout.align()));
        }
        // SAFETY: the size is not 0.
        NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
    }

    unsafe fn free_meta(ptr: NonNull<u8>, layout: Layout) {
        if layout.size() != 0 {
            // SAFETY: it came from `alloc_zeroed` with this layout, by the trait's contract.
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
        unsafe { memory::protect(addr, pages, libc::PROT_READ | libc::PROT_WRITE) }
    }

    unsafe fn unmap(addr: usize, pages: usize) {
        // SAFETY: passed on to the caller.
        let _ = unsafe { memory::protect(addr, pages, libc::PROT_NONE) };
    }

    /// `mprotect` has flushed already.
    fn flush_tlb(_addr: usize, _size: usize) {}

    unsafe fn free_pages(addr: usize, pages: usize) {
        // SAFETY: passed on to the caller.
        unsafe { memory::forget(addr, pages) };
    }

    fn run_on_cpu(cpu: u32, f: fn(usize), arg: usize) {
        interrupts::call(cpu, f, arg);
    }

    /// Keeps the line, for a test to look at.
    fn log(args: fmt::Arguments<'_>) {
        LOG.with_borrow_mut(|log| {
            let _ = writeln!(log, "{args}");
        });
    }
}

std::thread_local! {
    static LOG: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What percpu-core has logged on this thread.
pub fn log() -> String {
    LOG.with_borrow(String::clone)
}
