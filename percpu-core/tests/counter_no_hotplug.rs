//! Counters in a kernel that sets up all units and starts its CPUs by itself: no hotplug, no steps.
//!
//! `cargo test -p percpu-core --no-default-features --test counter_no_hotplug` runs it as a kernel
//! whose platform is here; with the feature `host` threads are CPUs by that.

#![cfg(any(feature = "host", target_arch = "x86_64"))]

use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use percpu_core::area::{self, Config};
use percpu_core::counter::{self, Count, HierarchicalCounter, LazyCounter, PercpuCounter, v26};
use percpu_core::cpu::{self, CpuId};
use percpu_core::{arch, preempt};

const CPUS: usize = 4;

static EARLY: LazyCounter = LazyCounter::new(40);

/// A kernel's services, by the C library.
#[cfg(not(feature = "host"))]
mod platform {
    use std::alloc::Layout;
    use std::cell::Cell;
    use std::fmt::Arguments;
    use std::ptr::{NonNull, null_mut, with_exposed_provenance_mut};

    use percpu_core::platform::{IrqState, NoMemory, Platform};

    std::thread_local! { static MASKED: Cell<usize> = const { Cell::new(0) } }

    struct Threads;

    percpu_core::set_platform!(Threads);

    // SAFETY: a thread is one CPU from its first access on and stays it; there are no interrupts. The
    // rest is what `mmap` and the allocator promise.
    unsafe impl Platform for Threads {
        fn irq_save() -> IrqState {
            MASKED.set(MASKED.get() + 1);
            IrqState(0)
        }
        unsafe fn irq_restore(_: IrqState) {
            MASKED.set(MASKED.get() - 1);
        }
        fn is_pinned() -> bool {
            true
        }
        fn preempt_schedule() {}
        fn relax(_: u32) {
            std::thread::yield_now();
        }
        fn yield_now() {
            std::thread::yield_now();
        }
        fn clock_ns() -> u64 {
            0
        }
        fn alloc_meta(layout: Layout) -> Option<NonNull<u8>> {
            // SAFETY: the crate asks for no memory of size 0.
            NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
        }
        unsafe fn free_meta(ptr: NonNull<u8>, layout: Layout) {
            // SAFETY: the memory of `alloc_meta`.
            unsafe { std::alloc::dealloc(ptr.as_ptr(), layout) };
        }
        fn reserve(size: usize, align: usize) -> Option<usize> {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a fresh mapping where the kernel likes.
            let at = unsafe { libc::mmap(null_mut(), size + align, libc::PROT_NONE, flags, -1, 0) };
            (at != libc::MAP_FAILED).then(|| at.expose_provenance().next_multiple_of(align))
        }
        unsafe fn release(_addr: usize, _size: usize) {}
        unsafe fn populate(addr: usize, pages: usize, _cpu: u32) -> Result<(), NoMemory> {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: pages of a reserved range.
            let failed =
                unsafe { libc::mprotect(with_exposed_provenance_mut(addr), pages * 4096, access) };
            if failed == 0 { Ok(()) } else { Err(NoMemory) }
        }
        unsafe fn unmap(_addr: usize, _pages: usize) {}
        fn flush_tlb(_addr: usize, _size: usize) {}
        unsafe fn free_pages(_addr: usize, _pages: usize) {}
        fn run_on_cpu(_cpu: u32, _f: fn(usize), _arg: usize) {
            panic!("this kernel sends no interrupts");
        }
        fn log(_: Arguments<'_>) {}
    }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

/// Whether a thread may write its GS base, as a kernel does.
fn can_be_a_cpu() -> bool {
    #[cfg(not(feature = "host"))]
    {
        // SAFETY: reads a word of the auxiliary vector.
        let features = unsafe { libc::getauxval(libc::AT_HWCAP2) };
        features & 2 != 0
    }
    #[cfg(feature = "host")]
    true
}

fn be(n: usize) {
    // SAFETY: a fresh thread, the only one that is this CPU.
    unsafe { arch::set_offset(area::offset(cpu(n))) };
}

/// Runs `f` on CPUs 1 to 3, each a thread, and waits.
fn others(f: impl Fn() + Sync) {
    thread::scope(|scope| {
        let run = |n| {
            be(n);
            f();
        };
        let threads: Vec<_> = (1..CPUS).map(|n| scope.spawn(move || run(n))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn sums_limits_and_comparisons_have_what_every_cpu_counted() {
    if !can_be_a_cpu() {
        return println!("skipped: this kernel does not let programs write the GS base");
    }
    // The boot CPU counts before set-up. A thread of a process is no CPU then.
    if cfg!(feature = "host") {
        assert!(catch_unwind(|| EARLY.add(2)).is_err());
    } else {
        EARLY.add(2);
        assert!(EARLY.make_per_cpu().is_err(), "there is no per-CPU memory yet");
        EARLY.add(-2);
    }
    assert_eq!(EARLY.sum(), 40);

    // SAFETY: nothing per-CPU was used but what set-up copies.
    unsafe { area::setup_per_cpu_areas(0..CPUS as u32, &Config::default()) }.unwrap();
    be(0);
    assert_eq!(cpu::counted().map(CpuId::index).collect::<Vec<_>>(), [0, 1, 2, 3]);

    let counter = PercpuCounter::new(0).unwrap();
    let hierarchical = HierarchicalCounter::new(0, 100).unwrap();
    let old = v26::Counter::<CPUS>::new();
    let all: [&dyn Count; 4] = [&counter, &EARLY, &hierarchical, &old];
    for counter in all {
        counter.add(10);
    }
    others(|| all.iter().for_each(|counter| counter.add(10)));
    let sums = all.map(Count::sum);
    assert_eq!(sums, [40, 80, 40, 40]);
    EARLY.make_per_cpu().unwrap();
    others(|| EARLY.add(1));
    assert_eq!(EARLY.sum(), 83);

    let counter = PercpuCounter::new(0).unwrap();
    others(|| counter.add(9));
    assert!(!counter.limited_add(35, 30), "27 are in");
    assert!(counter.limited_add(57, 30));
    assert!(!counter.limited_add(28, -30));
    assert_eq!(counter.compare(56), Ordering::Greater);
    counter.set(7);
    assert_eq!(counter.sum(), 7);

    // Hotplug does not know that these CPUs run, nor that they do not.
    let before = counter.sum();
    for n in 0..CPUS {
        let said = catch_unwind(AssertUnwindSafe(|| counter::cpu_dead(cpu(n)))).unwrap_err();
        let said = said.downcast_ref::<String>().unwrap();
        assert!(said.starts_with(&format!("CPU {n} may be executing")), "{said}");
    }
    others(|| counter.add(1));
    assert_eq!((counter.sum(), preempt::count()), (before + 3, 0));
}
