//! A counter's memory, laid out for those who read it from outside.
//!
//! # The sequence
//!
//! A fold moves a local part into the shared part: two words change, and between them their sum is
//! wrong. So whoever folds makes the sequence odd before and even after, under the lock, and a sum
//! believes what it has read only if the sequence was the same even number before and after: then
//! nothing was folded meanwhile, local parts were changed by adds alone, and each add is in the sum or
//! not. The sequence has 64 bits and does not come round.
//!
//! # CPUs that come and go
//!
//! A sum goes over the [counted](crate::cpu::counted) CPUs. That finds every local part that is not
//! zero:
//!
//! - A CPU enters the mask before it executes: when it gets its unit, and again in `cpu_up` before it
//!   is started. An add of its happens after that. So a sum that the add happens before cannot read
//!   the mask as it was earlier: it finds the CPU.
//! - A CPU leaves the mask after its local part was folded in every counter; the mask's words change
//!   by read-modify-write operations, which release, and are read by loads that acquire. So for a
//!   sum that does not find the CPU the fold happened before it read the mask. It sees the fold in
//!   the sequence that it reads last; that being what it read first, the fold happened before the
//!   first load of the sequence, too, and so before the sum read the shared part.
//! - A sum that finds the CPU although it was folded reads a zero, or what the CPU added in its next
//!   life.
//! - Only a CPU that executes nothing is folded from outside, see `hotplug::cpu_dead`: nothing is
//!   added between the fold and the moment when it leaves the mask.
//!
//! What a sum under the lock reads is not folded meanwhile, and the same goes for it.

use core::mem::offset_of;
use core::ptr::NonNull;

use super::batch::largest_batch;
use super::bounds::Bounds;
use super::list::Link;
use crate::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::atomic::{AtomicI32, AtomicI64, AtomicU16, AtomicU32, AtomicU64, fence};
use crate::cpu::{self, CpuId};
use crate::platform::Global;
use crate::sync::{SpinGuard, SpinLock};
use crate::var::PerCpuPtr;
use crate::view::{COUNTER_LIVE, CounterView};

/// How often a sum tries to find nobody folding before it takes the lock.
const TRIES: usize = 4;

/// A counter, on a cache line of its own. Linux: `struct percpu_counter`.
#[repr(C, align(64))]
pub(super) struct Node {
    /// First, so that a link's address is its node's.
    pub(super) link: Link,
    /// The shared part; changed under the lock.
    count: AtomicI64,
    /// The local parts.
    locals: PerCpuPtr<i32>,
    lock: SpinLock<()>,
    /// Every local part is smaller than this or than [`largest_batch`].
    local_bound: AtomicI32,
    /// Odd while a local part is being folded.
    sequence: AtomicU64,
    /// [`COUNTER_LIVE`] until the counter is destroyed.
    magic: AtomicU32,
    /// In the first node: how many were allocated together.
    allocated: u16,
    /// In the first node: how many of them are in use.
    in_use: AtomicU16,
    /// The first of the nodes that were allocated together with this one.
    first: NonNull<Node>,
}

const _: () = {
    assert!(size_of::<Node>() == size_of::<CounterView>());
    assert!(offset_of!(Node, link) == offset_of!(CounterView, link));
    assert!(offset_of!(Node, count) == offset_of!(CounterView, count));
    assert!(offset_of!(Node, locals) == offset_of!(CounterView, locals));
    assert!(offset_of!(Node, lock) == offset_of!(CounterView, lock));
    assert!(offset_of!(Node, local_bound) == offset_of!(CounterView, local_bound));
    assert!(offset_of!(Node, sequence) == offset_of!(CounterView, sequence));
    assert!(offset_of!(Node, magic) == offset_of!(CounterView, magic));
    assert!(offset_of!(Node, allocated) == offset_of!(CounterView, allocated));
    assert!(offset_of!(Node, in_use) == offset_of!(CounterView, in_use));
    assert!(offset_of!(Node, first) == offset_of!(CounterView, first));
};

impl Node {
    /// What the magic of a destroyed counter becomes.
    const DESTROYED: u32 = 0xdead_c047;

