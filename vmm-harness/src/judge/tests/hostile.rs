//! Whatever bytes lie in guest memory, the judge neither panics nor hangs, and it says so.

use std::mem::size_of;
use std::time::{Duration, Instant};

use percpu_core::view::{
    AllocatorView, AreasView, BlockView, CacheView, ChunkView, CounterView, Roots,
};
use percpu_guest::abi::{CpuState, EventKind, PAGE_TABLES, SHARED, Shared};
use proptest::prelude::*;

use super::super::events::ring_address;
use super::super::layout::Layout;
use super::broken;
use super::guest::Guest;

/// Words that are likely to be followed: addresses of things, small numbers, and edges.
fn word(guest: &Guest, choice: u8, raw: u64) -> u64 {
    match choice % 9 {
        0 => raw,
        8 => guest.caches[raw as usize % 2] + raw % 64,
        1 => guest.chunks[raw as usize % 3].address,
        2 => guest.counters[raw as usize % 2],
        3 => raw % 0x1_0000,
        4 => u64::MAX - raw % 64,
        5 => guest.allocator + raw % 256,
        6 => SHARED + raw % size_of::<Shared>() as u64,
        _ => PAGE_TABLES + raw % 0x4000,
    }
}

/// A place that the judge reads from.
fn place(guest: &Guest, choice: u8, raw: u64) -> u64 {
    let (base, len) = match choice % 12 {
        0 => (Layout::roots_address(), size_of::<Roots>()),
        1 => (guest.allocator, size_of::<AllocatorView>()),
        2 => (guest.areas, size_of::<AreasView>()),
        3 => (guest.chunks[raw as usize % 3].address, size_of::<ChunkView>()),
        4 => (guest.counters[raw as usize % 2], size_of::<CounterView>()),
        5 => (guest.slots, 17 * 16),
        6 => (ring_address(raw as u32 % 4), 4096),
        7 => (SHARED, 8192),
        8 => (guest.chunks[raw as usize % 3].view.blocks, 8 * size_of::<BlockView>()),
        9 => (guest.cache_table, 4 * 8),
        10 => (guest.caches[raw as usize % 2], size_of::<CacheView>()),
        _ => (PAGE_TABLES, 0x3000),
    };
    base + (raw >> 8) % (len as u64 / 8) * 8
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn corrupted_words_neither_panic_nor_hang(
        early in prop::collection::vec((any::<u8>(), any::<u64>(), any::<u8>(), any::<u64>()), 0..4),
        late in prop::collection::vec((any::<u8>(), any::<u64>(), any::<u8>(), any::<u64>()), 1..12),
    ) {
        let guest = Guest::new();
        let mut judge = guest.judge();
        let begin = Instant::now();
        let spoil = |words: &[(u8, u64, u8, u64)]| {
            for (at, where_in, kind, raw) in words {
                let at = place(&guest, *at, *where_in);
                guest.mem.store_u64(at, word(&guest, *kind, *raw)).unwrap();
            }
        };
        spoil(&early);
        judge.drain();
        spoil(&late);
        judge.check_instant();
        judge.check_quiescent();
        judge.drain();
        judge.violations().iter().for_each(|v| assert!(!v.to_string().is_empty()));
        prop_assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn events_of_any_kind_neither_panic_nor_hang(
        events in prop::collection::vec(
            (0u32..4, 0u16..18, any::<u8>(), prop::array::uniform5((any::<u8>(), any::<u64>()))), 1..40),
    ) {
        let mut guest = Guest::new();
        let mut judge = guest.judge();
        for (cpu, kind, order, args) in events {
            let args = args.map(|(choice, raw)| if choice & 8 == 0 { raw % 5 } else { word(&guest, choice, raw) });
            match EventKind::from_code(kind) {
                Some(kind) if order > 16 => guest.emit(cpu, kind, args),
                _ => guest.write_event(cpu, u64::from(order), kind, cpu as u16, args),
            }
        }
        judge.drain();
        judge.check_instant();
        judge.check_quiescent();
    }
}

#[test]
fn a_shared_region_full_of_garbage_is_reported() {
    for pattern in [0xff, 0x41, 0x01] {
        let guest = Guest::new();
        let mut judge = guest.judge();
        judge.drain();
        let garbage = vec![pattern; size_of::<Shared>()];
        guest.mem.write(SHARED, &garbage).unwrap();
        judge.drain();
        judge.check_instant();
        judge.check_quiescent();
        assert!(broken(&judge).contains(&"header"), "{:?}", broken(&judge));
        assert!(broken(&judge).contains(&"events"), "{:?}", broken(&judge));
    }
}

#[test]
fn roots_that_lead_nowhere_are_a_finding_at_boot() {
    let guest = Guest::new();
    guest.mem.store_u64(Layout::roots_address() + 24, 1 << 45).unwrap();
    let mut judge = guest.judge();
    judge.drain();
    judge.check_instant();
    judge.check_quiescent();
    assert_eq!(broken(&judge), ["memory"]);
}

#[test]
fn violations_are_bounded() {
    let mut guest = Guest::new();
    let mut judge = guest.judge();
    for n in 0..1000u64 {
        let args = [1, n, CpuState::Online as u64, n, n + 1];
        guest.emit(0, EventKind::Violation, [14, args[0], n, args[3], args[4]]);
        judge.drain();
    }
    assert_eq!(judge.violations().len(), 64);
    assert_eq!(judge.suppressed(), 1000 - 64);
}
