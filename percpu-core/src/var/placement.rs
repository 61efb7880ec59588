//! The linker's work under Miri, which has no sections: a variable gets its place in the template
//! when it is first used.
//!
//! The template is a block of fixed size. A place that is given after set-up is filled in every
//! unit as well, as if it had been there in time.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{area, cpu};

const SIZE: usize = 8 * 4096;

#[repr(align(4096))]
struct Block(UnsafeCell<[MaybeUninit<u8>; SIZE]>);

// SAFETY: bytes of it are touched as per-CPU variables, or before they belong to one.
unsafe impl Sync for Block {}

static BLOCK: Block = Block(UnsafeCell::new([MaybeUninit::zeroed(); SIZE]));

/// Bytes of the block that are taken.
static TAKEN: Mutex<usize> = Mutex::new(0);

/// Addresses of the template.
pub fn template() -> Range<usize> {
    let start = BLOCK.0.get().expose_provenance();
    start..start + SIZE
}

/// Where a variable lies in the template; 0 until it is first used.
pub(super) struct Place(AtomicUsize);

impl Place {
    pub(super) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// The template address of the variable whose initial value is `initial`; it has its multiples
    /// of `align` to itself.
    pub(super) fn address<T>(&self, initial: &UnsafeCell<T>, align: usize) -> usize {
        match self.0.load(Ordering::Acquire) {
            0 => self.give(initial, align),
            address => address,
        }
    }

    fn give<T>(&self, initial: &UnsafeCell<T>, align: usize) -> usize {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let given = self.0.load(Ordering::Relaxed);
        if given != 0 {
            return given;
        }
        let align = align.max(align_of::<T>());
        let start = taken.next_multiple_of(align);
        let end = (start + size_of::<T>()).next_multiple_of(align);
        assert!(end <= SIZE, "too many per-CPU statics for Miri's template");
        *taken = end;
        let address = template().start + start;
        let write = |at: usize| {
            // SAFETY: the bytes lie in the template or in the same place of a unit, and belong to
            // this variable, which nobody has used yet.
            unsafe {
                with_exposed_provenance_mut::<MaybeUninit<T>>(at)
                    .copy_from_nonoverlapping(initial.get().cast(), 1);
            }
        };
        write(address);
        for offset in cpu::booted_once().iter().filter_map(area::try_offset) {
            write(address.wrapping_add(offset));
        }
        self.0.store(address, Ordering::Release);
        address
    }
}
