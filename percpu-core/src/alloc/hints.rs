//! What is known of the free granules of a block, or of a whole chunk, without looking at the bits.
//! Linux: `struct pcpu_block_md`.
//!
//! After every operation
//! - `first_free`, `left_free`, `right_free` and `contig_hint` are exact (I5, I6, I7);
//! - `scan_hint`, where it is not 0, is a real free run that precedes the contig run, is smaller
//!   than it, and **no run before the contig run is longer** (I8). A search for more than
//!   `scan_hint` granules therefore begins at the contig run. 0 says that nothing is known.
//!
//! # Implementation
//!
//! Giving a range back makes one longer run of it and its neighbours, whose length decides alone
//! what becomes of the hints. Taking a range out of the contig run is the hard case: what is left of
//! it may no longer be the longest. The lengths of the other runs are bounded from what is known
//! (the scan hint, the distance to the edges); only when the bound does not decide are all runs
//! looked at, which is called a survey.

use super::bitmap::Run;
use super::survey::Survey;
use crate::view::BlockView;

impl BlockView {
    /// The hints of `nr_bits` granules that are all free.
    pub(crate) const fn all_free(nr_bits: u32) -> Self {
        Self {
            scan_hint: 0,
            scan_hint_start: 0,
            contig_hint: nr_bits,
            contig_hint_start: 0,
            left_free: nr_bits,
            right_free: nr_bits,
            first_free: 0,
            nr_bits,
        }
    }

    /// Whether all granules are free.
    #[inline]
    pub(crate) fn is_all_free(&self) -> bool {
        self.contig_hint == self.nr_bits
    }

    /// The longest free run; empty if nothing is free.
    #[inline]
    pub(crate) fn contig(&self) -> Run {
        Run { start: self.contig_hint_start, end: self.contig_hint_start + self.contig_hint }
    }

    /// The run that the scan hint names; empty if none is known.
    #[inline]
    pub(crate) fn scan(&self) -> Run {
        Run { start: self.scan_hint_start, end: self.scan_hint_start + self.scan_hint }
    }

    /// Where a search for `len` granules begins: no run before it is long enough.
    #[inline]
    pub(crate) fn search_start(&self, len: u32) -> u32 {
        if self.scan_hint != 0 && len > self.scan_hint {
            self.contig_hint_start
        } else {
            self.first_free
        }
    }

    /// Records that `taken`, which lay within one free run, is no longer free.
    ///
    /// `first_free` finds the first free granule after `taken`; `survey` looks at all runs. Both
    /// see the state after the change.
    #[inline]
    pub(crate) fn take(
        &mut self,
        taken: Run,
        first_free: impl FnOnce() -> u32,
        survey: impl FnOnce() -> Survey,
    ) {
        let contig = self.contig();
        if contig.start <= taken.start && taken.start < contig.end {
            self.shrink_contig(contig, taken, survey);
        } else if self.scan().start <= taken.start && taken.start < self.scan().end {
            self.set_scan(Run::EMPTY);
        }
        if taken.start < self.left_free {
            self.left_free = taken.start;
        }
        if taken.end > self.nr_bits - self.right_free {
            self.right_free = self.nr_bits - taken.end;
        }
        if taken.start == self.first_free {
            self.first_free = first_free();
        }
    }

    fn shrink_contig(&mut self, contig: Run, taken: Run, survey: impl FnOnce() -> Survey) {
        let left = Run { start: contig.start, end: taken.start };
        let right = Run { start: taken.end, end: contig.end };
        let longer = if left.len() >= right.len() { left } else { right };
        // No run before the contig run is longer than this; at least one taken granule parts them.
        let before = if self.first_free >= contig.start {
            0
        } else if self.scan_hint != 0 {
            self.scan_hint
        } else {
            contig.start - self.first_free - 1
        };
        let after = (self.nr_bits - contig.end).saturating_sub(1);
        if longer.len() < after || (before != 0 && longer.len() <= before) {
            let Survey { contig, scan } = survey();
            self.set_contig(contig);
            self.set_scan(scan);
            return;
        }
        self.set_contig(longer);
        if longer == right && !left.is_empty() && left.len() >= before {
            self.set_scan(left);
        }
    }

    /// Records that a range is free again and that `run` is the whole free run it is part of.
    #[inline]
    pub(crate) fn give_back(&mut self, run: Run) {
        let (contig, scan) = (self.contig(), self.scan());
        let none_before_contig = self.first_free >= contig.start;
        if run.start == 0 {
            self.left_free = run.end;
        }
        if run.end == self.nr_bits {
            self.right_free = self.nr_bits - run.start;
        }
        self.first_free = self.first_free.min(run.start);

        // On which side of the contig run the others lie is anybody's guess: no branches on that.
        if run.len() < contig.len() {
            let is_before = run.start < contig.start;
            let is_longest_before =
                none_before_contig | (!scan.is_empty() & (run.len() >= scan.len()));
            if is_before & is_longest_before {
                self.set_scan(run);
            }
        } else if run.len() == contig.len() {
            // The first of several; the scan run, if that is not before it now, is not known.
            let start = run.start.min(contig.start);
            let is_before = u32::from(scan.start < start);
            self.contig_hint_start = start;
            self.scan_hint *= is_before;
            self.scan_hint_start *= is_before;
        } else if run.start > contig.end && !contig.is_empty() {
            // All before the old contig run is smaller, all behind it no longer.
            self.set_contig(run);
            self.set_scan(contig);
        } else {
            // The contig run begins earlier now, or has grown where it was: the scan run may be
            // part of it, or lie behind it.
            self.set_contig(run);
            if scan.start >= run.start {
                self.set_scan(Run::EMPTY);
            }
        }
    }

