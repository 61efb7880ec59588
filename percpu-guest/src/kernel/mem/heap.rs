//! A heap for the core's own tables: size classes of powers of two, carved out of frames.

use core::alloc::Layout;
use core::ptr::NonNull;

use percpu_core::sync::SpinLock;

use super::{PAGE, frames};

const SMALLEST: usize = 32;
const CLASSES: usize = 13;

/// Address of the first free block of each class, 32 bytes to 128 KiB; each holds the address of
/// the next, 0 ends the list.
static FREE: SpinLock<[usize; CLASSES]> = SpinLock::new([0; CLASSES]);

fn class_of(layout: Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(SMALLEST).next_power_of_two();
    let class = (size / SMALLEST).trailing_zeros() as usize;
    (class < CLASSES && layout.align() <= PAGE).then_some(class)
}

/// Zeroed memory of `layout`.
pub fn alloc(layout: Layout) -> Option<NonNull<u8>> {
    let class = class_of(layout)?;
    let size = SMALLEST << class;
    let block = {
        let mut free = FREE.lock();
        if free[class] == 0 {
            drop(free);
            return carve(class, size);
        }
        let block = free[class];
        let link = core::ptr::with_exposed_provenance::<usize>(block);
        // SAFETY: a block on the list is ours and begins with the link.
        free[class] = unsafe { link.read() };
        block
    };
    let block = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(block))?;
    // SAFETY: the block was just taken off the list and has this size.
    unsafe { block.write_bytes(0, size) };
    Some(block)
}

/// New blocks from frames that were never used, hence zero.
fn carve(class: usize, size: usize) -> Option<NonNull<u8>> {
    let block = frames::alloc_fresh(size.div_ceil(PAGE))?;
    for rest in (block + size..block + size.next_multiple_of(PAGE)).step_by(size) {
        // SAFETY: each piece lies in the new frame and is nobody's yet.
        unsafe { put(rest, class) };
    }
    NonNull::new(core::ptr::with_exposed_provenance_mut(block))
}

/// Gives memory back.
///
/// # Safety
///
/// `ptr` came from [`alloc`] with this `layout` and is not used again.
pub unsafe fn free(ptr: NonNull<u8>, layout: Layout) {
    if let Some(class) = class_of(layout) {
        // SAFETY: the block is of this class, and the caller gives it up.
        unsafe { put(ptr.as_ptr().expose_provenance(), class) };
    }
}

/// # Safety
///
/// `block` is memory of `class` that nobody uses.
unsafe fn put(block: usize, class: usize) {
    let mut free = FREE.lock();
    let link = core::ptr::with_exposed_provenance_mut::<usize>(block);
    // SAFETY: by contract nobody else uses the block.
    unsafe { link.write(free[class]) };
    free[class] = block;
}
