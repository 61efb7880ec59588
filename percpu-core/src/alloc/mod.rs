//! The dynamic allocator of per-CPU memory: an area is the same range of every CPU's unit.
//!
//! ```text
//! let hits = alloc_percpu(8, 8)?;                 // eight zero bytes on every possible CPU
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
//! | `grow`, `balance` | more memory, less memory: what the growth lock owns |
//!
//! The **short lock** masks interrupts and is held for bounded steps over the maps; the **growth
//! lock** lets its waiters sleep and is held while memory comes and goes. The growth lock is taken
//! first. An allocation that finds room on populated pages of a chunk in use takes the short lock
//! only; Linux takes its mutex for every allocation that may sleep.

mod balance;
mod bitmap;
mod boxed;
mod chunk;
mod error;
mod grow;
mod hints;
mod index;
mod memory;
mod once;
mod slot;
mod state;
mod stats;
mod survey;
mod table;
mod warnings;
mod zeroable;

use core::sync::atomic::{AtomicBool, Ordering};

pub use balance::Balanced;
pub use boxed::PerCpuBox;
pub use error::{AllocError, FreeError};
pub use slot::{size_slot, slot_of};
pub use stats::{ChunkStatistics, Statistics};
pub use zeroable::Zeroable;

pub(crate) use table::Table;

use crate::area::{FirstChunk, SetupError};
use crate::platform::{Global, Platform};
use crate::sync::{Mutex, SpinLock};
use crate::var::PerCpuPtr;
use crate::view::GRANULE;
use grow::{DetachedChunk, Growth, Taken, chunk_align};
use once::Once;
use state::{EMPTY_PAGES_LOW, Reach, Request, State};
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
    /// Never sleeps: uses populated pages only, from any context. Linux: not `GFP_KERNEL`.
    pub const ATOMIC: Self = Self(1 << 0);
    /// From the reserved part of the first chunk, where modules' variables live. Linux:
    /// `__alloc_reserved_percpu`.
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
    first: Once<FirstChunk<P>>,
    balance_wanted: AtomicBool,
    atomic_failed: AtomicBool,
    failed_allocs: Warnings,
    refused_frees: Warnings,
}

