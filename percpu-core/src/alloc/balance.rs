//! The balance work: what a kernel thread does now and then, so that atomic allocations find
//! populated pages and unused memory goes back. Linux: `pcpu_balance_workfn`.

use core::sync::atomic::Ordering;

use super::Allocator;
use super::grow::{DetachedChunk, Growth};
use super::memory;
use super::state::EMPTY_PAGES_HIGH;
use crate::area::FirstChunk;
use crate::platform::Platform;
use crate::view::PAGE;

/// What [`Allocator::balance`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balanced {
    /// Wholly free chunks that were given back.
    pub freed_chunks: u32,
    /// Pages of a unit whose memory was given back, in chunks that stay.
    pub depopulated_pages: u32,
    /// Pages of a unit that got memory.
    pub populated_pages: u32,
    /// Whether memory for more pages was wanted and not to be had.
    pub out_of_memory: bool,
}

impl<P: Platform> Allocator<P> {
    /// Whether there is work for [`balance`](Self::balance): empty populated pages run short, an
    /// atomic allocation failed, or a free left memory unused. Costs one load.
    pub fn balance_wanted(&self) -> bool {
        self.balance_wanted.load(Ordering::Relaxed)
    }

    /// Drains the caches, frees all wholly free chunks but one, takes memory away from empty pages of
    /// chunks that have many, and gives memory to pages until atomic allocations find four empty
    /// ones. Sleeps.
    ///
    /// The first chunk and the reserved chunk are never given back, nor is a page of them.
    pub fn balance(&self) -> Balanced {
        let mut balanced = Balanced::default();
        let Some(first) = self.first.get() else { return balanced };
        // What comes up from here on is for the next time.
        self.balance_wanted.swap(false, Ordering::Acquire);
        self.leaks.refill();
        self.accounts.refill(first.nr_granules());
        let mut growth = self.growth.lock();
        self.drain_caches();
        self.free_excess_chunks(first, &mut growth, &mut balanced);
        self.reclaim(first, &mut growth, &mut balanced);
        // Chunks whose last area was freed while they were isolated are listed as free now.
        self.free_excess_chunks(first, &mut growth, &mut balanced);
        self.prepare_empty_pages(first, &mut growth, &mut balanced);
        balanced
    }

    fn free_excess_chunks(
        &self,
        first: &FirstChunk<P>,
        growth: &mut Growth,
        balanced: &mut Balanced,
    ) {
        loop {
            let mut state = self.state.lock();
            let Some(chunk) = state.excess_chunk() else { return };
            state.unlink(chunk);
            let base = state.chunk(chunk).base;
            self.index.remove(growth, base);
            drop(state);
            // A free of something that is no area may look at its ledger.
            self.wait_for_grace();
            // SAFETY: the chunk is free, so no area is in it, and it has left the list and the
            // index under the lock, and who found it there before is done with it. It is not the
            // first one, so it came from growth.
            drop(unsafe { DetachedChunk::take_over(first, chunk) });
            balanced.freed_chunks += 1;
        }
    }

    /// Depopulates empty pages, chunk by chunk, with the chunk isolated meanwhile: nothing is
    /// allocated from it, but areas may be freed.
    fn reclaim(&self, first: &FirstChunk<P>, _growth: &mut Growth, balanced: &mut Balanced) {
        let mut state = self.state.lock();
        while let Some(chunk) = state.reclaim_candidate() {
            state.isolate(chunk);
            let base = state.chunk(chunk).base;
            let mut from = 0;
            loop {
                if state.empty_pages() < EMPTY_PAGES_HIGH {
                    state.reintegrate(chunk);
                    break;
                }
                let Some(pages) = state.chunk(chunk).next_empty_populated(from) else {
                    if state.chunk(chunk).is_all_free() {
                        state.reintegrate(chunk);
                    } else {
                        state.sideline(chunk);
                    }
                    break;
                };
                state.mark_unpopulated(chunk, pages);
                drop(state);
                // SAFETY: the pages are marked as not populated. They get no area, because the
                // chunk is isolated, and no memory, because that takes the growth lock, which is
                // held: they cannot be populated or depopulated twice (regression A6).
                unsafe { memory::depopulate(first, base, pages) };
                balanced.depopulated_pages += pages.len();
                from = pages.end;
                state = self.state.lock();
            }
        }
    }

    /// Populates free pages until there are enough; after a failed atomic allocation, that many
    /// more.
    fn prepare_empty_pages(
        &self,
        first: &FirstChunk<P>,
        growth: &mut Growth,
        balanced: &mut Balanced,
    ) {
        let mut state = self.state.lock();
        let mut wanted = if self.atomic_failed.swap(false, Ordering::Relaxed) {
            EMPTY_PAGES_HIGH
        } else {
            EMPTY_PAGES_HIGH.saturating_sub(state.empty_pages())
        };
        while wanted != 0 {
            let Some((chunk, mut pages)) = state.unpopulated_pages() else {
                // A wholly free chunk without such pages has memory behind all its pages.
                let grow = !state.has_free_chunk();
                drop(state);
                if grow {
                    let count = wanted.min((first.unit_size / PAGE as usize) as u32);
                    match self.add_chunk(first, growth, count) {
                        Ok(()) => balanced.populated_pages += count,
                        Err(_) => balanced.out_of_memory = true,
                    }
                }
                return;
            };
            pages.end = pages.end.min(pages.start + wanted);
            let base = state.chunk(chunk).base;
            drop(state);
            // SAFETY: the pages have no memory, and the growth lock keeps it so.
            if unsafe { memory::populate(first, base, core::iter::once(pages)) }.is_err() {
                balanced.out_of_memory = true;
                return;
            }
            state = self.state.lock();
            state.mark_populated(chunk, pages);
            balanced.populated_pages += pages.len();
            wanted -= pages.len();
        }
    }
}
