//! The local APIC, by memory-mapped registers: they can be reached from both rings.

use core::ptr::without_provenance_mut;

use crate::abi::{VECTOR_IPI, VECTOR_TIMER};

const BASE: usize = 0xfee0_0000;
/// Address of the end-of-interrupt register; used by the interrupt stub.
pub const EOI: usize = BASE + 0xb0;
const SPURIOUS: usize = 0xf0;
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
const LVT_TIMER: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_DIVIDE: usize = 0x3e0;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const SPURIOUS_VECTOR: u32 = 0x7f;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;
/// KVM's virtual LAPIC timer counts nanoseconds.
const TICKS_PER_US: u32 = 1000;

const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;
const LEVEL_ASSERT: u32 = 1 << 14;

fn write(register: usize, value: u32) {
    // SAFETY: the LAPIC's page is mapped, and its registers are 32 bits wide.
    unsafe { without_provenance_mut::<u32>(BASE + register).write_volatile(value) };
}

/// Switches this CPU's LAPIC on, with the timer stopped.
pub fn enable() {
    write(SPURIOUS, SOFTWARE_ENABLE | SPURIOUS_VECTOR);
    write(LVT_TIMER, u32::from(VECTOR_TIMER));
    write(TIMER_DIVIDE, DIVIDE_BY_1);
}

/// Switches this CPU's LAPIC off, before the CPU is parked.
pub fn disable() {
    write(LVT_TIMER, MASKED);
    write(SPURIOUS, SPURIOUS_VECTOR);
}

/// One timer interrupt, `us` microseconds from now.
pub fn arm_timer(us: u32) {
    write(TIMER_INITIAL, us.saturating_mul(TICKS_PER_US));
}

fn send(cpu: u32, low: u32) {
    write(ICR_HIGH, cpu << 24);
    write(ICR_LOW, low);
}

/// Interrupts `cpu` with the kernel's own IPI. To be called with interrupts masked, since the
/// command register is two words.
pub fn send_ipi(cpu: u32) {
    send(cpu, u32::from(VECTOR_IPI) | LEVEL_ASSERT);
}

/// Resets `cpu` and starts it in real mode at the page `entry`. Interrupts masked, as above.
pub fn send_init_sipi(cpu: u32, entry: u64) {
    send(cpu, DELIVERY_INIT | LEVEL_ASSERT);
    send(cpu, DELIVERY_STARTUP | LEVEL_ASSERT | (entry >> 12) as u32);
}
