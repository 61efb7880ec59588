//! A counter that is cheap to read and whose error its maker chooses.
//!
//! After Mathieu Desnoyers' *hierarchical per-CPU counters* for Linux (`percpu_counter_tree`,
//! <https://docs.kernel.org/next/core-api/percpu-counter-tree.html>): a tree whose leaves are the
//! CPUs, where what exceeds a batch is carried towards the root, and the root is a sum that is off
//! by a bounded amount.
//!
//! # Implementation
//!
//! Each node, leaf or not, is a *running* count that is never reset. A node of which `s` bits stay
//! below has passed on `round(count / 2^s)` to its parent so far, so an add that takes it from `old`
//! to `new` carries `round(new / 2^s) - round(old / 2^s)`. Such differences telescope: in whatever
//! order, from whatever CPU and to whichever parent carries arrive, all parents together have got
//! what all children have passed on. There is nothing to pull back when a CPU dies, and an exact sum
//! is the sum of the leaves, without a lock.
//!
//! With rounding to nearest, halves up, each node keeps from `-2^s/2` to `2^s/2 - 1` of its own units
//! for itself. Those keepings are all that the root does not know, once no add is under way. While
//! some are, each may have as much as a batch in hand, of which others may have carried the opposite
//! already: what the root says decides nothing then, so a comparison is one of the exact sum. Counts
//! wrap at 64 bits; a carry that is off by the wrap is off by a multiple of `2^64 / 2^s`, which is
//! nothing in units of the leaves.

use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;

use super::count::Count;
use crate::alloc::{AllocError, alloc_percpu, free_percpu};
use crate::atomic::{AtomicI64, Ordering::Relaxed};
use crate::cpu::{self, NR_CPUS};
use crate::platform::{Global, Platform};
use crate::var::PerCpuPtr;

/// Children of a node, as bits of their number.
const FAN_OUT_BITS: u32 = 3;
/// Levels above the leaves: enough for [`NR_CPUS`] of them.
const LEVELS: usize = NR_CPUS.ilog2().div_ceil(FAN_OUT_BITS) as usize;
/// The most bits that a leaf keeps.
const MAX_LEAF_BITS: u32 = 32;

/// A running count on a cache line of its own.
#[repr(align(64))]
struct Inner(AtomicI64);

/// A level of the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Level {
    nodes: u32,
    /// Bits that each of them keeps from its parent.
    bits: u32,
    /// Bits by which what they count in is larger than one.
    unit_bits: u32,
    /// Nodes of the levels between the leaves and this one.
    before: u32,
}

/// The shape of a tree: its leaves, then the levels above, the root last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    levels: [Level; LEVELS + 1],
    /// The root's number.
    root: usize,
}

impl Shape {
    /// A tree for `cpus` CPUs with numbers below `ids`, leaves that keep `leaf` bits and inner nodes
    /// that keep `inner` bits.
    fn new(cpus: usize, ids: usize, leaf: u32, inner: u32) -> Self {
        let mut levels = [Level::default(); LEVELS + 1];
        levels[0] = Level { nodes: cpus as u32, bits: leaf, unit_bits: 0, before: 0 };
        let (mut root, mut nodes, mut before) = (0, ids as u32, 0);
        loop {
            let unit_bits = levels[root].unit_bits + levels[root].bits;
            nodes = nodes.div_ceil(1 << FAN_OUT_BITS);
            root += 1;
            let bits = if nodes == 1 { 0 } else { inner };
            levels[root] = Level { nodes, bits, unit_bits, before };
            before += nodes;
            if nodes == 1 {
                return Self { levels, root };
            }
        }
    }

    /// The shape with the largest batches whose error is not above `max_error`: carries from level to
    /// level become rarer by as much as the nodes become fewer, if the error allows.
    fn within(cpus: usize, ids: usize, max_error: u64) -> Result<Self, HierarchicalError> {
        let shape = |leaf, inner| Self::new(cpus, ids, leaf, inner);
        for inner in (1..=FAN_OUT_BITS).rev() {
            let fits = |&leaf: &u32| shape(leaf, inner).error_bound() <= max_error;
            if let Some(leaf) = (1..=MAX_LEAF_BITS).rev().find(fits) {
                return Ok(shape(leaf, inner));
            }
        }
        let smallest = shape(1, 1).error_bound();
        Err(HierarchicalError::MaxError { wanted: max_error, smallest })
    }

    /// What the nodes below `level` keep from it together, at most.
    fn error_below(&self, level: usize) -> u64 {
        let kept = |it: &Level| (u64::from(it.nodes) * ((1 << it.bits) >> 1)) << it.unit_bits;
        self.levels[..level].iter().map(kept).sum()
    }

    fn root(&self) -> Level {
        self.levels[self.root]
    }

    fn error_bound(&self) -> u64 {
        self.error_below(self.root)
    }
}

