//! A set of small numbers, as bits: what was reached.

/// Numbers from 0 on. Those that it has no room for are not in it, and adding makes room.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    words: Vec<u64>,
}

impl Covered {
    /// None yet.
    pub const fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// The numbers of the bits that are set.
    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// The numbers of the bytes that are not 0.
    pub fn from_flags(flags: &[u8]) -> Self {
        let word = |flags: &[u8]| {
            let (eights, rest) = flags.as_chunks();
            let last = (!rest.is_empty()).then(|| {
                let mut eight = [0; 8];
                eight[..rest.len()].copy_from_slice(rest);
                eight
            });
            eights
                .iter()
                .copied()
                .chain(last)
                .map(u64::from_le_bytes)
                .enumerate()
                .fold(0, |word, (i, eight)| word | nonzero_bytes(eight) << (8 * i))
        };
        Self { words: flags.chunks(64).map(word).collect() }
    }

    /// The bits.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Whether `n` is one of them.
    pub fn contains(&self, n: usize) -> bool {
        self.words.get(n / 64).is_some_and(|word| word >> (n % 64) & 1 != 0)
    }

    /// Adds a number.
    pub fn insert(&mut self, n: usize) {
        if self.words.len() <= n / 64 {
            self.words.resize(n / 64 + 1, 0);
        }
        self.words[n / 64] |= 1 << (n % 64);
    }

    /// How many of these are not in `known`.
    pub fn count_new(&self, known: &Self) -> usize {
        let known = known.words.iter().copied().chain(std::iter::repeat(0));
        self.words
            .iter()
            .zip(known)
            .map(|(word, known)| (word & !known).count_ones() as usize)
            .sum()
    }

    /// Adds all of `other`, and says how many of those were new.
    pub fn add(&mut self, other: &Self) -> usize {
        let new = other.count_new(self);
        if new != 0 {
            if self.words.len() < other.words.len() {
                self.words.resize(other.words.len(), 0);
            }
            for (word, other) in self.words.iter_mut().zip(&other.words) {
                *word |= other;
            }
        }
        new
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            let rest = move |word: &u64| Some(word & (word - 1)).filter(|&rest| rest != 0);
            std::iter::successors(Some(word).filter(|&word| word != 0), rest)
                .map(move |word| 64 * i + word.trailing_zeros() as usize)
        })
    }
}

impl PartialEq for Covered {
    /// The room that a set has is no part of it.
    fn eq(&self, other: &Self) -> bool {
        let n = self.words.len().min(other.words.len());
        let (longer, _) = if self.words.len() > n { (&self.words, ()) } else { (&other.words, ()) };
        self.words[..n] == other.words[..n] && longer[n..].iter().all(|&word| word == 0)
    }
}

impl Eq for Covered {}

impl FromIterator<usize> for Covered {
    fn from_iter<I: IntoIterator<Item = usize>>(numbers: I) -> Self {
        let mut covered = Self::new();
        numbers.into_iter().for_each(|n| covered.insert(n));
        covered
    }
}

/// Bit i says whether byte i is not 0.
fn nonzero_bytes(eight: u64) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // The top bit of each byte: its own, or carried into it from any of those below.
    let ones = (((eight & LOW) + LOW) | eight) & !LOW;
    // Bit 8i moves to 56 + i; no two products meet in one bit, so nothing is carried.
    (ones >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn flags_of_any_value_and_number_are_the_bytes_that_are_not_zero(
            flags in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..300),
        ) {
            let covered = Covered::from_flags(&flags);
            for (i, &flag) in flags.iter().enumerate() {
                prop_assert_eq!(covered.contains(i), flag != 0, "flag {}", i);
            }
            prop_assert!(!covered.contains(flags.len()));
            prop_assert_eq!(covered.count(), flags.iter().filter(|&&flag| flag != 0).count());
        }

        #[test]
        fn sets_are_those_of_the_standard_library(
            a in prop::collection::btree_set(0usize..400, 0..60),
            b in prop::collection::btree_set(0usize..700, 0..60),
        ) {
            let (mut x, y): (Covered, Covered) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(x.iter().collect::<Vec<_>>(), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(x.count(), a.len());
            prop_assert_eq!(x.is_empty(), a.is_empty());
            prop_assert_eq!(x == y, a == b);
            prop_assert_eq!(y.count_new(&x), b.difference(&a).count());
            prop_assert_eq!(x.add(&y), b.difference(&a).count());
            prop_assert_eq!(x.add(&y), 0);
            prop_assert_eq!(x.iter().collect::<Vec<_>>(), a.union(&b).copied().collect::<Vec<_>>());
        }
    }

    #[test]
    fn sets_are_equal_whatever_room_they_have() {
        let roomy = Covered::from_words(vec![5, 0, 0]);
        assert_eq!(roomy, Covered::from_words(vec![5]));
        assert_eq!(Covered::from_words(vec![5]), roomy);
        assert_ne!(roomy, Covered::from_words(vec![5, 0, 0, 1]));
        assert_ne!(roomy, Covered::new());
    }
}