    #[inline]
    fn set_contig(&mut self, run: Run) {
        self.contig_hint = run.len();
        self.contig_hint_start = if run.is_empty() { 0 } else { run.start };
    }

    #[inline]
    fn set_scan(&mut self, run: Run) {
        self.scan_hint = run.len();
        self.scan_hint_start = if run.is_empty() { 0 } else { run.start };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bitmap;
    use super::*;
    use crate::scale::{INTERPRETED, cases, scaled};

    const BITS: u32 = 256;

    /// Checks every hint against the bits.
    fn check(md: &BlockView, words: &[u64]) {
        let bits = md.nr_bits;
        let runs: Vec<Run> = bitmap::free_runs(words, 0, bits).collect();
        let longest = runs.iter().map(|r| r.len()).max().unwrap_or(0);
        assert_eq!(md.contig_hint, longest, "{md:?} {runs:?}");
        assert!(longest == 0 || runs.contains(&md.contig()), "{md:?} {runs:?}");
        let (first, last) = (runs.first(), runs.last());
        assert_eq!(md.first_free, first.map_or(bits, |r| r.start));
        assert_eq!(md.left_free, first.filter(|r| r.start == 0).map_or(0, |r| r.end));
        assert_eq!(md.right_free, last.filter(|r| r.end == bits).map_or(0, |r| r.len()));
        if md.scan_hint != 0 {
            assert!(runs.contains(&md.scan()), "{md:?} {runs:?}");
            assert!(md.scan_hint < md.contig_hint, "{md:?} {runs:?}");
            let before = runs.iter().filter(|r| r.start < md.contig_hint_start);
            assert_eq!(before.map(|r| r.len()).max(), Some(md.scan_hint), "{md:?} {runs:?}");
        }
    }

    fn take(md: &mut BlockView, words: &mut [u64], taken: Run) {
        bitmap::set(words, taken.start, taken.end);
        let (words, bits) = (&*words, md.nr_bits);
        md.take(
            taken,
            || bitmap::next_clear(words, taken.end, bits),
            || {
                let mut survey = Survey::default();
                bitmap::free_runs(words, 0, bits).for_each(|run| survey.see(run));
                survey
            },
        );
    }

    fn give_back(md: &mut BlockView, words: &mut [u64], run: Run) {
        bitmap::clear(words, run.start, run.end);
        let start = bitmap::run_start(words, 0, run.start);
        let end = bitmap::next_set(words, run.end, md.nr_bits);
        md.give_back(Run { start, end });
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(512), ..Default::default() })]

        #[test]
        fn hints_stay_exact(
            ops in prop::collection::vec((any::<bool>(), 0u32..BITS, 1u32..40), 1..scaled(80)),
        ) {
            let mut words = [0; BITS as usize / 64];
            let mut md = BlockView::all_free(BITS);
            let mut live: Vec<Run> = Vec::new();
            for (alloc, at, len) in ops {
                if alloc || live.is_empty() {
                    // The first place at or after `at` that has room.
                    let place = bitmap::free_runs(&words, at, BITS).find_map(|r| r.fit(len, 1));
                    let Some(start) = place else { continue };
                    let taken = Run { start, end: start + len };
                    take(&mut md, &mut words, taken);
                    live.push(taken);
                } else {
                    let run = live.swap_remove(at as usize % live.len());
                    give_back(&mut md, &mut words, run);
                }
                check(&md, &words);
            }
        }
    }

    /// Every state that can be reached with few granules, and every operation from each of them.
    #[test]
    fn hints_are_exact_in_every_reachable_state() {
        let bits = if INTERPRETED { 4 } else { 8 };
        let start = (0, BlockView::all_free(bits));
        let mut states = vec![start];
        let mut seen = std::collections::HashSet::from([(0, format!("{:?}", start.1))]);
        while let Some((word, md)) = states.pop() {
            for run in (0..bits).flat_map(|s| (s + 1..=bits).map(move |e| Run { start: s, end: e }))
            {
                let (mut words, mut md) = ([word], md);
                if bitmap::next_set(&words, run.start, run.end) == run.end {
                    take(&mut md, &mut words, run);
                } else if bitmap::next_clear(&words, run.start, run.end) == run.end {
                    give_back(&mut md, &mut words, run);
                } else {
                    continue;
                }
                check(&md, &words);
                if seen.insert((words[0], format!("{md:?}"))) {
                    states.push((words[0], md));
                }
            }
        }
        assert!(seen.len() >= 1 << bits);
    }

    #[test]
    fn freeing_the_hole_before_the_rest_restores_the_hint() {
        // Linux 6.12 loses the contig hint here (regression A1).
        let mut words = [0; BITS as usize / 64];
        let mut md = BlockView::all_free(BITS);
        take(&mut md, &mut words, Run { start: 0, end: BITS });
        assert_eq!(md.contig_hint, 0);
        give_back(&mut md, &mut words, Run { start: 9, end: 10 });
        assert_eq!((md.contig_hint, md.contig_hint_start), (1, 9));
    }

    #[test]
    fn an_equal_run_further_left_ends_the_scan_hint_behind_it() {
        // Regression A2: the scan hint must precede the contig run that replaced the old one.
        let mut words = [0; BITS as usize / 64];
        let mut md = BlockView::all_free(BITS);
        take(&mut md, &mut words, Run { start: 0, end: BITS });
        give_back(&mut md, &mut words, Run { start: 40, end: 50 });
        give_back(&mut md, &mut words, Run { start: 20, end: 24 });
        assert_eq!(md.scan(), Run { start: 20, end: 24 });
        give_back(&mut md, &mut words, Run { start: 0, end: 10 });
        assert_eq!(md.contig(), Run { start: 0, end: 10 });
        assert_eq!(md.scan_hint, 0);
    }
}
