//! What CPUs ask of each other by interrupt: to flush the TLB, to call a function, to look for a
//! thread to run.
//!
//! # Who answers a flush
//!
//! Every CPU that executes anything, from [`enter`] to [`leave`]. The online mask is too small for
//! that: a CPU runs hotplug steps before it is in there and after it has left. It may then have
//! translations, if only because the processor looked ahead, and a step that uses an area would go
//! by them to a page that was given back. So a CPU that executes nothing is marked in [`DONE`], and
//! all others are waited for.
//!
//! On their way up and down CPUs have interrupts masked, and for a part of it their LAPIC is off and
//! loses what is sent. They look by themselves when that is over: on the way up in [`answer`], on
//! the way down [`leave`] is the answer. What they do until then waits for no flush: steps with
//! interrupts masked take spin locks only, and nobody flushes while he holds one.

use core::ptr::{null_mut, with_exposed_provenance};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering, fence};

use crate::abi::MAX_CPUS;
use percpu_core::platform::Platform;
use percpu_core::{cpu, irq, preempt};

use crate::kernel::Kernel;
use crate::kernel::arch::{lapic, service};

/// Number of the latest flush anybody asked for.
static WANTED: AtomicU64 = AtomicU64::new(0);
/// Number of the latest flush each CPU has done, or [`OFF`]. Written by the CPU itself.
static DONE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(OFF) }; MAX_CPUS];
/// The CPU executes nothing and remembers nothing: it is behind no flush.
const OFF: u64 = u64::MAX;

/// A function that a CPU is to call, on the stack of the thread that waits for it.
struct Call {
    f: fn(usize),
    arg: usize,
    /// The call that was asked for before, or null.
    next: *const Call,
    /// Set by the CPU as its last access to the call.
    done: AtomicBool,
}

/// What each CPU has been asked to call; the latest first.
static CALLS: [AtomicPtr<Call>; MAX_CPUS] = [const { AtomicPtr::new(null_mut()) }; MAX_CPUS];

/// Interrupts `cpu`.
pub fn send(cpu: u32) {
    let _masked = irq::disable();
    lapic::send_ipi(cpu);
}

/// The IPI's handler.
pub fn on_ipi() {
    flush_this_tlb();
    answer_calls();
    preempt::set_need_resched();
}

/// Calls what this CPU has been asked to call. Interrupts are masked.
fn answer_calls() {
    let mut next = CALLS[cpu::this_cpu_raw() as usize].swap(null_mut(), Ordering::Acquire);
    while !next.is_null() {
        // SAFETY: the call was put on this CPU's queue, which `Acquire` shows written, and taken
        // off it here; it stays until it is done.
        let call = unsafe { &*with_exposed_provenance::<Call>(next.addr()) };
        next = call.next.cast_mut();
        (call.f)(call.arg);
        call.done.store(true, Ordering::Release);
    }
}

/// Calls `f(arg)` on `cpu`, which is online and stays so. Interrupts and preemption are on, so that
/// two CPUs that call each other at once answer each other; the thread may go on elsewhere, even on
/// `cpu`.
pub fn run_on_cpu(cpu: u32, f: fn(usize), arg: usize) {
    let masked = irq::disable();
    if cpu::this_cpu_raw() == cpu {
        return f(arg);
    }
    drop(masked);
    let queue = &CALLS[cpu as usize];
    let mut call =
        Call { f, arg, next: queue.load(Ordering::Relaxed), done: AtomicBool::new(false) };
    loop {
        let new = (&raw mut call).expose_provenance();
        let new = core::ptr::with_exposed_provenance_mut(new);
        let next = call.next.cast_mut();
        match queue.compare_exchange(next, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => break,
            Err(latest) => call.next = latest,
        }
    }
    send(cpu);
    let mut spins = 0;
    while !call.done.load(Ordering::Acquire) {
        Kernel::relax(spins);
        spins = spins.saturating_add(1);
    }
}

/// Flushes this CPU's TLB if a flush is due. Interrupts are masked.
fn flush_this_tlb() {
    let wanted = WANTED.load(Ordering::Acquire);
    let done = &DONE[cpu::this_cpu_raw() as usize];
    if done.load(Ordering::Relaxed) < wanted {
        service::flush_tlb();
        done.store(wanted, Ordering::Release);
    }
}

/// Returns when no CPU remembers a translation from before the call. Interrupts and preemption are
/// on, so that two CPUs that flush at once answer each other, and that a CPU on its way is not held
/// up by the thread that brings it there.
pub fn flush_all_tlbs() {
    let wanted = WANTED.fetch_add(1, Ordering::AcqRel) + 1;
    // Between the order and the look at who is there: see `enter` and `answer`.
    fence(Ordering::SeqCst);
    let masked = irq::disable();
    flush_this_tlb();
    drop(masked);
    let behind = |cpu: usize| DONE[cpu].load(Ordering::Acquire) < wanted;
    // A CPU without a unit has never run.
    for cpu in cpu::booted_once().iter().filter(|cpu| behind(cpu.index())) {
        send(cpu.index() as u32);
    }
    for cpu in cpu::booted_once().iter() {
        let mut spins = 0;
        while behind(cpu.index()) {
            Kernel::relax(spins);
            spins = spins.saturating_add(1);
        }
    }
}

/// This CPU begins to execute. Called with interrupts masked, before it touches anything in pages
/// that may be taken away.
///
/// Either a flusher finds the mark gone, and waits; or, by the two fences, this CPU finds his order,
/// and forgets here what it has read ahead since its first instruction.
pub fn enter(cpu: u32) {
    DONE[cpu as usize].store(0, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    flush_this_tlb();
}

/// This CPU's LAPIC is on, for good; interrupts are still masked.
///
/// An order that is not seen here is given later, and so is its IPI, by the two fences: it finds the
/// LAPIC on. One that is seen may have had its IPI lost, and is answered here.
pub fn answer() {
    fence(Ordering::SeqCst);
    flush_this_tlb();
}

/// This CPU touches nothing more in pages that may be taken away, until it comes back by
/// [`enter`]. Interrupts are masked.
pub fn leave(cpu: u32) {
    DONE[cpu as usize].store(OFF, Ordering::Release);
}
