//! Interrupts of a CPU that is a thread: a signal, by which other CPUs have it call a function.

use std::cell::Cell;
use std::mem;
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr};
use std::thread;

use percpu_core::cpu::{self, CpuId, NR_CPUS};

/// The signal that interrupts a CPU.
const INTERRUPT: i32 = libc::SIGUSR1;

std::thread_local! {
    /// Times that this thread has masked interrupts.
    static MASKED: Cell<usize> = const { Cell::new(0) };
    /// Whether an interrupt came meanwhile.
    static PENDING: Cell<bool> = const { Cell::new(false) };
    /// The CPU that this thread is, or `NR_CPUS`.
    static SELF: Cell<usize> = const { Cell::new(NR_CPUS) };
}

/// A function that a CPU is to call.
struct Call {
    f: fn(usize),
    arg: usize,
    done: AtomicBool,
}

/// What other CPUs need to know of a CPU.
struct Line {
    /// The thread that is the CPU, or 0.
    thread: AtomicI32,
    call: AtomicPtr<Call>,
}

static LINES: [Line; NR_CPUS] =
    [const { Line { thread: AtomicI32::new(0), call: AtomicPtr::new(null_mut()) } }; NR_CPUS];

pub(crate) fn mask() {
    MASKED.set(MASKED.get() + 1);
}

pub(crate) fn unmask() {
    MASKED.set(MASKED.get() - 1);
    if MASKED.get() == 0 && PENDING.take() {
        answer();
    }
}

/// Lets this thread, which is `cpu`, be interrupted.
pub(crate) fn enable(cpu: CpuId) {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: all zero is a valid `sigaction`, of which the call reads what is set here; the
        // handler calls nothing that a signal handler may not.
        let failed = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = interrupt as extern "C" fn(i32) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(INTERRUPT, &action, null_mut())
        };
        assert!(failed == 0, "a handler can be installed");
    });
    SELF.set(cpu.index());
    // SAFETY: asks for a number.
    let thread = unsafe { libc::gettid() };
    LINES[cpu.index()].thread.store(thread, Release);
}

/// Ends that this thread, which is `cpu`, can be interrupted.
pub(crate) fn disable(cpu: CpuId) {
    LINES[cpu.index()].thread.store(0, SeqCst);
    // What was sent before.
    answer();
    SELF.set(NR_CPUS);
}

extern "C" fn interrupt(_signal: i32) {
    if MASKED.get() != 0 {
        PENDING.set(true);
    } else {
        answer();
    }
}

/// Makes the call that was sent to this CPU, if there is one.
fn answer() {
    let Some(line) = LINES.get(SELF.get()) else { return };
    mask();
    let call = line.call.swap(null_mut(), SeqCst);
    if !call.is_null() {
        // SAFETY: the sender keeps the call until it is done.
        let call = unsafe { &*call };
        (call.f)(call.arg);
        call.done.store(true, Release);
    }
    unmask();
}

/// Calls `f(arg)` on CPU `cpu` with interrupts masked there.
pub(crate) fn call(cpu: u32, f: fn(usize), arg: usize) {
    if cpu == cpu::this_cpu_raw() {
        mask();
        f(arg);
        return unmask();
    }
    let line = &LINES[cpu as usize];
    let call = Call { f, arg, done: AtomicBool::new(false) };
    let sent = (&raw const call).cast_mut();
    // Another CPU's call may be waiting.
    while line.call.compare_exchange(null_mut(), sent, SeqCst, Relaxed).is_err() {
        thread::yield_now();
    }
    // A thread that ends stores 0 before it looks for a call.
    let thread = line.thread.load(SeqCst);
    if thread == 0 {
        eprintln!("CPU {cpu} is called, but no thread is that CPU");
        std::process::abort();
    }
    // SAFETY: sends a signal for which there is a handler.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, INTERRUPT) };
    while !call.done.load(Acquire) {
        thread::yield_now();
    }
}
