//! The thread that balances the allocator, and what CPUs leave in their caches.

use core::sync::atomic::{AtomicUsize, Ordering};

use percpu_core::alloc::{self, AllocError, AllocFlags};
use percpu_core::var::PerCpuPtr;
use percpu_core::view::{AllocatorView, CacheView};

use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::mem::PAGE;
use percpu_guest::kernel::testing::run_on;
use percpu_guest::kernel::{cpus, sched, shared};

/// Longer than the balance thread ever waits for its turn.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Lets other threads run until `done`; false if that never happens.
fn wait_for(done: impl Fn() -> bool) -> bool {
    let until = tsc::now_ns() + PATIENCE_NS;
    while !done() {
        if tsc::now_ns() > until {
            return false;
        }
        sched::yield_now();
    }
    true
}

fn free(area: PerCpuPtr<u8>) {
    // SAFETY: the tests' own areas, not used again.
    unsafe { alloc::global().free(area) }.expect("just allocated");
}

/// Nobody but the balance thread gives pages memory here.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn atomic_allocations_that_failed_find_pages_soon() {
    for _ in 0..3 {
        let mut held = [const { None }; 64];
        let atomic = || alloc::global().alloc(PAGE, PAGE, AllocFlags::ATOMIC);
        let failed = held.iter_mut().find_map(|place| match atomic() {
            Ok(area) => {
                *place = Some(area);
                None
            }
            Err(error) => Some(error),
        });
        assert_eq!(failed, Some(AllocError::NoPopulatedRoom));
        let found = wait_for(|| atomic().map(free).is_ok());
        assert!(found, "no page has got memory since");
        held.into_iter().flatten().for_each(free);
    }
    assert!(shared::header().balance.populated_pages.load(Ordering::Relaxed) > 0);
}

#[percpu_guest::test(cpus = 2, possible = 2)]
fn chunks_that_nobody_uses_are_given_back() {
    let mut held = [const { None }; 12];
    for place in &mut held {
        *place = Some(alloc::global().alloc(32 << 10, 64, AllocFlags::NONE).expect("memory"));
    }
    let chunks = || alloc::global().statistics().chunks;
    assert!(chunks() >= 6, "{} chunks", chunks());
    held.into_iter().flatten().for_each(free);
    // The first chunk and a free one.
    assert!(wait_for(|| chunks() <= 2), "{} chunks are left", chunks());
}

/// Granules in the cache of `cpu`.
fn cached(cpu: usize) -> u32 {
    let view = alloc::global().view_address();
    let view = core::ptr::with_exposed_provenance::<AllocatorView>(view);
    // SAFETY: the allocator is there for good, its beginning has the view's layout, and the place of
    // the caches does not change.
    let (table, len) = unsafe { ((*view).caches, (*view).nr_caches) };
    assert!(cpu < len as usize);
    let table = core::ptr::with_exposed_provenance::<u64>(table as usize);
    // SAFETY: the table has `len` addresses of caches, which are there for good.
    let cache = unsafe { table.add(cpu).read_volatile() };
    assert!(cache != 0, "CPU {cpu} has no cache");
    let cache = core::ptr::with_exposed_provenance::<CacheView>(cache as usize);
    // SAFETY: a cache has the view's layout; a count that changes meanwhile is an old one or a new.
    unsafe { (&raw const (*cache).held).read_volatile() }
}

#[percpu_guest::test(cpus = 2, possible = 2)]
fn a_dead_cpu_leaves_nothing_in_its_cache() {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    run_on(1, || {
        let _masked = percpu_core::irq::disable();
        let area = alloc::global().alloc(24, 8, AllocFlags::ATOMIC).expect("memory");
        free(area);
        SEEN.store(cached(1) as usize, Ordering::Relaxed);
    });
    assert!(SEEN.load(Ordering::Relaxed) >= 6, "a freed area is not cached");
    run_on(0, || assert_eq!(cpus::down(1), Ok(())));
    assert_eq!(cached(1), 0);
}