    pub(super) fn new(
        amount: i64,
        locals: PerCpuPtr<i32>,
        first: NonNull<Node>,
        allocated: u16,
    ) -> Self {
        Self {
            link: Link::new(),
            count: AtomicI64::new(amount),
            locals,
            lock: SpinLock::new(()),
            local_bound: AtomicI32::new(0),
            sequence: AtomicU64::new(0),
            magic: AtomicU32::new(COUNTER_LIVE),
            allocated,
            in_use: AtomicU16::new(allocated),
            first,
        }
    }

    pub(super) fn locals(&self) -> PerCpuPtr<i32> {
        self.locals
    }

    #[inline]
    pub(super) fn count(&self) -> i64 {
        self.count.load(Relaxed)
    }

    /// Panics if the counter was destroyed, in builds with debug assertions. Linux:
    /// `CONFIG_DEBUG_OBJECTS_PERCPU_COUNTER`.
    #[inline]
    pub(super) fn check(&self) {
        if cfg!(debug_assertions) && self.magic.load(Relaxed) != COUNTER_LIVE {
            self.not_live();
        }
    }

    #[cold]
    #[inline(never)]
    fn not_live(&self) -> ! {
        let what = match self.magic.load(Relaxed) {
            Self::DESTROYED => "was destroyed",
            _ => "is none: something else was written over it",
        };
        panic!("the percpu counter at {:p} is used, but it {what}", &raw const *self);
    }

    /// Ends the counter's life: who uses it from now on has a bug.
    pub(super) fn destroy(&self) {
        self.magic.store(Self::DESTROYED, Relaxed);
    }

    /// The first of the nodes that were allocated together with this one, which is as long there as
    /// any of them.
    pub(super) fn first(&self) -> NonNull<Self> {
        self.first
    }

    /// How many nodes were allocated together, this being the first.
    pub(super) fn allocated(&self) -> usize {
        self.allocated.into()
    }

    /// Takes one off the nodes in use, this being the first. Whether it was the last: then no other
    /// CPU touches any of them any more.
    pub(super) fn release_one(&self) -> bool {
        self.in_use.fetch_sub(1, AcqRel) == 1
    }

