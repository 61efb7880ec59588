//! A stack of a given size, as a boot CPU has one.

use std::arch::asm;
use std::ptr::with_exposed_provenance_mut;

use crate::memory;

const PAGE: usize = 4096;
/// What a word of the stack holds until it is used.
const UNUSED: u64 = 0xa5a5_5a5a_a5a5_5a5a;

/// Calls `f` on a stack of `pages` pages and returns how many bytes of it were used. Below the stack
/// lies a page that cannot be accessed: a program that needs more dies of `SIGSEGV`.
pub fn run_on(pages: usize, f: extern "C" fn()) -> usize {
    let bottom = memory::reserve((pages + 1) * PAGE, PAGE).expect("address space") + PAGE;
    // SAFETY: the range was reserved above, and nothing uses it.
    unsafe { memory::protect(bottom, pages, libc::PROT_READ | libc::PROT_WRITE) }.expect("memory");
    let words = with_exposed_provenance_mut::<u64>(bottom);
    let count = pages * PAGE / size_of::<u64>();
    // SAFETY: the words are the memory that was made accessible above.
    let stack = unsafe { std::slice::from_raw_parts_mut(words, count) };
    stack.fill(UNUSED);
    // SAFETY: `f` gets a stack of its own, aligned as the calling convention wants it. `r12` is
    // kept by functions of this convention, so the old stack is found again. A panic cannot leave
    // `f`.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {f}",
            "mov rsp, r12",
            top = in(reg) bottom + pages * PAGE,
            f = in(reg) f,
            out("r12") _,
            clobber_abi("C"),
        );
    }
    // SAFETY: as above; the stack is not in use any more.
    let stack = unsafe { std::slice::from_raw_parts(words, count) };
    let untouched = stack.iter().take_while(|&&word| word == UNUSED).count();
    // SAFETY: the range is the one that was reserved, and the stack is not in use any more.
    unsafe { memory::release(bottom - PAGE, (pages + 1) * PAGE) };
    (count - untouched) * size_of::<u64>()
}
