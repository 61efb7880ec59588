//! Switching stacks.

use core::arch::naked_asm;

/// Callee-saved registers on a thread's stack while it does not run.
const SAVED: usize = 6;

/// Saves the callee-saved registers and the stack pointer at `*save`, and goes on with the stack
/// `next`. Returns when somebody switches back.
///
/// # Safety
///
/// `next` was stored by this function or made by [`first_frame`], and nobody runs on that stack.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn switch_stacks(save: *mut usize, next: usize) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Where a thread's first switch returns to: a frame that ends the stack's walk.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!("xor ebp, ebp", "call {run}", "ud2", run = sym super::thread::run_current)
}

/// Makes a stack look as if its thread had switched away before its first instruction; returns the
/// stack pointer.
///
/// # Safety
///
/// The memory below `top` is a stack that is not in use.
pub(super) unsafe fn first_frame(top: usize) -> usize {
    // After `ret` the stack is aligned to 16, as before a call.
    let frame = top - (SAVED + 1) * size_of::<usize>();
    let frame = frame - frame % 16 + 8;
    let words = core::ptr::with_exposed_provenance_mut::<usize>(frame);
    // SAFETY: the words lie in the stack; see the contract.
    unsafe {
        for register in 0..SAVED {
            words.add(register).write(0);
        }
        words.add(SAVED).write((start as *const ()).expose_provenance());
    }
    frame
}
