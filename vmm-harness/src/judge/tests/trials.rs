//! What the judge says of trials: nothing where nothing changed, and what changed where it did.

use std::mem::offset_of;

use percpu_core::view::{CHUNK_IMMUTABLE, CacheView, ChunkView};
use percpu_guest::abi::{Resources, SharedHeader, Trial};

use super::super::TrialEnd;
use super::guest::Guest;
use super::{broken, look};

type Spoil = fn(&mut Guest);

/// What a refused free, or a growth that failed, may not leave behind.
const CHANGES: &[(&str, Spoil)] = &[
    ("an allocation bit", |g| g.flip(g.chunks[2].view.alloc_map, 1030)),
    ("a boundary bit", |g| g.flip(g.chunks[2].view.bound_map, 1030)),
    ("a live bit", |g| g.flip(g.chunks[2].view.live_map, 1030)),
    ("a page marked as populated", |g| g.flip(g.chunks[2].view.populated, 5)),
    ("a hint of a block", |g| g.change(g.chunks[2].view.blocks + 8, |hint: u32| hint ^ 1)),
    ("a count of a chunk", |g| {
        let at = g.chunks[2].address + offset_of!(ChunkView, free_bytes) as u64;
        g.change(at, |bytes: u32| bytes - 4);
    }),
    ("the granules in a cache", |g| {
        g.change(g.caches[1], |cache: CacheView| CacheView { held: cache.held + 1, ..cache });
    }),
    ("an area in a cache", |g| {
        g.change(g.caches[0], |mut cache: CacheView| {
            cache.shelves[3].areas.swap(0, 1);
            cache
        });
    }),
    ("a page that is mapped", |g| {
        let page = g.copy(g.chunks[2].ptr(5 * 1024), 3);
        g.map(page, 0x28_0000, false);
    }),
    ("a page frame that was not given back", |g| {
        let field = offset_of!(SharedHeader, resources) + offset_of!(Resources, frames);
        g.change(g.header(field), |frames: u64| frames + 1);
    }),
    ("the allocator's count of chunks", |g| {
        let at = g.allocator + offset_of!(percpu_core::view::AllocatorView, nr_chunks) as u64;
        g.change(at, |chunks: u32| chunks + 1);
    }),
];

fn end(trial: Trial, as_meant: u64) -> TrialEnd {
    TrialEnd { trial, tried: 20, as_meant, command: 0 }
}

#[test]
fn a_trial_that_changed_nothing_is_counted() {
    let guest = Guest::new();
    let mut judge = look(&guest);
    for trial in [Trial::RefusedFrees, Trial::FailedGrowth] {
        judge.before_trial(trial);
        judge.after_trial(&end(trial, 20));
    }
    assert_eq!(judge.violations(), []);
    assert_eq!(judge.checks()["I16"], 20);
    assert_eq!(judge.checks()["I17"], 1);
}

#[test]
fn whatever_a_trial_changed_is_found() {
    for (trial, invariant) in [(Trial::RefusedFrees, "I16"), (Trial::FailedGrowth, "I17")] {
        for (what, spoil) in CHANGES {
            let mut guest = Guest::new();
            let mut judge = look(&guest);
            judge.before_trial(trial);
            spoil(&mut guest);
            judge.after_trial(&end(trial, 20));
            assert_eq!(broken(&judge), [invariant], "{what}: {:#?}", judge.violations());
        }
    }
}

#[test]
fn statistics_may_count_what_was_refused() {
    let guest = Guest::new();
    let mut judge = look(&guest);
    judge.before_trial(Trial::RefusedFrees);
    guest.change(guest.caches[0], |cache: CacheView| CacheView {
        frees: cache.frees + 1,
        allocs: cache.allocs + 1,
        ..cache
    });
    judge.after_trial(&end(Trial::RefusedFrees, 20));
    assert_eq!(judge.violations(), []);
}

#[test]
fn a_free_that_did_not_end_as_specified_is_found() {
    let guest = Guest::new();
    let mut judge = look(&guest);
    judge.before_trial(Trial::RefusedFrees);
    judge.after_trial(&end(Trial::RefusedFrees, 19));
    assert_eq!(broken(&judge), ["I16"]);
}

#[test]
fn a_growth_that_had_enough_memory_may_change_what_it_likes() {
    let guest = Guest::new();
    let mut judge = look(&guest);
    judge.before_trial(Trial::FailedGrowth);
    guest.flip(guest.chunks[2].view.populated, 5);
    judge.after_trial(&end(Trial::FailedGrowth, 19));
    assert_eq!(judge.violations(), []);
}

#[test]
fn two_wholly_free_chunks_after_a_balance_are_one_too_many() {
    for (free, expected) in [(1, [].as_slice()), (2, ["I15"].as_slice())] {
        let guest = Guest::new();
        let mut judge = look(&guest);
        for chunk in [&guest.chunks[2], &guest.chunks[0]].into_iter().take(free) {
            for word in 0..chunk.taken.len() as u64 / 64 {
                guest.poke(chunk.view.alloc_map + 8 * word, 0u64);
            }
        }
        judge.after_trial(&end(Trial::Balance, 20));
        assert_eq!(broken(&judge), expected);
    }
}

#[test]
fn a_page_of_the_first_chunk_that_went_and_came_back_is_found() {
    let mut guest = Guest::new();
    let mut judge = look(&guest);
    // Mapped by a small page now, to another frame; what lies there does not matter to I15.
    let flags = guest.chunks[2].address + offset_of!(ChunkView, flags) as u64;
    guest.poke(flags, CHUNK_IMMUTABLE);
    judge.check_quiescent();
    let page = guest.copy(guest.chunks[2].ptr(3 * 1024), 1);
    guest.map(page, 0x28_0000, false);
    judge.check_quiescent();
    let went = judge.violations().iter().find(|v| v.detail.contains("depopulated meanwhile"));
    assert_eq!(went.map(|v| (v.invariant, v.cpu)), Some(("I15", Some(1))));
}

#[test]
fn a_page_of_the_first_chunk_is_missed_while_the_guest_runs() {
    let guest = Guest::new();
    let mut judge = look(&guest);
    judge.check_instant();
    assert_eq!(broken(&judge), [""; 0]);
    guest.flip(guest.chunks[0].view.populated, 4);
    judge.check_instant();
    assert_eq!(broken(&judge), ["I15"]);
}
