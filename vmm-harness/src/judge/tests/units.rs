//! CPUs that get their unit later than others, or never.

use std::mem::offset_of;

use percpu_guest::abi::{AreaContent, ControlBlock, CpuState, EventKind};

use super::guest::{Guest, TEMPLATE};
use super::{Judge, Quiescent, broken, look};

/// The CPU that has no unit.
const LATE: u32 = 3;

/// A sound guest in which CPU 3 has no unit: no offset, and no memory in mapped space. Says where
/// that was.
fn without_unit() -> (Guest, (u64, u64)) {
    let mut guest = Guest::new();
    guest.poke(guest.offsets + 8 * u64::from(LATE), 0u64);
    // What the sum had there is somewhere else.
    guest.poke(guest.copy(TEMPLATE + 8, LATE), 0u64);
    guest.change(guest.copy(TEMPLATE + 8, 0), |part: u64| part.wrapping_sub(1));
    let page = guest.copy(guest.chunks[2].ptr(0), LATE);
    let frame = guest.mem.address_space().translate(page).unwrap();
    guest.unmap(page);
    (guest, (page, frame))
}

/// Gives it one; what is in it was zero.
fn give_unit(guest: &mut Guest, (page, frame): (u64, u64), judge: &Judge) {
    guest.map(page, frame, false);
    for area in judge.shadow().areas.values() {
        (0..area.size.into()).for_each(|i| guest.poke(guest.copy(area.ptr, LATE) + i, 0u8));
    }
    let first: u64 = guest.mem.read(guest.offsets).unwrap();
    let unit: u64 = guest.mem.read(guest.units + 8 * u64::from(LATE)).unwrap();
    guest.poke(guest.offsets + 8 * u64::from(LATE), first + unit);
}

fn start(guest: &mut Guest) {
    let args = [LATE.into(), CpuState::Starting as u64, 0, 0, 0];
    guest.emit(0, EventKind::CpuChanged, args);
}

fn look_again(judge: &mut Judge) {
    judge.drain();
    judge.check_instant();
    assert_eq!(judge.check_quiescent(), Quiescent::Checked);
}

#[test]
fn a_cpu_without_a_unit_is_not_judged_until_it_has_one() {
    let (mut guest, memory) = without_unit();
    let mut judge = look(&guest);
    judge.check_instant();
    assert_eq!(judge.violations(), []);
    let before = judge.checks()["I14"];

    give_unit(&mut guest, memory, &judge);
    start(&mut guest);
    look_again(&mut judge);
    assert_eq!(judge.violations(), [], "zero where others have the pattern of an earlier fill");
    let areas = judge.shadow().areas.values().filter(|area| area.content == AreaContent::Zero);
    assert_eq!(judge.checks()["I14"] - before, 4 * areas.count() as u64);

    // From here on it is a CPU like any other.
    guest.poke(guest.copy(guest.chunks[0].ptr(300), LATE) + 12, 0x51u8);
    look_again(&mut judge);
    assert_eq!(broken(&judge), ["I14"]);
}

#[test]
fn a_late_copy_is_all_zero_or_all_pattern() {
    let (mut guest, memory) = without_unit();
    let mut judge = look(&guest);
    give_unit(&mut guest, memory, &judge);
    start(&mut guest);
    guest.poke(guest.copy(guest.chunks[0].ptr(1020), LATE) + 60, 1u32);
    look_again(&mut judge);
    assert_eq!(broken(&judge), ["I1"]);
}

#[test]
fn what_is_filled_after_the_cpu_started_is_filled_there_too() {
    let (mut guest, memory) = without_unit();
    let mut judge = look(&guest);
    give_unit(&mut guest, memory, &judge);
    start(&mut guest);
    judge.drain();
    let ptr = guest.chunks[0].ptr(1020);
    let area = judge.shadow().areas[&ptr];
    for content in [AreaContent::Any, AreaContent::Pattern] {
        guest.emit(1, EventKind::Filled, [ptr, 0, 0, content as u64, area.seed.into()]);
    }
    look_again(&mut judge);
    assert_eq!(broken(&judge), ["I1"]);
}

#[test]
fn a_cpu_that_had_its_unit_at_boot_has_every_pattern() {
    let guest = Guest::new();
    let ptr = guest.chunks[0].ptr(1020);
    (0..64).for_each(|i| guest.poke(guest.copy(ptr, LATE) + i, 0u8));
    assert_eq!(broken(&look(&guest)), ["I1"]);
}

#[test]
fn a_cpu_that_was_online_without_a_unit_is_found_at_any_instant() {
    let (guest, _) = without_unit();
    let mut judge = guest.judge();
    judge.drain();
    guest.poke(guest.control(LATE, offset_of!(ControlBlock, onlines)), 2u64);
    judge.check_instant();
    assert_eq!(broken(&judge), ["I13"]);
    assert_eq!(
        judge.violations()[0].detail,
        "CPU 3 has been online 2 times, but per_cpu_offset[3] is 0: it has no unit"
    );
}

#[test]
fn a_unit_never_goes_and_is_where_it_belongs() {
    let guest = Guest::new();
    let mut judge = guest.judge();
    judge.drain();
    guest.poke(guest.offsets + 8 * u64::from(LATE), 0u64);
    judge.check_instant();
    assert_eq!(broken(&judge), ["I18"]);

    let (guest, _) = without_unit();
    let mut judge = guest.judge();
    judge.drain();
    let other: u64 = guest.mem.read(guest.offsets + 8).unwrap();
    guest.poke(guest.offsets + 8 * u64::from(LATE), other);
    judge.check_instant();
    assert_eq!(broken(&judge), ["I18"]);
}
