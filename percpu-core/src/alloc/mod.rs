//! The dynamic allocator of per-CPU memory.

#![allow(dead_code)]

mod error;
mod once;
mod table;
mod zeroable;

pub use error::{AllocError, FreeError};
pub(crate) use once::Once;
pub(crate) use table::Table;
pub use zeroable::Zeroable;

use crate::area::{FirstChunk, SetupError};
use crate::platform::{Global, Platform};
use crate::var::PerCpuPtr;

/// Largest area. Linux: `PCPU_MIN_UNIT_SIZE`.
pub const MAX_ALLOC_SIZE: usize = 32 << 10;
/// Largest alignment: a page.
pub const MAX_ALIGN: usize = 4096;

/// How an area is to be allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocFlags(u32);

impl AllocFlags {
    /// An ordinary allocation, which may sleep.
    pub const NONE: Self = Self(0);
    /// Never sleeps: uses populated pages only, from any context. Linux: not `GFP_KERNEL`.
    pub const ATOMIC: Self = Self(1 << 0);
    /// From the reserved part of the first chunk, which static variables of modules live in.
    /// Linux: `__alloc_reserved_percpu`.
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

/// A per-CPU allocator over a platform's memory.
pub struct Allocator<P: Platform> {
    first: Once<FirstChunk<P>>,
}

impl<P: Platform> Allocator<P> {
    /// An allocator that knows no memory yet.
    pub const fn new() -> Self {
        Self { first: Once::new() }
    }

    /// Takes over what the static variables leave of the first chunk.
    pub fn init(&self, first: FirstChunk<P>) -> Result<&FirstChunk<P>, SetupError> {
        self.first.set(first).map_err(|_| SetupError::AlreadySetUp)
    }

    /// The first chunk, once the allocator has it.
    pub fn first_chunk(&self) -> Option<&FirstChunk<P>> {
        self.first.get()
    }

    /// Hands out `size` bytes on every possible CPU, all zero.
    pub fn alloc(
        &self,
        _size: usize,
        _align: usize,
        _flags: AllocFlags,
    ) -> Result<PerCpuPtr<u8>, AllocError> {
        Err(AllocError::NotSetUp)
    }

    /// Takes an area back.
    ///
    /// # Safety
    ///
    /// Nobody uses the area any more.
    pub unsafe fn free(&self, _ptr: PerCpuPtr<u8>) -> Result<(), FreeError> {
        Err(FreeError::NotSetUp)
    }
}

static GLOBAL: Allocator<Global> = Allocator::new();

/// The allocator of the whole program.
pub fn global() -> &'static Allocator<Global> {
    &GLOBAL
}

/// Hands out `size` bytes on every possible CPU, all zero. Linux: `__alloc_percpu`.
pub fn alloc_percpu(size: usize, align: usize) -> Result<PerCpuPtr<u8>, AllocError> {
    GLOBAL.alloc(size, align, AllocFlags::NONE)
}

/// Takes an area back. Linux: `free_percpu`.
///
/// # Safety
///
/// Nobody uses the area any more.
pub unsafe fn free_percpu(ptr: PerCpuPtr<u8>) -> Result<(), FreeError> {
    // SAFETY: passed on to the caller.
    unsafe { GLOBAL.free(ptr) }
}