/// `count / 2^bits`, rounded to nearest.
#[inline(always)]
fn rounded(count: i64, bits: u32) -> i64 {
    count.wrapping_add((1 << bits) >> 1) >> bits
}

/// Why a [`HierarchicalCounter`] was not made. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HierarchicalError {
    /// A read that is never off by more would need each add to go to the root, which is what one
    /// atomic does at less cost.
    MaxError {
        /// What was asked for.
        wanted: u64,
        /// The least that can be asked for with as many CPUs as there are.
        smallest: u64,
    },
    /// There is no memory, or no per-CPU memory.
    Alloc(AllocError),
}

impl From<AllocError> for HierarchicalError {
    fn from(error: AllocError) -> Self {
        Self::Alloc(error)
    }
}

impl fmt::Display for HierarchicalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaxError { wanted, smallest } => write!(
                f,
                "a read cannot be kept within {wanted} of the value: with as many CPUs as are \
                 possible the smallest error is {smallest}"
            ),
            Self::Alloc(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for HierarchicalError {}

/// A counter whose [`read`](Self::read) costs one load and is off by no more than its maker allows.
/// Linux: `struct percpu_counter_tree`.
///
/// Any number of threads and interrupt handlers may use it at the same time; NMI handlers, too,
/// where operations are [single instructions](crate::arch). Making and dropping it is for contexts
/// that may sleep. A CPU that comes up for the first time later is counted as any other.
///
/// ```
/// use percpu_core::{counter::HierarchicalCounter, host};
///
/// host::boot(2).unwrap();
/// let pages = HierarchicalCounter::new(0, 100).unwrap();
/// host::on_each_cpu(|_| (0..1000).for_each(|_| pages.inc()));
/// assert!(pages.read().abs_diff(2000) <= pages.error_bound());
/// assert!(pages.error_bound() <= 100);
/// assert_eq!(pages.sum(), 2000);
/// ```
pub struct HierarchicalCounter {
    /// The leaves.
    running: PerCpuPtr<i64>,
    /// The nodes of the levels above, one level after the other.
    inner: NonNull<Inner>,
    initial: i64,
    /// The last of them, and the bits of its unit.
    root: NonNull<Inner>,
    root_bits: u32,
    /// Bits that a leaf keeps.
    leaf_bits: u32,
    shape: Shape,
}

// SAFETY: it owns its memory, which is shared by atomics.
unsafe impl Send for HierarchicalCounter {}
// SAFETY: as above.
unsafe impl Sync for HierarchicalCounter {}

impl HierarchicalCounter {
    /// A counter that stands at `amount` and whose [`read`](Self::read) is off by at most
    /// `max_error`. Linux: `percpu_counter_tree_init`.
    ///
    /// The larger the error may be, the rarer two CPUs write to the same memory. Takes eight bytes on
    /// each CPU, and a cache line for each eight CPUs, each eight of those, and so on. May sleep.
    ///
    /// # Errors
    ///
    /// [`MaxError`](HierarchicalError::MaxError) if `max_error` is too small, with the smallest that
    /// is not; [`Alloc`](HierarchicalError::Alloc) for want of memory, or before set-up.
    pub fn new(amount: i64, max_error: u64) -> Result<Self, HierarchicalError> {
        let (cpus, ids) = (cpu::possible().count(), cpu::nr_cpu_ids());
        if cpus == 0 {
            return Err(AllocError::NotSetUp.into());
        }
        let shape = Shape::within(cpus, ids, max_error)?;
        let running = alloc_percpu(size_of::<i64>(), align_of::<i64>())?.cast();
        let Some(inner) = Global::alloc_meta(Self::layout(&shape)) else {
            // SAFETY: allocated above and told to nobody.
            unsafe { free_running(running) };
            return Err(AllocError::NoMemory.into());
        };
        let inner = inner.cast::<Inner>();
        let Level { before, unit_bits, .. } = shape.root();
        Ok(Self {
            running,
            // The memory is zero: counts of 0.
            inner,
            initial: amount,
            // SAFETY: the memory has the root behind all other nodes.
            root: unsafe { inner.add(before as usize) },
            root_bits: unit_bits,
            leaf_bits: shape.levels[0].bits,
            shape,
        })
    }

    fn layout(shape: &Shape) -> Layout {
        Layout::array::<Inner>(shape.root().before as usize + 1).expect("fewer nodes than CPUs")
    }

    /// Adds `amount`. Linux: `percpu_counter_tree_add`.
    ///
    /// One unlocked instruction on this CPU's count, which also tells whether there is something to
    /// carry; then one atomic instruction a level, each level rarer.
    #[inline]
    pub fn add(&self, amount: i64) {
        // SAFETY: the leaves live as long as the counter, and all accesses are of this kind or atomic.
        let new = unsafe { self.running.add_return(amount) };
        let bits = self.leaf_bits;
        let carry = rounded(new, bits).wrapping_sub(rounded(new.wrapping_sub(amount), bits));
        if carry != 0 {
            self.carry(carry);
        }
    }

    /// Subtracts `amount`. Linux: `percpu_counter_tree_sub`.
    #[inline]
    pub fn sub(&self, amount: i64) {
        self.add(amount.wrapping_neg());
    }

    /// Adds one. Linux: `percpu_counter_tree_inc`.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts one. Linux: `percpu_counter_tree_dec`.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Passes what a leaf does not keep to the level above, and so on.
    #[cold]
    #[inline(never)]
    fn carry(&self, mut carry: i64) {
        // The thread may be on another CPU by now, or its parent may be another's: a carry is as good
        // at one parent as at any other.
        let mut at = cpu::this_cpu_raw() as usize;
        for level in 1..=self.shape.root {
            at >>= FAN_OUT_BITS;
            let old = self.level(level)[at].0.fetch_add(carry, Relaxed);
            let bits = self.shape.levels[level].bits;
            carry = rounded(old.wrapping_add(carry), bits).wrapping_sub(rounded(old, bits));
            if carry == 0 {
                break;
            }
        }
    }

    /// The nodes of a level above the leaves.
    fn level(&self, level: usize) -> &[Inner] {
        let Level { before, nodes, .. } = self.shape.levels[level];
        // SAFETY: the memory has all levels' nodes, this one's behind those of the levels below; it
        // lives as long as the counter, and atomics may be shared.
        unsafe {
            let first = self.inner.add(before as usize);
            core::slice::from_raw_parts(first.as_ptr(), nodes as usize)
        }
    }

    /// What the nodes of a level above the leaves say.
    fn read_level(&self, level: usize) -> i64 {
        let sum = |sum: i64, node: &Inner| sum.wrapping_add(node.0.load(Relaxed));
        let count = self.level(level).iter().fold(0, sum);
        self.initial.wrapping_add(count << self.shape.levels[level].unit_bits)
    }

    /// The value, off by at most [`error_bound`](Self::error_bound), and by what adds under way have
    /// in hand. One load. Linux: `percpu_counter_tree_approximate_sum`.
    #[inline]
    pub fn read(&self) -> i64 {
        // SAFETY: the root lives as long as the counter.
        let count = unsafe { self.root.as_ref() }.0.load(Relaxed);
        self.initial.wrapping_add(count << self.root_bits)
    }

    /// How far off a [`read`](Self::read) is at most when no add is under way: no more than the
    /// counter was made with. Linux: `percpu_counter_tree_approximate_accuracy_range`.
    pub fn error_bound(&self) -> u64 {
        self.shape.error_bound()
    }

    /// The value, off by at most `max_error`, and by what adds under way have in hand, from the level
    /// with the fewest nodes that are this good: one load a node, and with a `max_error` of 0 one a
    /// CPU.
    pub fn read_within(&self, max_error: u64) -> i64 {
        let good_enough = |&level: &usize| self.shape.error_below(level) <= max_error;
        match (1..=self.shape.root).rev().find(good_enough) {
            Some(level) => self.read_level(level),
            None => self.sum(),
        }
    }

    /// Per-CPU pointer to the leaves: what each CPU has added. They and the amount that the counter
    /// was made with sum to its value.
    pub fn leaves(&self) -> PerCpuPtr<i64> {
        self.running
    }

    /// The exact value: one load for each CPU that has been up, no lock. An add at the same time is
    /// in it or not. Linux: `percpu_counter_tree_precise_sum`.
    pub fn sum(&self) -> i64 {
        cpu::booted_once().iter().fold(self.initial, |sum, cpu| {
            // SAFETY: as in `add`.
            sum.wrapping_add(unsafe { self.running.read_on(cpu) })
        })
    }
}

impl Count for HierarchicalCounter {
    #[inline]
    fn add(&self, amount: i64) {
        self.add(amount);
    }

    #[inline]
    fn read(&self) -> i64 {
        self.read()
    }

    fn sum(&self) -> i64 {
        self.sum()
    }
}

impl Drop for HierarchicalCounter {
    fn drop(&mut self) {
        // SAFETY: the leaves are the counter's own, and this is its end.
        unsafe { free_running(self.running) };
        // SAFETY: the memory of `new`; atomics have nothing to drop.
        unsafe { Global::free_meta(self.inner.cast(), Self::layout(&self.shape)) };
    }
}

/// # Safety
///
/// The area came from `new`, and nobody uses it any more.
unsafe fn free_running(running: PerCpuPtr<i64>) {
    // SAFETY: passed on to the caller.
    let freed = unsafe { free_percpu(running.cast()) };
    debug_assert!(freed.is_ok(), "the area is the counter's own");
}

impl fmt::Debug for HierarchicalCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HierarchicalCounter")
            .field("read", &self.read())
            .field("error_bound", &self.error_bound())
            .finish_non_exhaustive()
    }
}
