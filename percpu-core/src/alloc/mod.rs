//! The dynamic allocator of per-CPU memory: an area is the same range of every CPU's unit.
//!
//! ```text
//! let hits = alloc_percpu(8, 8)?;                 // eight zero bytes on every CPU
//! // SAFETY: nobody uses it any more.
//! unsafe { free_percpu(hits)? };
//! ```
//!
//! [`PerCpuBox`] is the owning form. The first chunk is what the static variables leave of each
//! CPU's unit; when it is full, further chunks of the same shape are made, and memory is put behind
//! their pages as it is needed.
//!
//! # Implementation
//!
//! | | |
//! |---|---|
//! | `bitmap` | bits in words, runs of clear bits |
//! | `hints`, `survey` | what is known of a block or a chunk without looking, and looking |
//! | `chunk` | one chunk's account: taken granules, boundaries, populated pages |
//! | `slot`, `index` | chunks by size of their longest free run, and by address |
//! | `state` | all of the above together: what the short lock owns |
//! | `memory` | pages behind units, zeroing |
//! | `units`, `initialisers` | a CPU's units when it first comes up, and what boxes put there |
//! | `ledger` | where a chunk's areas begin and end, and which of them are held |
//! | `cache` | freed areas that wait on a CPU for the next allocation |
//! | `front` | allocating and freeing: the way through the caches and beside them |
//! | `accounting` | who pays for an area |
//! | `leak` | which areas nothing points to any more |
//! | `stats`, `report` | numbers, and numbers to read |
//! | `grow`, `balance` | more memory, less memory: what the growth lock owns |
//!
//! The **short lock** masks interrupts and is held for bounded steps over the maps; the **growth
//! lock** lets its waiters sleep and is held while memory comes and goes. Each CPU's **cache** has a
//! lock of its own. The order is growth lock, cache, short lock. An allocation or a free that the
//! CPU's cache serves takes the cache's lock only, one that finds room on populated pages of a chunk
//! in use the short lock too; Linux takes its mutex for every allocation that may sleep.

mod accounting;
mod balance;
mod bitmap;
mod boxed;
mod cache;
mod chunk;
mod error;
mod front;
mod grow;
mod hints;
mod hotplug;
mod index;
mod initialisers;
mod leak;
mod ledger;
mod memory;
mod once;
mod report;
mod slot;
mod state;
mod stats;
mod survey;
mod table;
mod units;
mod warnings;
mod zeroable;

pub use accounting::{Accounting, Group};
pub use balance::Balanced;
pub use boxed::PerCpuBox;
pub use error::{AllocError, FreeError};
pub use hotplug::register_hotplug_steps;
pub use leak::{
    EARLY_CALLS, Leak, LeakError, LeakSite, LeakStatistics, LeakTracker, Scan, Tracking,
};
pub use report::Report;
pub use slot::{size_slot, slot_of};
pub use stats::{ChunkStatistics, Statistics};
pub use zeroable::Zeroable;

pub(crate) use initialisers::initialise_copies;
pub(crate) use memory::{UnitPages, take_away};
pub(crate) use table::Table;

use crate::area::{FirstChunk, SetupError};
use crate::atomic::{AtomicBool, AtomicPtr, Ordering};
use crate::platform::{Global, Platform};
use crate::sync::{Mutex, SpinLock};
use crate::var::PerCpuPtr;
use accounting::Accounts;
use cache::Caches;
use grow::{DetachedChunk, Growth, chunk_align};
use index::Index;
use leak::Leaks;
use ledger::Ledger;
use once::Once;
use state::State;
use warnings::Warnings;

/// Largest area. Linux: `PCPU_MIN_UNIT_SIZE`.
pub const MAX_ALLOC_SIZE: usize = crate::area::MIN_UNIT_SIZE;
/// Largest alignment: a page.
pub const MAX_ALIGN: usize = crate::view::PAGE as usize;

/// How an area is to be allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocFlags(u32);

