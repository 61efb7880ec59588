//! Bitmaps in 64-bit words, and the runs of clear bits in them.

const BITS: u32 = u64::BITS;

/// A range of granules, or of pages, `start..end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Run {
    /// A run without granules.
    pub(crate) const EMPTY: Self = Self { start: 0, end: 0 };

    /// How many there are.
    #[inline]
    pub(crate) fn len(self) -> u32 {
        self.end - self.start
    }

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The same run `distance` granules further on.
    #[inline]
    pub(crate) fn shifted(self, distance: u32) -> Self {
        Self { start: self.start + distance, end: self.end + distance }
    }

    /// The first place in the run where `len` granules fit, aligned to `align`, a power of two.
    #[inline]
    pub(crate) fn fit(self, len: u32, align: u32) -> Option<u32> {
        let start = self.start.next_multiple_of(align);
        (start.saturating_add(len) <= self.end).then_some(start)
    }
}

/// The bits of word `word` that lie in `start..end`.
#[inline]
pub(crate) fn mask(word: u32, start: u32, end: u32) -> u64 {
    let first = word * BITS;
    let mut mask = !0;
    if start > first {
        mask &= !0 << (start - first);
    }
    if end < first + BITS {
        mask &= !(!0 << (end - first));
    }
    mask
}

/// Whether bit `bit` is set.
#[inline]
pub(crate) fn is_set(words: &[u64], bit: u32) -> bool {
    words[(bit / BITS) as usize] & (1 << (bit % BITS)) != 0
}

/// Sets the bits `start..end`.
#[inline]
pub(crate) fn set(words: &mut [u64], start: u32, end: u32) {
    for_words(words, start, end, |word, mask| *word |= mask);
}

/// Clears the bits `start..end`.
#[inline]
pub(crate) fn clear(words: &mut [u64], start: u32, end: u32) {
    for_words(words, start, end, |word, mask| *word &= !mask);
}

/// Changes the words that have bits of `start..end`, each with the mask of those bits. Most ranges
/// lie in one word.
#[inline]
fn for_words(words: &mut [u64], start: u32, end: u32, change: impl Fn(&mut u64, u64)) {
    if start >= end {
        return;
    }
    let (first, last) = (start / BITS, (end - 1) / BITS);
    let (head, tail) = (!0 << (start % BITS), !0 >> (BITS - 1 - (end - 1) % BITS));
    if first == last {
        change(&mut words[first as usize], head & tail);
        return;
    }
    let words = &mut words[first as usize..=last as usize];
    if let [first, middle @ .., last] = words {
        change(first, head);
        middle.iter_mut().for_each(|word| change(word, !0));
        change(last, tail);
    }
}

/// The first set bit from `from` on, `end` if there is none before `end`.
#[inline]
pub(crate) fn next_set(words: &[u64], from: u32, end: u32) -> u32 {
    next(words, from, end, 0)
}

/// The first clear bit from `from` on, `end` if there is none before `end`.
#[inline]
pub(crate) fn next_clear(words: &[u64], from: u32, end: u32) -> u32 {
    next(words, from, end, !0)
}

/// The first bit from `from` on that differs from those of `flip`.
#[inline]
fn next(words: &[u64], from: u32, end: u32, flip: u64) -> u32 {
    if from >= end {
        return end;
    }
    let mut word = from / BITS;
    let mut bits = (words[word as usize] ^ flip) & (!0 << (from % BITS));
    while bits == 0 {
        word += 1;
        if word * BITS >= end {
            return end;
        }
        bits = words[word as usize] ^ flip;
    }
    (word * BITS + bits.trailing_zeros()).min(end)
}

/// Where the run of clear bits that ends before `before` begins; not below `floor`.
#[inline]
pub(crate) fn run_start(words: &[u64], floor: u32, before: u32) -> u32 {
    if before <= floor {
        return before;
    }
    let mut word = (before - 1) / BITS;
    let mut bits = words[word as usize] & mask(word, 0, before);
    while bits == 0 {
        if word * BITS <= floor {
            return floor;
        }
        word -= 1;
        bits = words[word as usize];
    }
    (word * BITS + BITS - bits.leading_zeros()).max(floor)
}

/// The first place in `from..end` where `len` bits are clear, at a multiple of `align`, a power of
/// two. `end` is a multiple of a word's bits.
///
/// Costs a few operations a word, however many runs there are in it.
#[inline]
pub(crate) fn find_clear(words: &[u64], from: u32, end: u32, len: u32, align: u32) -> Option<u32> {
    debug_assert!(end.is_multiple_of(BITS) && len != 0);
    if from >= end {
        return None;
    }
    if len <= BITS {
        find_short(words, from, end, len, align)
    } else {
        find_long(words, from, end, len, align)
    }
}

