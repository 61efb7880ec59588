//! What is judged at each plug: folds that lose nothing pass, each other is found; so is a CPU that a
//! sum misses while it goes down.

use std::mem::offset_of;

use percpu_core::view::CounterView;
use percpu_guest::abi::{ALL_ROWS, ControlBlock, CounterRole, CpuState, EventKind};

use super::super::Judge;
use super::broken;
use super::guest::Guest;

/// The ledger slot of the still counter.
const SLOT: u32 = 60;
const CPU: u32 = 1;

/// A guest whose first counter is a still one: 100 at first, 7 in the count, 3 and -5 in locals.
fn guest() -> (Guest, Judge, u64) {
    let mut guest = Guest::new();
    let counter = guest.counters[0];
    let view: CounterView = guest.mem.read_virt(counter).unwrap();
    let added = offset_of!(ControlBlock, irq_ledger) + 8 * SLOT as usize;
    guest.poke(guest.control(0, added), 7 + 3 - 5 - 100i64);
    let other: CounterView = guest.mem.read_virt(guest.counters[1]).unwrap();
    guest.poke(guest.copy(other.locals, CPU), 0i32);
    guest.emit(0, EventKind::CounterDestroy, [counter, 0, 0, 0, 0]);
    let role = CounterRole::Still as u64;
    guest.emit(0, EventKind::CounterInit, [counter, 100, SLOT.into(), ALL_ROWS, role]);
    let mut judge = guest.judge();
    judge.drain();
    judge.before_plug();
    (guest, judge, view.locals)
}

fn set_masks(guest: &Guest, online: u64, dying: u64) {
    guest.poke(guest.masks + 2 * 128, online);
    guest.poke(guest.masks + 4 * 128, dying);
    set_counted(guest, online | dying);
}

fn set_counted(guest: &Guest, counted: u64) {
    guest.poke(guest.masks + 7 * 128, counted);
}

fn go_down(guest: &Guest) {
    set_masks(guest, 0b0001, 0);
    let state = guest.control(CPU, offset_of!(ControlBlock, state));
    guest.poke(state, CpuState::Offline as u32);
}

/// Puts the CPU's local into the count, and more.
fn fold(guest: &Guest, locals: u64, more: i64) {
    guest.change(guest.copy(locals, CPU), |local: i32| {
        let count = guest.counters[0] + offset_of!(CounterView, count) as u64;
        guest.change(count, |count: i64| count + i64::from(local) + more);
        0
    });
}

#[test]
fn an_unplug_that_folds_passes() {
    let (guest, mut judge, locals) = guest();
    set_masks(&guest, 0b0001, 0b0010);
    judge.during_unplug();
    fold(&guest, locals, 0);
    judge.during_unplug();
    go_down(&guest);
    judge.after_unplug(CPU, Ok(()));
    assert_eq!(judge.violations(), []);
    for name in ["K2", "K3", "K5", "K6"] {
        assert!(judge.checks()[name] > 0, "{name}: {:?}", judge.checks());
    }
}

#[test]
fn a_fold_that_loses_or_doubles_is_found() {
    for more in [5, -5] {
        let (guest, mut judge, locals) = guest();
        fold(&guest, locals, more);
        go_down(&guest);
        judge.after_unplug(CPU, Ok(()));
        assert_eq!(broken(&judge), ["K3"]);
    }
}

#[test]
fn a_local_of_another_cpu_that_changes_meanwhile_is_found() {
    let (guest, mut judge, locals) = guest();
    fold(&guest, locals, 3);
    guest.poke(guest.copy(locals, 0), 0i32);
    go_down(&guest);
    judge.after_unplug(CPU, Ok(()));
    assert_eq!(broken(&judge), ["K3"]);
}

#[test]
fn a_cpu_that_is_not_folded_is_found() {
    let (guest, mut judge, _) = guest();
    go_down(&guest);
    judge.after_unplug(CPU, Ok(()));
    assert_eq!(broken(&judge), ["K3", "K5"]);
}

#[test]
fn a_dying_cpu_that_a_sum_misses_is_found() {
    let (guest, mut judge, _) = guest();
    // Another CPU is on its way too, so that the host knows that now is the time.
    set_masks(&guest, 0b0001, 0b1000);
    judge.during_unplug();
    assert_eq!(broken(&judge), ["K6"]);
}

#[test]
fn a_sum_is_not_judged_while_a_fold_is_under_way() {
    let (guest, mut judge, _) = guest();
    set_masks(&guest, 0b0001, 0b1000);
    let sequence = guest.counters[0] + offset_of!(CounterView, sequence) as u64;
    guest.poke(sequence, 1u64);
    judge.during_unplug();
    assert_eq!(judge.violations(), []);
    assert_eq!(judge.checks().get("K6"), None);
}

#[test]
fn a_cpu_that_leaves_the_counted_before_it_is_folded_is_found() {
    let (guest, mut judge, locals) = guest();
    set_masks(&guest, 0b0001, 0b0010);
    set_counted(&guest, 0b0001);
    judge.during_unplug();
    assert_eq!(broken(&judge), ["K6"]);
    fold(&guest, locals, 0);
    judge.during_unplug();
    assert_eq!(judge.violations().len(), 1, "folded: what is left is right");
}

#[test]
fn a_cpu_that_is_counted_after_its_death_is_found() {
    let (guest, mut judge, locals) = guest();
    fold(&guest, locals, 0);
    go_down(&guest);
    set_counted(&guest, 0b0011);
    judge.after_unplug(CPU, Ok(()));
    assert_eq!(broken(&judge), ["K6"]);
    assert_eq!(
        judge.violations()[0].detail,
        "CPU 1 went down but is still in the counted mask (0x3)"
    );
}

#[test]
fn a_cpu_that_is_online_and_not_counted_is_found() {
    let (guest, mut judge, _) = guest();
    set_masks(&guest, 0b0111, 0);
    set_counted(&guest, 0b0011);
    judge.after_plug(2, Ok(()));
    assert_eq!(broken(&judge), ["K6"]);
    assert_eq!(judge.violations()[0].cpu, Some(2));
}

#[test]
fn a_cpu_that_is_dying_for_ever_is_found() {
    let (guest, mut judge, locals) = guest();
    fold(&guest, locals, 0);
    go_down(&guest);
    set_masks(&guest, 0b0001, 0b0010);
    judge.after_unplug(CPU, Ok(()));
    assert_eq!(broken(&judge), ["K6"]);
}

#[test]
fn a_cpu_that_comes_up_may_add_what_it_says() {
    let (guest, mut judge, locals) = guest();
    let added = offset_of!(ControlBlock, irq_ledger) + 8 * SLOT as usize;
    guest.poke(guest.control(2, added), 9i64);
    guest.poke(guest.copy(locals, 2), 9i32);
    set_masks(&guest, 0b0111, 0);
    judge.after_plug(2, Ok(()));
    assert_eq!(judge.violations(), []);
    judge.before_plug();
    guest.poke(guest.copy(locals, 3), 1i32);
    set_masks(&guest, 0b1111, 0);
    judge.after_plug(3, Ok(()));
    assert_eq!(broken(&judge), ["K3"]);
}
