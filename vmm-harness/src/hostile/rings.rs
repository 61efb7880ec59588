//! Event rings full of anything: what the judge makes of them over several rounds, in which the guest
//! goes on writing.

use std::mem::{offset_of, size_of};

use percpu_guest::abi::{EVENT_RING_LEN, Event, EventRing};

use super::input::Input;
use super::memory::{Changes, guarded};
use crate::judge::specimen::{self, CPUS, Guest};
use crate::judge::{EventLine, Judge, ring_address};
use crate::memory::GuestMem;

/// Rounds of the guest and the judge.
const MOST_ROUNDS: u32 = 16;

thread_local! {
    static GUEST: Guest = Guest::within(guarded(specimen::MEMORY));
}

/// Each round: how often each ring's words are written and with what, then events as bytes. The first byte
/// says whether the guest has announced anything before.
pub(super) fn run(bytes: &[u8]) {
    GUEST.with(|guest| attack(guest, &mut Input::new(bytes)));
}

fn attack(guest: &Guest, input: &mut Input<'_>) {
    let changes = Changes::of(guest.mem.clone());
    let heads = offset_of!(EventRing, slots);
    (0..CPUS).for_each(|cpu| changes.keep(ring_address(cpu), heads));
    if input.byte() & 1 != 0 {
        (0..CPUS).for_each(|cpu| changes.write(ring_address(cpu), &vec![0; heads]));
    }
    let mut judge = guest.judge();
    judge.record();
    for _ in 0..MOST_ROUNDS {
        if input.is_empty() {
            break;
        }
        let (ring, order) = (ring_address(u32::from(input.byte()) % CPUS), input.byte());
        write(&changes, ring, order, input);
        judge.drain();
        if order & 0x80 != 0 {
            judge.check_instant();
            judge.check_quiescent();
        }
    }
    tell(&mut judge);
}

/// Fills slots from the ring's head on, and writes its words, true or not.
fn write(changes: &Changes, ring: u64, order: u8, input: &mut Input<'_>) {
    let mem: &GuestMem = changes.mem();
    let Ok(head) = mem.load_u64(ring) else { return };
    let count = u64::from(order & 0x1f);
    for n in 0..count {
        let slot = head.wrapping_add(n) % EVENT_RING_LEN as u64 * size_of::<Event>() as u64;
        let at = ring + offset_of!(EventRing, slots) as u64 + slot;
        changes.write(at, input.take(size_of::<Event>()));
    }
    let word = |field: usize, value: u64| changes.write(ring + field as u64, &value.to_le_bytes());
    let head = if order & 0x20 == 0 { head.wrapping_add(count) } else { input.word() };
    word(offset_of!(EventRing, head), head);
    if order & 0x40 != 0 {
        word(offset_of!(EventRing, dropped), input.word());
        word(offset_of!(EventRing, tail), input.word());
    }
}

/// All that there is to say.
fn tell(judge: &mut Judge) {
    for event in judge.take_recorded() {
        assert!(!EventLine(&event).to_string().is_empty());
    }
    for cpu in 0..=CPUS {
        for event in judge.history(cpu) {
            assert!(!EventLine(&event).to_string().is_empty());
        }
    }
    for violation in judge.violations() {
        assert!(!violation.to_string().is_empty());
    }
}