impl AllocFlags {
    /// An ordinary allocation, which may sleep.
    pub const NONE: Self = Self(0);
    /// Never sleeps: uses populated pages only, from any context but an NMI's. Linux: not
    /// `GFP_KERNEL`.
    pub const ATOMIC: Self = Self(1 << 0);
    /// From the reserved part of the first chunk, where modules' variables live. Linux:
    /// `__alloc_reserved_percpu`.
    ///
    /// As all dynamic memory it is zero, also on a CPU that gets its unit later. A module whose variables
    /// have initial values writes them in a PREPARE step: it runs for the CPUs that are up when it is
    /// registered, and for each other one behind the making of its unit and before the CPU starts.
    ///
    /// ```
    /// use std::sync::OnceLock;
    ///
    /// use percpu_core::alloc::{self, AllocFlags};
    /// use percpu_core::area::Config;
    /// use percpu_core::cpu::CpuId;
    /// use percpu_core::host;
    /// use percpu_core::hotplug::{self, Section};
    /// use percpu_core::var::PerCpuPtr;
    ///
    /// /// A variable of the module, which begins as 7.
    /// static LIMIT: OnceLock<PerCpuPtr<u64>> = OnceLock::new();
    ///
    /// let config = Config { reserved_size: 64, units_on_demand: true, ..Config::default() };
    /// host::boot_with(2, 1, &config).unwrap();
    /// let limit = alloc::global().alloc(8, 8, AllocFlags::RESERVED)?.cast::<u64>();
    /// LIMIT.set(limit).unwrap();
    /// let initialise = |cpu| {
    ///     // SAFETY: the variable is live, and the CPU does not run or uses it by atomic accesses only.
    ///     unsafe { LIMIT.get().unwrap().write_on(cpu, 7) };
    ///     Ok(())
    /// };
    /// hotplug::register(Section::Prepare, "module:limit", Some(initialise), None).unwrap();
    /// let later = CpuId::new(1).unwrap();
    /// hotplug::cpu_up(later).unwrap();
    /// // SAFETY: as above.
    /// assert_eq!(unsafe { limit.read_on(later) }, 7);
    /// # Ok::<(), alloc::AllocError>(())
    /// ```
    pub const RESERVED: Self = Self(1 << 1);

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl core::ops::BitOr for AllocFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A per-CPU allocator over a platform's memory. A kernel has one, [`global`].
#[repr(C)]
pub struct Allocator<P: Platform> {
    /// First: its address is that of the [`AllocatorView`](crate::view::AllocatorView).
    state: SpinLock<State<P>, P>,
    growth: Mutex<Growth, P>,
    index: Index<P>,
    first: Once<FirstChunk<P>>,
    /// The ledger of the first chunk's dynamic part.
    first_ledger: AtomicPtr<Ledger>,
    caches: Once<Caches<P>>,
    balance_wanted: AtomicBool,
    atomic_failed: AtomicBool,
    failed_allocs: Warnings,
    refused_frees: Warnings,
    leaks: Leaks<P>,
    accounts: Accounts<P>,
}

impl<P: Platform> Allocator<P> {
    /// An allocator that knows no memory yet.
    #[expect(clippy::new_without_default, reason = "one is made on purpose, as a static")]
    pub const fn new() -> Self {
        Self {
            state: SpinLock::new(State::empty()),
            growth: Mutex::new(Growth::new()),
            index: Index::new(),
            first: Once::new(),
            first_ledger: AtomicPtr::new(core::ptr::null_mut()),
            caches: Once::new(),
            balance_wanted: AtomicBool::new(false),
            atomic_failed: AtomicBool::new(false),
            failed_allocs: Warnings::new(),
            refused_frees: Warnings::new(),
            leaks: Leaks::new(),
            accounts: Accounts::new(),
        }
    }

