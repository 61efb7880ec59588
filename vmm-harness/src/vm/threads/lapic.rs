//! The local APIC of a CPU, as far as the guest uses it: interrupts that are raised, the timer, IPIs.
//!
//! A raised interrupt is a bit. The signal that follows it only says that there is something to look at,
//! and is sent by whoever sets the first bit; so however many are raised, one signal is on its way. The
//! look is taken by the CPU's own thread, when the signal comes in the guest, when the CPU enters the
//! guest, and before it idles. While the thread is not in the guest the signal waits.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::super::kick;
use super::signals;
use super::timer::Timer;

/// Vectors that have a bit: 64 from here on.
pub(super) const FIRST_VECTOR: u32 = 0x40;

const SPURIOUS: u64 = 0xf0;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const TIMER_INITIAL: u64 = 0x380;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const DELIVERY: u32 = 7 << 8;
const FIXED: u32 = 0;

/// One CPU's.
#[derive(Debug, Default)]
pub(super) struct Lapic {
    /// Interrupts that are raised and not delivered yet, bit 0 = [`FIRST_VECTOR`].
    raised: AtomicU64,
    /// The guest has switched it on.
    enabled: AtomicBool,
    /// The timer's entry of the vector table.
    timer: AtomicU32,
    /// Upper half of the command register.
    target: AtomicU32,
    /// The kernel's number of the thread that is this CPU, 0 before there is one.
    thread: AtomicI32,
}

/// What a store asked for that is somebody else's to do.
pub(super) enum Asked {
    Nothing,
    /// Of the CPU with this number.
    Interrupt(u32, u32),
    /// A delivery mode that no CPU here knows: those that start CPUs in real mode.
    Unknown,
}

impl Lapic {
    /// As it is when its CPU begins.
    pub(super) fn reset(&self) {
        self.enabled.store(false, Ordering::Relaxed);
        self.timer.store(MASKED, Ordering::Relaxed);
        self.raised.store(0, Ordering::Relaxed);
    }

    /// Says which thread the CPU is.
    pub(super) fn is_on(&self, thread: libc::pid_t) {
        self.thread.store(thread, Ordering::Release);
    }

    /// Raises an interrupt. One that is switched off loses it, as the real one does.
    pub(super) fn raise(&self, vector: u32) {
        let bit = vector.wrapping_sub(FIRST_VECTOR);
        if bit >= u64::BITS || !self.enabled.load(Ordering::Acquire) {
            return;
        }
        // What the sender wrote before is seen by the handler that takes the bit.
        if self.raised.fetch_or(1 << bit, Ordering::AcqRel) == 0 {
            let thread = self.thread.load(Ordering::Acquire);
            if thread != 0 {
                kick::send(thread, signals::nudge());
            }
        }
    }

    /// The timer has run out, on the CPU's own thread.
    pub(super) fn expired(&self) {
        let timer = self.timer.load(Ordering::Relaxed);
        let bit = (timer & 0xff).wrapping_sub(FIRST_VECTOR);
        if timer & MASKED == 0 && bit < u64::BITS && self.enabled.load(Ordering::Relaxed) {
            self.raised.fetch_or(1 << bit, Ordering::AcqRel);
        }
    }

    /// Whether there is anything to take.
    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire) != 0
    }

    /// Takes what is raised.
    pub(super) fn take(&self) -> u64 {
        match self.raised.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.raised.swap(0, Ordering::AcqRel),
        }
    }

    /// The CPU has written a register.
    pub(super) fn write(&self, register: u64, value: u32, timer: Option<&Timer>) -> Asked {
        match register {
            SPURIOUS => self.enabled.store(value & SOFTWARE_ENABLE != 0, Ordering::Release),
            LVT_TIMER => self.timer.store(value, Ordering::Relaxed),
            // It counts nanoseconds, as KVM's does.
            TIMER_INITIAL => {
                if let Some(timer) = timer {
                    timer.arm(value.into());
                }
            }
            ICR_HIGH => self.target.store(value >> 24, Ordering::Relaxed),
            ICR_LOW if value & DELIVERY == FIXED => {
                return Asked::Interrupt(self.target.load(Ordering::Relaxed), value & 0xff);
            }
            ICR_LOW => return Asked::Unknown,
            _ => {}
        }
        Asked::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lapic_that_is_off_loses_interrupts() {
        let lapic = Lapic::default();
        lapic.reset();
        lapic.raise(0x42);
        assert_eq!(lapic.take(), 0);
        lapic.write(SPURIOUS, SOFTWARE_ENABLE | 0x7f, None);
        lapic.expired();
        assert_eq!(lapic.take(), 0, "the timer's entry is masked");
        lapic.write(LVT_TIMER, 0x41, None);
        lapic.expired();
        lapic.raise(0x40);
        lapic.raise(0x20);
        lapic.raise(0x80);
        assert_eq!(lapic.take(), 0b11);
        assert_eq!(lapic.take(), 0);
        lapic.write(SPURIOUS, 0x7f, None);
        lapic.raise(0x42);
        assert_eq!(lapic.take(), 0);
    }

    #[test]
    fn a_command_names_its_target_and_vector() {
        let lapic = Lapic::default();
        lapic.write(ICR_HIGH, 5 << 24, None);
        assert!(matches!(lapic.write(ICR_LOW, 0x42 | 1 << 14, None), Asked::Interrupt(5, 0x42)));
        assert!(matches!(lapic.write(ICR_LOW, 6 << 8, None), Asked::Unknown));
    }
}
