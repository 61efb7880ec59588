//! Events, guest to host.
//!
//! Each event takes a ticket from one counter, which gives the events of all CPUs a total order: a
//! thing is announced after it came to be and before it goes, so the host's model never sees two
//! owners of one area. A thread waits for room; nothing is dropped unless the host has stopped
//! reading.

use core::sync::atomic::Ordering;

use crate::abi::{Doorbell, EVENT_RING_LEN, EventKind, Invariant};
use percpu_core::irq;

use crate::kernel::arch::{doorbell, tsc};
use crate::kernel::{sched, shared};

/// How long a thread waits for room before the event counts as dropped.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Tells the host of `kind`. To be called by threads with interrupts on; waits for room.
pub fn emit(kind: EventKind, args: [u64; 5]) {
    let mut since = None;
    while !emit_now(kind, args) {
        let now = tsc::now_ns();
        if now.saturating_sub(*since.get_or_insert(now)) > PATIENCE_NS {
            shared::events(percpu_core::cpu::this_cpu_raw())
                .dropped
                .fetch_add(1, Ordering::Relaxed);
            return;
        }
        doorbell::ring(Doorbell::Yield, 0);
    }
}

/// Tells the host of something of the image's own, for checks of its own. As [`emit`].
pub fn note(args: [u64; 5]) {
    emit(EventKind::Note, args);
}

/// Tells the host of something it waits for, and wakes it.
pub fn emit_and_ring(kind: EventKind, args: [u64; 5]) {
    emit(kind, args);
    doorbell::ring(Doorbell::Event, 0);
}

/// Counts that the guest has held `n` objects against an invariant by itself.
pub fn checked(invariant: Invariant, n: u64) {
    shared::this_control().checks[invariant.index()].fetch_add(n, Ordering::Relaxed);
}

/// Tells the host that the guest itself saw an invariant broken.
pub fn violation(invariant: Invariant, cpu: u32, object: u64, seen: u64, expected: u64) {
    emit(EventKind::Violation, [invariant as u64, u64::from(cpu), object, seen, expected]);
}

/// As [`violation`], where nobody can wait for room. If there is none the event counts as dropped,
/// which the host reports by itself.
pub fn violation_in_interrupt(
    invariant: Invariant,
    cpu: u32,
    object: u64,
    seen: u64,
    expected: u64,
) {
    let args = [invariant as u64, u64::from(cpu), object, seen, expected];
    if !emit_now(EventKind::Violation, args) {
        shared::events(percpu_core::cpu::this_cpu_raw()).dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether this CPU has room for an event. Interrupts are masked, so that it keeps it until then.
pub fn has_room() -> bool {
    let ring = shared::events(percpu_core::cpu::this_cpu_raw());
    let is_full = || {
        let used = ring.head.load(Ordering::Relaxed) - ring.tail.load(Ordering::Acquire);
        used >= EVENT_RING_LEN as u64
    };
    // Where CPUs run one at a time the host reads when it is called, and not before.
    if cfg!(percpu_steps) && is_full() {
        doorbell::ring(Doorbell::Event, 0);
    }
    !is_full()
}

/// Tells the host of `kind` if there is room; says whether there was. From any context.
pub fn emit_now(kind: EventKind, args: [u64; 5]) -> bool {
    let _masked = irq::disable();
    let cpu = percpu_core::cpu::this_cpu_raw();
    let ring = shared::events(cpu);
    // Interrupts are masked, so this CPU is the ring's only writer until they are restored.
    let head = ring.head.load(Ordering::Relaxed);
    let room = has_room();
    if room {
        let seq = shared::header().event_seq.fetch_add(1, Ordering::SeqCst) + 1;
        let what = kind as u64 | u64::from(cpu) << 16 | u64::from(sched::current_row()) << 32;
        let words = [seq, tsc::now(), what, args[0], args[1], args[2], args[3], args[4]];
        let slot = &ring.slots[(head % EVENT_RING_LEN as u64) as usize];
        for (to, word) in slot.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
        ring.head.store(head + 1, Ordering::Release);
    }
    room
}
