//! A counter's memory, laid out for those who read it from outside.

use core::mem::offset_of;
use core::sync::atomic::{AtomicI32, AtomicI64, Ordering::Relaxed};

use super::largest_batch;
use super::list::Link;
use crate::cpu::{self, CpuId};
use crate::platform::Global;
use crate::sync::{SpinGuard, SpinLock};
use crate::var::PerCpuPtr;
use crate::view::CounterView;

/// A counter. Linux: `struct percpu_counter`.
#[repr(C)]
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
}

const _: () = {
    assert!(size_of::<Node>() == size_of::<CounterView>());
    assert!(offset_of!(Node, link) == offset_of!(CounterView, link));
    assert!(offset_of!(Node, count) == offset_of!(CounterView, count));
    assert!(offset_of!(Node, locals) == offset_of!(CounterView, locals));
    assert!(offset_of!(Node, lock) == offset_of!(CounterView, lock));
    assert!(offset_of!(Node, local_bound) == offset_of!(CounterView, local_bound));
};

impl Node {
    pub(super) fn new(amount: i64, locals: PerCpuPtr<i32>) -> Self {
        Self {
            link: Link::new(),
            count: AtomicI64::new(amount),
            locals,
            lock: SpinLock::new(()),
            local_bound: AtomicI32::new(0),
        }
    }

    pub(super) fn locals(&self) -> PerCpuPtr<i32> {
        self.locals
    }

    pub(super) fn count(&self) -> i64 {
        self.count.load(Relaxed)
    }

    pub(super) fn set_count(&self, amount: i64) {
        self.count.store(amount, Relaxed);
    }

    pub(super) fn lock(&self) -> SpinGuard<'_, (), Global> {
        self.lock.lock()
    }

    /// Adds to this CPU's local part, or folds it.
    ///
    /// The comparison with the batch and the change are of one and the same local value, whatever
    /// an interrupt handler adds in between, and on whatever CPU the thread is by then.
    #[inline]
    pub(super) fn add(&self, amount: i64, batch: i32) {
        if !self.add_to_local_below(amount, batch, || true) {
            self.fold(amount);
        }
    }

    /// Adds to this CPU's local part if that stays smaller than `batch` and `condition` holds.
    #[inline]
    pub(super) fn add_to_local_below(
        &self,
        amount: i64,
        batch: i32,
        condition: impl Fn() -> bool,
    ) -> bool {
        // SAFETY: the local parts live as long as the node, and all accesses are of this kind.
        let mut local = unsafe { self.locals.read() };
        loop {
            let new = i64::from(local).saturating_add(amount);
            if new.unsigned_abs() >= u64::from(batch.unsigned_abs()) || !condition() {
                return false;
            }
            // Smaller than a 32-bit batch.
            // SAFETY: as above.
            if unsafe { self.locals.try_cmpxchg(&mut local, new as i32) } {
                return true;
            }
        }
    }

    /// Adds this CPU's local part and `amount` to the shared part.
    #[cold]
    pub(super) fn fold(&self, amount: i64) {
        let _lock = self.lock();
        self.fold_locked(amount);
    }

    /// As [`fold`](Self::fold), by the holder of the lock.
    pub(super) fn fold_locked(&self, amount: i64) {
        // The lock masks interrupts: the local part stands still.
        // SAFETY: the local parts live as long as the node, and all accesses are of this kind.
        let local = unsafe { self.locals.read() };
        self.set_count(self.count().wrapping_add(i64::from(local)).wrapping_add(amount));
        // SAFETY: as above.
        unsafe { self.locals.sub(local) };
    }

    /// Adds the local part of a CPU that does not run to the shared part; by the holder of the lock.
    pub(super) fn fold_of(&self, cpu: CpuId) {
        let local = self.take_local_of(cpu);
        self.set_count(self.count().wrapping_add(i64::from(local)));
    }

    /// Zeroes a CPU's local part.
    pub(super) fn take_local_of(&self, cpu: CpuId) -> i32 {
        // SAFETY: the local parts live as long as the node, and all accesses are of this kind.
        unsafe {
            let local = self.locals.read_on(cpu);
            self.locals.write_on(cpu, 0);
            local
        }
    }

    /// The exact value, for the holder of the lock.
    pub(super) fn sum_locked(&self) -> i64 {
        // The online mask first: a CPU that goes down enters the dying mask before it leaves the
        // other, and leaves that one after its local part was folded, for which the lock is needed.
        cpu::online().union(cpu::dying()).fold(self.count(), |sum, cpu| {
            // SAFETY: the local parts live as long as the node, and all accesses are of this kind.
            sum.wrapping_add(i64::from(unsafe { self.locals.read_on(cpu) }))
        })
    }

    /// Announces an add with this batch.
    #[inline]
    pub(super) fn allow_locals_below(&self, batch: i32) {
        if batch > self.local_bound.load(Relaxed) {
            self.local_bound.fetch_max(batch, Relaxed);
        }
    }

    /// What the local parts can make up together, at most.
    pub(super) fn slack(&self) -> i64 {
        let cpus = cpu::online().union(cpu::dying()).count() as i64;
        cpus * i64::from(self.local_bound.load(Relaxed).max(largest_batch()))
    }
}
