//! What CPUs ask of each other by interrupt: to flush the TLB, to look for a thread to run.

use core::sync::atomic::{AtomicU64, Ordering};

use percpu_core::platform::Platform;
use percpu_core::{cpu, irq, preempt};
use percpu_guest::abi::MAX_CPUS;

use crate::arch::{lapic, service};
use crate::kernel::Kernel;

/// Number of the latest flush anybody asked for.
static WANTED: AtomicU64 = AtomicU64::new(0);
/// Number of the latest flush each CPU has done.
static DONE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Interrupts `cpu`.
pub fn send(cpu: u32) {
    let _masked = irq::disable();
    lapic::send_ipi(cpu);
}

/// The IPI's handler.
pub fn on_ipi() {
    flush_this_tlb();
    preempt::set_need_resched();
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

/// Returns when no online CPU remembers a translation from before the call. Interrupts are on, so
/// that two CPUs that flush at once answer each other.
pub fn flush_all_tlbs() {
    let wanted = WANTED.fetch_add(1, Ordering::AcqRel) + 1;
    let masked = irq::disable();
    flush_this_tlb();
    drop(masked);
    let behind = |cpu: usize| DONE[cpu].load(Ordering::Acquire) < wanted;
    for cpu in cpu::online().iter().filter(|cpu| behind(cpu.index())) {
        send(cpu.index() as u32);
    }
    // A CPU that leaves meanwhile needs no answer: it starts again with an empty TLB. One that
    // comes online meanwhile has one, too, and has marked that in `start_with_empty_tlb`.
    for cpu in cpu::online().iter() {
        let mut spins = 0;
        while behind(cpu.index()) && cpu::online().contains(cpu) {
            Kernel::relax(spins);
            spins += 1;
        }
    }
}

/// A CPU that begins has no translations. Called before it is online.
pub fn start_with_empty_tlb(cpu: u32) {
    DONE[cpu as usize].store(WANTED.load(Ordering::Acquire), Ordering::Release);
}