/// [`find_clear`] for a run that lies in two words at most.
#[inline]
fn find_short(words: &[u64], from: u32, end: u32, len: u32, align: u32) -> Option<u32> {
    let aligned: u64 = if align < BITS { !0 / ((1 << align) - 1) } else { 1 };
    let mut free = !words[(from / BITS) as usize] & (!0 << (from % BITS));
    for word in from / BITS..end / BITS {
        let next = if (word + 1) * BITS < end { !words[word as usize + 1] } else { 0 };
        let wanted = if align <= BITS || (word * BITS).is_multiple_of(align) { aligned } else { 0 };
        if free & wanted != 0 {
            // A bit of `starts` says that this bit and the `known - 1` behind it are free.
            let mut starts = u128::from(free) | u128::from(next) << BITS;
            let mut known = 1;
            while known < len {
                let step = known.min(len - known);
                starts &= starts >> step;
                known += step;
            }
            let starts = starts as u64 & wanted;
            if starts != 0 {
                return Some(word * BITS + starts.trailing_zeros());
            }
        }
        free = next;
    }
    None
}

/// [`find_clear`] for a run that reaches the end of the word it begins in.
#[inline]
fn find_long(words: &[u64], from: u32, end: u32, len: u32, align: u32) -> Option<u32> {
    let mut run = Run { start: from, end: from };
    let mut free = !words[(from / BITS) as usize] & (!0 << (from % BITS));
    for word in from / BITS..end / BITS {
        let first = word * BITS;
        if free == !0 || (word == from / BITS && free == !0 << (from % BITS)) {
            run.end = first + BITS;
        } else {
            if run.end == first {
                run.end += free.trailing_ones();
            }
            if let Some(place) = run.fit(len, align) {
                return Some(place);
            }
            run = Run { start: first + BITS - free.leading_ones(), end: first + BITS };
        }
        if (word + 1) * BITS < end {
            free = !words[word as usize + 1];
        }
    }
    run.fit(len, align)
}

/// The runs of clear bits in `start..end`, in order.
#[inline]
pub(crate) fn free_runs(words: &[u64], start: u32, end: u32) -> impl Iterator<Item = Run> + '_ {
    let mut at = start;
    core::iter::from_fn(move || {
        let start = next_clear(words, at, end);
        at = next_set(words, start, end);
        (start < end).then_some(Run { start, end: at })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scale::cases;

    fn bit(words: &[u64], i: u32) -> bool {
        words[i as usize / 64] >> (i % 64) & 1 != 0
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(256), ..Default::default() })]

        #[test]
        fn ranges_change_their_bits_only(
            before in prop::collection::vec(any::<u64>(), 4), a in 0u32..=256, b in 0u32..=256, value: bool,
        ) {
            let (start, end) = (a.min(b), a.max(b));
            let mut words = before.clone();
            if value { set(&mut words, start, end) } else { clear(&mut words, start, end) }
            for i in 0..256 {
                let expected = if (start..end).contains(&i) { value } else { bit(&before, i) };
                prop_assert_eq!(is_set(&words, i), expected);
            }
        }

        #[test]
        fn searches_find_the_nearest_bit(
            // Sparse and dense words, so that searches cross words.
            words in prop::collection::vec(prop_oneof![Just(0), Just(!0), any::<u64>(), (0u32..64).prop_map(|b| 1 << b)], 4),
            from in 0u32..=256, end in 0u32..=256, floor in 0u32..=256,
        ) {
            let first = |value| (from..end).find(|&i| bit(&words, i) == value).unwrap_or(end);
            prop_assert_eq!(next_set(&words, from, end), first(true));
            prop_assert_eq!(next_clear(&words, from, end), first(false));
            let start = (floor..from).rev().find(|&i| bit(&words, i)).map_or(floor.min(from), |i| i + 1);
            prop_assert_eq!(run_start(&words, floor, from), start);
        }

        #[test]
        fn clear_ranges_are_found_at_the_first_aligned_place(
            words in prop::collection::vec(prop_oneof![2 => Just(0), 1 => Just(!0), 2 => any::<u64>(),
                2 => (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a & b), 2 => (0u32..64).prop_map(|b| 1 << b)], 6),
            from in 0u32..=384, end in 1u32..=6, len in prop_oneof![1u32..8, 1u32..=64, 60u32..300], align in 0u32..=8,
        ) {
            let (end, align) = (end * 64, 1 << align);
            let fits = |&at: &u32| at % align == 0 && at + len <= end && (at..at + len).all(|i| !bit(&words, i));
            prop_assert_eq!(find_clear(&words, from, end, len, align), (from..end).find(fits));
        }

        #[test]
        fn free_runs_are_the_maximal_clear_ranges(
            words in prop::collection::vec(prop_oneof![Just(0), Just(!0), any::<u64>()], 4),
        ) {
            let mut expected = Vec::new();
            let mut start = None;
            for i in 0..=256 {
                match (i < 256 && !bit(&words, i), start) {
                    (true, None) => start = Some(i),
                    (false, Some(s)) => { expected.push(Run { start: s, end: i }); start = None; }
                    _ => {}
                }
            }
            prop_assert_eq!(free_runs(&words, 0, 256).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_run_offers_its_first_aligned_place() {
        let run = Run { start: 5, end: 20 };
        assert_eq!(run.fit(15, 1), Some(5));
        assert_eq!(run.fit(16, 1), None);
        assert_eq!(run.fit(12, 8), Some(8));
        assert_eq!(run.fit(13, 8), None);
        assert_eq!(run.fit(u32::MAX, 1), None);
    }
}
