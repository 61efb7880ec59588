//! Filling and comparing memory by one instruction: one step where steps are counted, of which an
//! area's content would else take most.

use core::arch::asm;

/// Writes `word` to `n` words.
///
/// # Safety
///
/// They are the caller's.
pub unsafe fn fill_words(to: *mut u32, word: u32, n: usize) {
    // SAFETY: see the contract.
    unsafe { asm!("rep stosd", inout("rcx") n => _, inout("rdi") to => _, in("eax") word) };
}

/// The first of `n` words that is not `word`.
///
/// # Safety
///
/// They can be read.
pub unsafe fn find_other_word(words: *const u32, word: u32, n: usize) -> Option<usize> {
    let (left, differs): (usize, u8);
    // SAFETY: see the contract. The comparison before makes "equal" of no words at all.
    unsafe {
        asm!(
            "cmp eax, eax",
            "repe scasd",
            "setne {differs}",
            differs = lateout(reg_byte) differs,
            inout("rcx") n => left,
            inout("rdi") words => _,
            in("eax") word,
        )
    };
    (differs != 0).then(|| n - left - 1)
}
