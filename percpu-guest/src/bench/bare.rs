//! What the operations are held against: the instructions themselves, written by hand.

use core::arch::asm;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use percpu_core::percpu;
use percpu_core::var::DoubleWord;
use percpu_guest::abi::MAX_CPUS;

percpu! {
    /// What the bare instructions work on.
    #[shared_aligned]
    static WORD: PerCpu<u64> = 0;
    /// Stays 0, for comparisons that succeed.
    #[shared_aligned]
    static ZERO: PerCpu<u64> = 0;
    #[shared_aligned]
    static PAIR: PerCpu<DoubleWord> = DoubleWord { low: 0, high: 0 };
}

/// A word that all CPUs share, on a cache line of its own.
#[repr(align(128))]
struct Line(AtomicU64);

static SHARED: Line = Line(AtomicU64::new(0));
/// One for each CPU.
static LINES: [Line; MAX_CPUS] = [const { Line(AtomicU64::new(0)) }; MAX_CPUS];

/// A word that all CPUs share, under a lock on the same cache line.
#[repr(align(128))]
struct Guarded {
    lock: AtomicBool,
    word: AtomicU64,
}

static GUARDED: Guarded = Guarded { lock: AtomicBool::new(false), word: AtomicU64::new(0) };

/// Makes the compiler believe that `value` is needed.
#[inline(always)]
pub fn sink(value: u64) {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", in(reg) value, options(nostack, preserves_flags)) };
}

/// `lock xadd` on a word that all CPUs share.
#[inline(always)]
pub fn shared_xadd() {
    // SAFETY: the word is an atomic, and the instruction too.
    unsafe {
        asm!("lock xadd [{word}], {one}", word = in(reg) SHARED.0.as_ptr(), one = inout(reg) 1u64 => _,
            options(nostack));
    }
}

/// Adds to a word that all CPUs share, under a spin lock: test, then test and set.
#[inline(always)]
pub fn spin_locked_add() {
    while GUARDED.lock.swap(true, Ordering::Acquire) {
        while GUARDED.lock.load(Ordering::Relaxed) {
            spin_loop();
        }
    }
    let word = GUARDED.word.load(Ordering::Relaxed);
    GUARDED.word.store(word.wrapping_add(1), Ordering::Relaxed);
    GUARDED.lock.store(false, Ordering::Release);
}

/// Adds to a per-CPU word.
#[inline(always)]
pub fn add() {
    // SAFETY: a live per-CPU word that nothing else uses; so in all functions below.
    unsafe {
        asm!("add qword ptr gs:[{word}], {value}", word = in(reg) WORD.ptr().raw(),
            value = in(reg) 1u64, options(nostack));
    }
}

/// The same on half of it.
#[inline(always)]
pub fn add_half() {
    // SAFETY: see `add`.
    unsafe {
        asm!("add dword ptr gs:[{word}], {value:e}", word = in(reg) WORD.ptr().raw(),
            value = in(reg) 1u32, options(nostack));
    }
}

/// The same on a byte of it.
#[inline(always)]
pub fn add_byte() {
    // SAFETY: see `add`.
    unsafe {
        asm!("add byte ptr gs:[{word}], {value}", word = in(reg) WORD.ptr().raw(),
            value = in(reg_byte) 1u8, options(nostack));
    }
}

/// Adds to a per-CPU word and takes it away again.
#[inline(always)]
pub fn two_adds() {
    // SAFETY: see `add`.
    unsafe {
        asm!("add qword ptr gs:[{word}], {one}", "add qword ptr gs:[{word}], {back}",
            word = in(reg) WORD.ptr().raw(), one = in(reg) 1u64, back = in(reg) u64::MAX,
            options(nostack));
    }
}

/// Adds one to a per-CPU word and takes it away again.
#[inline(always)]
pub fn inc_dec() {
    // SAFETY: see `add`.
    unsafe {
        asm!("inc dword ptr gs:[{word}]", "dec dword ptr gs:[{word}]",
            word = in(reg) WORD.ptr().raw(), options(nostack));
    }
}

/// Adds one to a per-CPU word.
#[inline(always)]
pub fn inc() {
    // SAFETY: see `add`.
    unsafe {
        asm!("inc qword ptr gs:[{word}]", word = in(reg) WORD.ptr().raw(), options(nostack));
    }
}

/// Clears no bit of a per-CPU word.
#[inline(always)]
pub fn and() {
    // SAFETY: see `add`.
    unsafe {
        asm!("and qword ptr gs:[{word}], {value}", word = in(reg) WORD.ptr().raw(),
            value = in(reg) u64::MAX, options(nostack));
    }
}

/// Sets no bit of a per-CPU word.
#[inline(always)]
pub fn or() {
    // SAFETY: see `add`.
    unsafe {
        asm!("or qword ptr gs:[{word}], {value}", word = in(reg) WORD.ptr().raw(),
            value = in(reg) 0u64, options(nostack));
    }
}

/// Reads a per-CPU word.
#[inline(always)]
pub fn read() {
    // SAFETY: see `add`.
    unsafe {
        asm!("mov {value}, qword ptr gs:[{word}]", word = in(reg) WORD.ptr().raw(),
            value = lateout(reg) _, options(nostack, preserves_flags, readonly));
    }
}

/// Writes a per-CPU word.
#[inline(always)]
pub fn write() {
    // SAFETY: see `add`.
    unsafe {
        asm!("mov qword ptr gs:[{word}], {value}", word = in(reg) WORD.ptr().raw(),
            value = in(reg) 1u64, options(nostack, preserves_flags));
    }
}

/// Adds to a per-CPU word and has the sum.
#[inline(always)]
pub fn xadd() {
    // SAFETY: see `add`.
    unsafe {
        asm!("xadd qword ptr gs:[{word}], {value}", word = in(reg) WORD.ptr().raw(),
            value = inout(reg) 1u64 => _, options(nostack));
    }
}

/// Reads a per-CPU word and writes it if it is as read: an exchange without a lock.
#[inline(always)]
pub fn read_cmpxchg() {
    // SAFETY: see `add`.
    unsafe {
        asm!("mov rax, qword ptr gs:[{word}]", "cmpxchg qword ptr gs:[{word}], {value}",
            word = in(reg) WORD.ptr().raw(), value = in(reg) 1u64, out("rax") _, options(nostack));
    }
}

/// Writes a per-CPU word if it is 0, which it is.
#[inline(always)]
pub fn cmpxchg() {
    // SAFETY: see `add`.
    unsafe {
        asm!("cmpxchg qword ptr gs:[{word}], {value}", word = in(reg) ZERO.ptr().raw(),
            value = in(reg) 0u64, inout("rax") 0u64 => _, options(nostack));
    }
}

/// Writes two per-CPU words if they are 0, which they are.
#[inline(always)]
pub fn cmpxchg16b() {
    // SAFETY: see `add`; the variable is aligned to a cache line. `rbx` is the compiler's own and
    // gets back what it was.
    unsafe {
        asm!("xchg {low}, rbx", "cmpxchg16b xmmword ptr gs:[rdi]", "mov rbx, {low}",
            low = inout(reg) 0u64 => _, in("rcx") 0u64, inout("rax") 0u64 => _,
            inout("rdx") 0u64 => _, in("rdi") PAIR.ptr().raw(), options(nostack));
    }
}

/// Reads a word of each of so many CPUs.
#[inline(always)]
pub fn loads(cpus: u32) {
    for line in &LINES[..cpus as usize] {
        sink(line.0.load(Ordering::Relaxed));
    }
}
