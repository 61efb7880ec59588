//! CPUs that do the same as the one that is timed, as long as it takes.

use core::marker::PhantomData;
use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use percpu_core::platform::Platform;
use percpu_guest::abi::MAX_CPUS;

use super::bare;
use super::harness::{Variant, unrolled};
use percpu_guest::kernel::Kernel;
use percpu_guest::kernel::{ipi, sched};

/// Loops between two looks at the orders: few enough to follow soon, many enough to cost nothing.
const BATCH: u64 = 4;
/// The order to end.
const END: u32 = u32::MAX;
/// A stretch counts if every other CPU has done at least this part of it, one in so many.
const SHARE: u64 = 8;

/// A word on a cache line of its own.
#[repr(align(128))]
struct Line<T>(T);

/// [`Variant`] to do now, or [`END`].
static ORDER: Line<AtomicU32> = Line(AtomicU32::new(END));
/// Helpers that are there.
static HELPERS: Line<AtomicU32> = Line(AtomicU32::new(0));
/// Batches that each CPU has done.
static DONE: [Line<AtomicU64>; MAX_CPUS] = [const { Line(AtomicU64::new(0)) }; MAX_CPUS];
/// Addresses of the subject and of the bare instructions.
static OPERATIONS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Helpers on the CPUs from 1 on; they end before it is dropped.
pub struct Team<'a> {
    cpus: u32,
    operations: PhantomData<&'a ()>,
}

impl<'a> Team<'a> {
    /// Starts a helper on each CPU from 1 to `cpus`. The caller is bound to CPU 0, and there is one
    /// team at a time.
    pub fn start<S: Fn() + Sync, B: Fn() + Sync>(cpus: u32, subject: &'a S, bare: &'a B) -> Self {
        OPERATIONS[0].store((&raw const *subject).expose_provenance(), Ordering::Relaxed);
        OPERATIONS[1].store((&raw const *bare).expose_provenance(), Ordering::Relaxed);
        ORDER.0.store(Variant::Shared as u32, Ordering::Relaxed);
        HELPERS.0.store(cpus - 1, Ordering::Release);
        for cpu in 1..cpus {
            sched::spawn_bound(help::<S, B>, cpu);
            ipi::send(cpu);
        }
        Self { cpus, operations: PhantomData }
    }

    /// Has the helpers do `variant` from now on.
    pub fn order(&self, variant: Variant) {
        ORDER.0.store(variant as u32, Ordering::Release);
    }

    /// Calls `f`, which goes through `loops` loops of `variant`, while the helpers do so too. `None`
    /// if one of them was not at work all the time.
    pub fn while_all_work(
        &self,
        variant: Variant,
        loops: u64,
        f: impl FnOnce() -> u64,
    ) -> Option<u64> {
        self.order(variant);
        // The first batch that ends from now on may be of the order before.
        for cpu in 1..self.cpus {
            let seen = done(cpu);
            wait_until(|| done(cpu) >= seen + 2);
        }
        let mut before = [0; MAX_CPUS];
        (1..self.cpus).for_each(|cpu| before[cpu as usize] = done(cpu));
        let ticks = f();
        let at_work = |cpu: u32| (done(cpu) - before[cpu as usize]) * BATCH * SHARE >= loops;
        (1..self.cpus).all(at_work).then_some(ticks)
    }
}

impl Drop for Team<'_> {
    fn drop(&mut self) {
        ORDER.0.store(END, Ordering::Release);
        wait_until(|| HELPERS.0.load(Ordering::Acquire) == 0);
    }
}

fn done(cpu: u32) -> u64 {
    DONE[cpu as usize].0.load(Ordering::Acquire)
}

fn wait_until(condition: impl Fn() -> bool) {
    let mut spins = 0;
    while !condition() {
        Kernel::relax(spins);
        spins += 1;
    }
}

/// A helper.
fn help<S: Fn() + Sync, B: Fn() + Sync>(cpu: usize) {
    let [subject, bare] = OPERATIONS.each_ref().map(|address| address.load(Ordering::Acquire));
    // SAFETY: `Team::start` put the address of an `S` there, which lives and stays until the team
    // is dropped; that waits for this thread. `S: Sync` allows for the two CPUs.
    let subject = unsafe { &*with_exposed_provenance::<S>(subject) };
    // SAFETY: as above, of a `B`.
    let bare = unsafe { &*with_exposed_provenance::<B>(bare) };
    loop {
        match ORDER.0.load(Ordering::Acquire) {
            END => break,
            order if order == Variant::Subject as u32 => (0..BATCH).for_each(|_| unrolled(subject)),
            order if order == Variant::Bare as u32 => (0..BATCH).for_each(|_| unrolled(bare)),
            order if order == Variant::Locked as u32 => {
                (0..BATCH).for_each(|_| unrolled(&bare::spin_locked_add))
            }
            _ => (0..BATCH).for_each(|_| unrolled(&bare::shared_xadd)),
        }
        DONE[cpu].0.store(done(cpu as u32) + 1, Ordering::Release);
    }
    HELPERS.0.fetch_sub(1, Ordering::Release);
}