    /// Takes over what the static variables leave of the first chunk.
    ///
    /// # Errors
    ///
    /// [`NoMemory`](SetupError::NoMemory) for the tables, [`AlreadySetUp`](SetupError::AlreadySetUp)
    /// on a second call. The first chunk's memory has been given back then.
    pub fn init(&self, first: FirstChunk<P>) -> Result<&FirstChunk<P>, SetupError> {
        let _growth = self.growth.lock();
        if self.first.get().is_some() {
            return Err(SetupError::AlreadySetUp);
        }
        let caches = Caches::new(first.unit_offsets.len())?;
        // Calls may be logged already.
        let tracked = self.leaks.is_active();
        first.units().iter().try_for_each(|unit| caches.add(unit.cpu, tracked))?;
        let mut state = State::empty();
        state.start(&first, &caches)?;
        state.tracked = tracked;
        self.publish(first, caches, state)
    }

    /// Shares what [`init`](Self::init) has made. A function of its own, so that its copies of the three
    /// do not lie on the stack on which they are made.
    fn publish(
        &self,
        first: FirstChunk<P>,
        caches: Caches<P>,
        state: State<P>,
    ) -> Result<&FirstChunk<P>, SetupError> {
        self.index.set_shift(chunk_align(&first).trailing_zeros());
        let ledger = state.first_chunk().map(|chunk| state.ledger(chunk));
        let ledger = ledger.map_or(core::ptr::null_mut(), core::ptr::NonNull::as_ptr);
        self.first_ledger.store(ledger, Ordering::Relaxed);
        let first = self.first.set(first).map_err(|_| SetupError::AlreadySetUp)?;
        // Nobody but this call, under the growth lock, sets either of them.
        let _ = self.caches.set(caches);
        // The old state is empty; dropping it under the lock frees nothing.
        *self.state.lock() = state;
        Ok(first)
    }

    /// The first chunk, once the allocator has it.
    pub fn first_chunk(&self) -> Option<&FirstChunk<P>> {
        self.first.get()
    }

    fn caches(&self) -> Option<&Caches<P>> {
        self.caches.get()
    }

    /// Address of the [`AllocatorView`](crate::view::AllocatorView).
    pub fn view_address(&self) -> usize {
        (&raw const self.state).expose_provenance()
    }

    /// Asks for [`balance`](Self::balance). The flag's cache line is written when it changes only.
    #[inline]
    fn want_balance(&self) {
        if !self.balance_wanted.load(Ordering::Relaxed) {
            // A swap, so that whoever sees this one also sees what was stored before an earlier one.
            self.balance_wanted.swap(true, Ordering::Release);
        }
    }
}

impl<P: Platform> Drop for Allocator<P> {
    fn drop(&mut self) {
        let Some(first) = self.first.get() else { return };
        let state = self.state.get_mut();
        let mut n = 0;
        while let Some(ledger) = self.index.nth(n) {
            n += 1;
            let Some(ledger) = ledger else { continue };
            // SAFETY: the index names chunks that exist, and this loop asks for each once.
            let chunk = unsafe { ledger.as_ref() }.chunk();
            state.unlink(chunk);
            // SAFETY: the chunk has left its list; the index is not asked again, except for the
            // chunks behind this one, and nor are the caches. `&mut self` says that no area is used
            // any more.
            drop(unsafe { DetachedChunk::take_over(first, chunk) });
        }
    }
}

static GLOBAL: Allocator<Global> = Allocator::new();

/// The allocator of the whole program.
#[inline]
pub fn global() -> &'static Allocator<Global> {
    &GLOBAL
}

/// Hands out `size` bytes on every CPU that has a unit or gets one later, all zero. May sleep. Linux: `__alloc_percpu`.
///
/// # Errors
///
/// As [`Allocator::alloc`].
#[track_caller]
pub fn alloc_percpu(size: usize, align: usize) -> Result<PerCpuPtr<u8>, AllocError> {
    GLOBAL.alloc(size, align, AllocFlags::NONE)
}

/// Takes an area back, from any context but an NMI's. Linux: `free_percpu`.
///
/// # Errors
///
/// As [`Allocator::free`].
///
/// # Safety
///
/// As [`Allocator::free`].
pub unsafe fn free_percpu(ptr: PerCpuPtr<u8>) -> Result<(), FreeError> {
    // SAFETY: passed on to the caller.
    unsafe { GLOBAL.free(ptr) }
}
