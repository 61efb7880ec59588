//! Bitmaps copied out of guest memory.

use std::ops::Range;

/// `len` bits in 64-bit words, lowest first.
#[derive(Clone, Debug)]
pub(crate) struct Bits {
    words: Vec<u64>,
    len: u32,
}

/// A run of like bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl Run {
    pub(crate) fn end(self) -> u32 {
        self.start + self.len
    }
}

impl Bits {
    /// The first `len` bits of `words`.
    pub(crate) fn new(words: Vec<u64>, len: u32) -> Self {
        assert!(words.len() * 64 >= len as usize);
        Self { words, len }
    }

    /// `len` zero bits.
    pub(crate) fn zero(len: u32) -> Self {
        Self::new(vec![0; len.div_ceil(64) as usize], len)
    }

    /// The words, lowest bits first.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn get(&self, bit: u32) -> bool {
        self.words[bit as usize / 64] >> (bit % 64) & 1 != 0
    }

    pub(crate) fn set(&mut self, range: Range<u32>) {
        for bit in range {
            self.words[bit as usize / 64] |= 1 << (bit % 64);
        }
    }

    /// The first bit of `range` that is `value`; its end if there is none.
    pub(crate) fn next(&self, value: bool, range: Range<u32>) -> u32 {
        let mut bit = range.start;
        while bit < range.end {
            let word = self.words[bit as usize / 64];
            let rest = if value { word } else { !word } >> (bit % 64);
            if rest != 0 {
                return (bit + rest.trailing_zeros()).min(range.end);
            }
            bit = (bit / 64 + 1) * 64;
        }
        range.end
    }

    /// The runs of `value` in `range`, cut off at its ends.
    pub(crate) fn runs(&self, value: bool, range: Range<u32>) -> impl Iterator<Item = Run> {
        let Range { mut start, end } = range;
        std::iter::from_fn(move || {
            let first = self.next(value, start..end);
            let after = self.next(!value, first..end);
            start = after;
            (first < after).then_some(Run { start: first, len: after - first })
        })
    }

    /// Number of bits that are set.
    pub(crate) fn ones(&self) -> u32 {
        self.runs(true, 0..self.len).map(|run| run.len).sum()
    }

    /// The bits of `self` that are not in `other`.
    pub(crate) fn without(&self, other: &Bits) -> Bits {
        let words = self.words.iter().zip(&other.words).map(|(a, b)| a & !b).collect();
        Self::new(words, self.len.min(other.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cross_words_and_end_with_the_range() {
        let mut bits = Bits::zero(200);
        bits.set(60..70);
        bits.set(127..129);
        let runs: Vec<_> = bits.runs(true, 0..128).map(|r| (r.start, r.len)).collect();
        assert_eq!(runs, [(60, 10), (127, 1)]);
        let free: Vec<_> = bits.runs(false, 65..200).map(|r| (r.start, r.len)).collect();
        assert_eq!(free, [(70, 57), (129, 71)]);
        assert_eq!(bits.ones(), 12);
    }

    #[test]
    fn bits_beyond_the_length_do_not_count() {
        let bits = Bits::new(vec![u64::MAX], 10);
        assert_eq!(bits.ones(), 10);
        assert_eq!(bits.next(false, 0..10), 10);
    }
}
