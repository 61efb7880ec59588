//! Page frames: a mark up to which frames have been handed out, and a list of those given back.
//!
//! Frames above the mark were never touched and are zero, since the host gave zeroed memory.

use core::sync::atomic::Ordering;

use percpu_core::sync::SpinLock;

use super::PAGE;
use crate::kernel::shared;

struct Frames {
    /// First frame that was never handed out.
    next: usize,
    end: usize,
    /// Address of the first free frame; each holds the address of the next, 0 ends the list.
    free: usize,
}

static FRAMES: SpinLock<Frames> = SpinLock::new(Frames { next: 0, end: 0, free: 0 });

/// Takes over the memory after the image.
pub fn init() {
    let mut frames = FRAMES.lock();
    frames.next = shared::boot().memory_start as usize;
    frames.end = shared::boot().memory_end as usize;
}

/// A frame with arbitrary contents.
pub fn alloc() -> Option<usize> {
    let mut frames = FRAMES.lock();
    if frames.free != 0 {
        let frame = frames.free;
        let link = core::ptr::with_exposed_provenance::<usize>(frame);
        // SAFETY: a frame on the list is ours and begins with the link.
        frames.free = unsafe { link.read() };
        return Some(frame);
    }
    frames.take(1)
}

/// A frame full of zeroes.
pub fn alloc_zeroed() -> Option<usize> {
    if let Some(frame) = alloc_fresh(1) {
        return Some(frame);
    }
    let frame = alloc()?;
    // SAFETY: the frame was just handed to us.
    unsafe { core::ptr::with_exposed_provenance_mut::<u8>(frame).write_bytes(0, PAGE) };
    Some(frame)
}

/// `n` adjacent frames that were never used: zeroed. They cannot be given back as a run, only one
/// by one.
pub fn alloc_fresh(n: usize) -> Option<usize> {
    FRAMES.lock().take(n)
}

/// Gives a frame back.
///
/// # Safety
///
/// The frame came from here, and nothing uses it or is mapped to it.
pub unsafe fn free(frame: usize) {
    let mut frames = FRAMES.lock();
    let link = core::ptr::with_exposed_provenance_mut::<usize>(frame);
    // SAFETY: the frame is nobody's any more, by this function's contract.
    unsafe { link.write(frames.free) };
    frames.free = frame;
}

impl Frames {
    fn take(&mut self, n: usize) -> Option<usize> {
        let frame = self.next;
        let next = frame.checked_add(n.checked_mul(PAGE)?)?;
        if next > self.end {
            return None;
        }
        self.next = next;
        shared::header().frames_end.store(next as u64, Ordering::Relaxed);
        Some(frame)
    }
}