    pub(super) fn lock(&self) -> SpinGuard<'_, (), Global> {
        self.check();
        self.lock.lock()
    }

    /// Adds this CPU's local part and `amount` to the shared part.
    pub(super) fn fold(&self, amount: i64) {
        let lock = self.lock();
        self.fold_locked(&lock, amount);
    }

    /// As [`fold`](Self::fold), by the holder of the lock.
    pub(super) fn fold_locked(&self, lock: &SpinGuard<'_, (), Global>, amount: i64) {
        // The lock masks interrupts: the local part stands still. It is read before anything changes,
        // because a thread that is no CPU panics here.
        // SAFETY: the local parts live as long as the node, and all accesses are of this kind.
        let local = unsafe { self.locals.read() };
        let _changing = Changing::begin(self, lock);
        self.add_to_count(i64::from(local).wrapping_add(amount));
        // SAFETY: as above.
        unsafe { self.locals.sub(local) };
    }

    /// Folds this CPU's local part if no add would leave it as large as it is.
    pub(super) fn fold_excess(&self, batch: i32) {
        // SAFETY: the local parts live as long as the node, and all accesses are of this kind.
        let local = unsafe { self.locals.read() };
        if local.unsigned_abs() >= batch.unsigned_abs() {
            self.fold(0);
        }
    }

    /// Adds the local part of a CPU that executes nothing to the shared part.
    pub(super) fn fold_of(&self, cpu: CpuId) {
        let lock = self.lock();
        // SAFETY: as in `fold_locked`.
        let local = unsafe { self.locals.read_on(cpu) };
        if local != 0 {
            let _changing = Changing::begin(self, &lock);
            self.add_to_count(i64::from(local));
            // SAFETY: as above.
            unsafe { self.locals.write_on(cpu, 0) };
        }
    }

    /// Makes the sum `amount`, by the shared part alone: other CPUs' local parts are not to be
    /// written. An add that the sum here has is one before this, and any other is one after it.
    pub(super) fn set(&self, amount: i64) {
        let lock = self.lock();
        let change = amount.wrapping_sub(self.sum_locked(&lock));
        // A sum that reads the new shared part is to read local parts that are no older than those
        // read here.
        let _changing = Changing::begin(self, &lock);
        self.add_to_count(change);
    }

    fn add_to_count(&self, amount: i64) {
        self.count.store(self.count().wrapping_add(amount), Relaxed);
    }

    /// The exact value.
    #[inline]
    pub(super) fn sum(&self) -> i64 {
        self.check();
        self.try_sum().unwrap_or_else(|| self.insist_on_sum())
    }

    /// The exact value, if nobody folds meanwhile.
    #[inline]
    fn try_sum(&self) -> Option<i64> {
        let before = self.sequence.load(Acquire);
        if before & 1 != 0 {
            return None;
        }
        let sum = self.parts();
        fence(Acquire);
        (self.sequence.load(Relaxed) == before).then_some(sum)
    }

    #[cold]
    #[inline(never)]
    fn insist_on_sum(&self) -> i64 {
        for _ in 1..TRIES {
            core::hint::spin_loop();
            if let Some(sum) = self.try_sum() {
                return sum;
            }
        }
        let lock = self.lock();
        self.sum_locked(&lock)
    }

    /// As [`sum`](Self::sum), by the holder of the lock.
    pub(super) fn sum_locked(&self, _lock: &SpinGuard<'_, (), Global>) -> i64 {
        self.parts()
    }

    /// The shared part and the local parts of all CPUs that are counted.
    fn parts(&self) -> i64 {
        let locals = self.locals;
        cpu::counted().fold(self.count(), |sum, cpu| {
            // SAFETY: the local parts live as long as the node, and all accesses are of this kind.
            sum.wrapping_add(i64::from(unsafe { locals.read_on(cpu) }))
        })
    }

    /// Announces an add with this batch.
    #[inline]
    pub(super) fn allow_locals_below(&self, batch: i32) {
        if batch > self.local_bound.load(Relaxed) {
            self.local_bound.fetch_max(batch, AcqRel);
        }
    }

    /// What the local parts can make up together, at most.
    pub(super) fn error_bound(&self) -> u64 {
        let below = self.local_bound.load(Acquire).max(largest_batch());
        cpu::MASKS.counted.count() as u64 * u64::from(below.unsigned_abs() - 1)
    }

    /// Returns the least and the most that the sum can be, by the shared part alone, or `None` if
    /// that wraps.
    pub(super) fn bounds(&self) -> Option<Bounds> {
        // Before the shared part is read: what a CPU that leaves in between has counted is in the
        // one or in the other.
        let error = self.error_bound();
        Bounds::around(self.count(), error)
    }
}

/// Two words of a node are being changed, between which their sum is wrong: the sequence is odd until
/// this is dropped.
#[must_use]
struct Changing<'a> {
    node: &'a Node,
    before: u64,
}

impl<'a> Changing<'a> {
    fn begin(node: &'a Node, _lock: &SpinGuard<'_, (), Global>) -> Self {
        let before = node.sequence.load(Relaxed);
        node.sequence.store(before + 1, Relaxed);
        // Who reads a word that is written from here on, and then fences, finds the sequence odd or
        // larger.
        fence(Release);
        Self { node, before }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.node.sequence.store(self.before + 2, Release);
    }
}

/// Adds to this CPU's local part if that stays smaller than `batch`, which is positive, and
/// `condition` holds.
///
/// The comparison with the batch and the change are of one and the same local value, whatever an
/// interrupt handler adds in between, and on whatever CPU the thread is by then.
///
/// # Safety
///
/// The local parts are those of a counter that lives.
#[inline(always)]
pub(super) unsafe fn add_below(
    locals: PerCpuPtr<i32>,
    amount: i64,
    batch: i32,
    condition: impl Fn() -> bool,
) -> bool {
    let batch = i64::from(batch);
    // SAFETY: by the caller's word they exist, and all accesses are of this kind.
    let mut local = unsafe { locals.read() };
    loop {
        // Where that wraps it is far from 0, on whichever side.
        let new = i64::from(local).wrapping_add(amount);
        // `-batch < new < batch`, as one comparison.
        let below = (new.wrapping_add(batch - 1) as u64) < (2 * batch - 1) as u64;
        if !below || !condition() {
            return false;
        }
        // Smaller than a 32-bit batch.
        // SAFETY: as above.
        if unsafe { locals.try_cmpxchg(&mut local, new as i32) } {
            return true;
        }
    }
}
