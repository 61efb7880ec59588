//! The event rings: order, loss, corruption, and what the orchestrator is told.

use std::mem::offset_of;

use percpu_guest::abi::{CpuState, EVENT_RING_LEN, EventKind, EventRing, PlugError, SharedHeader};

use super::super::events::ring_address;
use super::super::{Quiescent, Signal};
use super::broken;
use super::guest::Guest;

#[test]
fn events_wait_for_the_one_with_the_number_before() {
    let mut guest = Guest::new();
    let mut judge = guest.judge();
    judge.drain();
    // CPU 1 has a ticket and has not written its event yet.
    guest.skip_seq();
    let missing = 1 + last(&judge);
    guest.emit(0, EventKind::PlugDone, [2, 0, 5, 0, 0]);
    assert_eq!(judge.drain(), []);
    assert_eq!(
        judge.check_quiescent(),
        Quiescent::NotYet(format!("event {missing} is not written yet"))
    );
    guest.write_event(1, missing, EventKind::CpuChanged as u16, 1, [2, 2, 0, 0, 0]);
    assert_eq!(
        judge.drain(),
        [
            Signal::CpuChanged { cpu: 2, state: CpuState::Online },
            Signal::PlugDone { cpu: 2, result: Ok(()), command: 5 },
        ]
    );
    assert_eq!(judge.violations(), []);
    assert_eq!(judge.shadow().max_online, 3);
}

fn last(judge: &super::Judge) -> u64 {
    judge.shadow().now.0
}

#[test]
fn a_guest_that_boots_and_plugs_gives_signals() {
    let mut guest = Guest::new();
    let mut judge = guest.judge();
    assert!(judge.drain().contains(&Signal::Booted));
    guest.emit(0, EventKind::UnplugDone, [9, PlugError::NoSuchCpu as u64, 1, 0, 0]);
    guest.emit(0, EventKind::TestDone, [0, 0, 0, 0, 0]);
    assert_eq!(
        judge.drain(),
        [
            Signal::UnplugDone { cpu: 9, result: Err(PlugError::NoSuchCpu), command: 1 },
            Signal::TestDone { passed: false },
        ]
    );
    // Signals that a look comes across are kept for the next drain.
    guest.emit(0, EventKind::TestDone, [1, 0, 0, 0, 0]);
    judge.check_quiescent();
    assert_eq!(judge.drain(), [Signal::TestDone { passed: true }]);
}

#[test]
fn lost_events_are_one_finding_and_end_the_comparison_with_the_shadow() {
    let mut guest = Guest::new();
    let mut judge = guest.judge();
    judge.drain();
    // An area comes to be unseen.
    guest.skip_seq();
    guest.mem.store_u64(ring_address(1) + offset_of!(EventRing, dropped) as u64, 1).unwrap();
    let ptr = guest.chunks[0].ptr(300);
    guest.emit(0, EventKind::Free, [ptr, 0, 0, 0, 0]);
    judge.drain();
    assert_eq!(judge.check_quiescent(), Quiescent::Checked);
    assert_eq!(broken(&judge), ["events"]);
    assert_eq!(judge.violations()[0].cpu, Some(1));
    assert_eq!(judge.violations()[0].times, 1);
}

#[test]
fn a_ring_whose_head_makes_no_sense_is_not_read() {
    let guest = Guest::new();
    let mut judge = guest.judge();
    judge.drain();
    let head = guest.mem.load_u64(ring_address(0)).unwrap();
    for wrong in [head - 1, head + EVENT_RING_LEN as u64 + 1, u64::MAX] {
        guest.mem.store_u64(ring_address(0), wrong).unwrap();
        judge.drain();
        assert_eq!(broken(&judge), ["events"]);
    }
    assert_eq!(judge.violations().len(), 1);
}

#[test]
fn an_event_number_is_used_once() {
    let guest = Guest::new();
    let mut judge = guest.judge();
    judge.drain();
    guest.write_event(0, 1, EventKind::TestDone as u16, 0, [0; 5]);
    assert_eq!(judge.drain(), []);
    assert_eq!(broken(&judge), ["events"]);
}

#[test]
fn two_events_with_one_number_are_found() {
    let guest = Guest::new();
    let mut judge = guest.judge();
    judge.drain();
    let next = last(&judge) + 1;
    for cpu in 0..2 {
        guest.write_event(cpu, next, EventKind::TestDone as u16, cpu as u16, [0; 5]);
    }
    judge.drain();
    assert_eq!(broken(&judge), ["events"]);
}

#[test]
fn an_event_of_another_cpu_in_a_ring_is_found() {
    let guest = Guest::new();
    let mut judge = guest.judge();
    judge.drain();
    guest.write_event(0, last(&judge) + 1, EventKind::TestDone as u16, 3, [0; 5]);
    assert_eq!(judge.drain(), []);
    assert_eq!(broken(&judge), ["events"]);
}

#[test]
fn a_ring_is_emptied_again_and_again() {
    let mut guest = Guest::new();
    let mut judge = guest.judge();
    let ptr = 0x7000_0000;
    for _ in 0..3 * EVENT_RING_LEN as u64 / 8 {
        for _ in 0..4 {
            guest.emit(1, EventKind::Alloc, [ptr, 8, 8, 2, 0]);
            guest.emit(1, EventKind::Free, [ptr, 0, 0, 0, 0]);
        }
        judge.drain();
    }
    assert_eq!(judge.violations(), []);
    let head = guest.mem.load_u64(ring_address(1)).unwrap();
    let tail = ring_address(1) + offset_of!(EventRing, tail) as u64;
    assert_eq!(guest.mem.load_u64(tail), Ok(head));
    assert!(head > 2 * EVENT_RING_LEN as u64);
    assert_eq!(judge.history(1).len(), 32);
}

#[test]
fn a_busy_guest_is_not_judged() {
    let guest = Guest::new();
    let mut judge = guest.judge();
    judge.drain();
    guest.poke(guest.header(offset_of!(SharedHeader, busy)), 3u32);
    assert!(matches!(judge.check_quiescent(), Quiescent::NotYet(_)));
    guest.poke(guest.header(offset_of!(SharedHeader, busy)), 0u32);
    guest.poke(guest.allocator, 1u32);
    assert_eq!(judge.check_quiescent(), Quiescent::NotYet("the allocator's lock is held".into()));
}