impl<P: Platform> Allocator<P> {
    /// An allocator that knows no memory yet.
    #[expect(clippy::new_without_default, reason = "one is made on purpose, as a static")]
    pub const fn new() -> Self {
        Self {
            state: SpinLock::new(State::empty()),
            growth: Mutex::new(Growth::new()),
            first: Once::new(),
            balance_wanted: AtomicBool::new(false),
            atomic_failed: AtomicBool::new(false),
            failed_allocs: Warnings::new(),
            refused_frees: Warnings::new(),
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
        let state = State::new(&first, chunk_align(&first))?;
        let first = self.first.set(first).map_err(|_| SetupError::AlreadySetUp)?;
        // The old state is empty; dropping it under the lock frees nothing.
        *self.state.lock() = state;
        Ok(first)
    }

    /// The first chunk, once the allocator has it.
    pub fn first_chunk(&self) -> Option<&FirstChunk<P>> {
        self.first.get()
    }

    /// Address of the [`AllocatorView`](crate::view::AllocatorView).
    pub fn view_address(&self) -> usize {
        (&raw const self.state).expose_provenance()
    }

    /// Hands out `size` bytes on every possible CPU, all zero, at a multiple of `align`. Sizes and
    /// alignments are rounded up to [`GRANULE`]. Linux: `pcpu_alloc`.
    ///
    /// Masks interrupts for a search that is bounded by the number of chunks of its size and the
    /// blocks in them. Unless `flags` has [`ATOMIC`](AllocFlags::ATOMIC), it may sleep to get
    /// memory, so it must not be called with preemption off or interrupts masked.
    ///
    /// # Errors
    ///
    /// [`Size`](AllocError::Size) unless the size is from 1 to [`MAX_ALLOC_SIZE`],
    /// [`Align`](AllocError::Align) unless the alignment is a power of two up to [`MAX_ALIGN`], and
    /// one for each way to have no room. The first ten failures are logged, those of atomic
    /// allocations for want of room excepted.
    pub fn alloc(
        &self,
        size: usize,
        align: usize,
        flags: AllocFlags,
    ) -> Result<PerCpuPtr<u8>, AllocError> {
        self.try_alloc(size, align, flags).inspect_err(|error| {
            if *error != AllocError::NoPopulatedRoom {
                self.failed_allocs.warn::<P>(format_args!(
                    "allocation failed, size={size} align={align} flags={:#x}: {error}",
                    flags.0
                ));
            }
        })
    }

    #[inline]
    fn try_alloc(
        &self,
        size: usize,
        align: usize,
        flags: AllocFlags,
    ) -> Result<PerCpuPtr<u8>, AllocError> {
        if size == 0 || size > MAX_ALLOC_SIZE {
            return Err(AllocError::Size(size));
        }
        if !align.is_power_of_two() || align > MAX_ALIGN {
            return Err(AllocError::Align(align));
        }
        let request = Request {
            len: (size as u32).div_ceil(GRANULE),
            align: (align as u32).div_ceil(GRANULE),
        };
        let first = self.first.get().ok_or(AllocError::NotSetUp)?;
        let taken = match self.take_populated(request, flags) {
            Some(taken) => taken,
            None if flags.contains(AllocFlags::RESERVED) => {
                return Err(AllocError::NoReservedRoom);
            }
            None if flags.contains(AllocFlags::ATOMIC) => {
                self.atomic_failed.store(true, Ordering::Relaxed);
                self.want_balance();
                return Err(AllocError::NoPopulatedRoom);
            }
            None => self.take_growing(first, request).map_err(|_| AllocError::NoMemory)?,
        };
        // SAFETY: the area was taken on populated pages, which keep their memory as long as it is
        // live (I13), and nobody else knows of it before it is returned.
        unsafe { memory::zero(first, taken.address, request.bytes()) };
        Ok(PerCpuPtr::from_raw(taken.pointer))
    }

    /// Takes a place on populated pages.
    #[inline]
    fn take_populated(&self, request: Request, flags: AllocFlags) -> Option<Taken> {
        let mut state = self.state.lock();
        let place = if flags.contains(AllocFlags::RESERVED) {
            state.find_reserved(request)?
        } else if flags.contains(AllocFlags::ATOMIC) {
            state.find(request, Reach::Populated)?
        } else {
            state.find(request, Reach::Active)?
        };
        state.take(place);
        if state.empty_pages() < EMPTY_PAGES_LOW {
            self.want_balance();
        }
        Some(Taken { pointer: state.pointer(place), address: state.address(place) })
    }

    /// Takes an area back. May be called from any context, interrupt handlers included. Linux:
    /// `free_percpu`.
    ///
    /// A null pointer is ignored.
    ///
    /// # Errors
    ///
    /// A pointer that is not the start of a live area is refused: nothing changes, and the first
    /// ten such calls are logged.
    ///
    /// # Safety
    ///
    /// Nobody uses the area any more, on any CPU.
    pub unsafe fn free(&self, ptr: PerCpuPtr<u8>) -> Result<(), FreeError> {
        if ptr.raw() == 0 {
            return Ok(());
        }
        let result = self.state.lock().give_back(ptr.raw());
        match result {
            Ok(balance) => {
                if balance {
                    self.want_balance();
                }
                Ok(())
            }
            Err(error) => {
                self.refused_frees.warn::<P>(format_args!("free refused: {error}"));
                Err(error)
            }
        }
    }

    /// Asks for [`balance`](Self::balance). The flag's cache line is written when it changes only.
    #[inline]
    fn want_balance(&self) {
        if !self.balance_wanted.load(Ordering::Relaxed) {
            self.balance_wanted.store(true, Ordering::Relaxed);
        }
    }
}

impl<P: Platform> Drop for Allocator<P> {
    fn drop(&mut self) {
        let Some(first) = self.first.get() else { return };
        let state = self.state.get_mut();
        let mut n = 0;
        while let Some(chunk) = state.index.nth(n) {
            n += 1;
            let Some(chunk) = chunk else { continue };
            state.unlink(chunk);
            // SAFETY: the chunk has left its list; the index is not asked again, except for the
            // chunks behind this one. `&mut self` says that no area is used any more.
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

/// Hands out `size` bytes on every possible CPU, all zero. May sleep. Linux: `__alloc_percpu`.
///
/// # Errors
///
/// As [`Allocator::alloc`].
pub fn alloc_percpu(size: usize, align: usize) -> Result<PerCpuPtr<u8>, AllocError> {
    GLOBAL.alloc(size, align, AllocFlags::NONE)
}

/// Takes an area back, from any context. Linux: `free_percpu`.
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
