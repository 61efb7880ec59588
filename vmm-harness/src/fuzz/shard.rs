//! A part of a campaign, of which other processes or hosts run the others.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Seeds from which a shard begins where none are given: this far from those of the one before.
const APART: u64 = 1 << 32;

/// Part `index`, from 0, of `of` parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which.
    pub index: u32,
    /// Of how many.
    pub of: u32,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(index, of)| {
            Some(Self { index: index.parse().ok()?, of: of.parse().ok()? })
        });
        parts.filter(|shard| shard.index < shard.of).ok_or_else(|| {
            "give I/N, shard I of N, counted from 0: 0/4, 1/4, 2/4 and 3/4 are all of four".into()
        })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl Shard {
    /// This shard's block of `seeds`. Blocks of all shards follow each other and are all of them;
    /// no two differ by more than one in length.
    pub fn part(self, seeds: Range<u64>) -> Range<u64> {
        let length = u128::from(seeds.end.saturating_sub(seeds.start));
        // Cannot be more than the length, so it fits.
        let before =
            |index: u32| seeds.start + (length * u128::from(index) / u128::from(self.of)) as u64;
        before(self.index)..before(self.index + 1)
    }

    /// The seed from which this shard goes on for ever, where the first shard begins at `seed`.
    pub fn first_seed(self, seed: u64) -> u64 {
        seed.wrapping_add(u64::from(self.index) * APART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_all_seeds_once() {
        for (from, to) in [(0, 0), (0, 1), (5, 12), (0, 1000), (u64::MAX - 100, u64::MAX)] {
            for of in [1, 2, 3, 7, 100] {
                let parts: Vec<_> =
                    (0..of).map(|index| Shard { index, of }.part(from..to)).collect();
                let all: Vec<_> = parts.iter().cloned().flatten().collect();
                assert!(all.into_iter().eq(from..to), "{parts:?}");
                let lengths = parts.iter().map(|part| part.end - part.start);
                let (least, most) = (lengths.clone().min(), lengths.max());
                assert!(most <= least.map(|least| least + 1), "{parts:?}");
            }
        }
        // The largest numbers there are.
        let last = Shard { index: u32::MAX - 1, of: u32::MAX };
        assert_eq!(last.part(0..u64::MAX).end, u64::MAX);
    }

    #[test]
    fn shards_are_counted_from_0() {
        assert_eq!("0/4".parse(), Ok(Shard { index: 0, of: 4 }));
        assert_eq!("3/4".parse::<Shard>().map(|shard| shard.to_string()), Ok("3/4".into()));
        for wrong in ["4/4", "0/0", "1", "-1/4", "a/b", "", "1/2/3"] {
            let error = wrong.parse::<Shard>().expect_err(wrong);
            assert!(error.contains("0/4"), "{error}");
        }
        let seeds: Vec<_> = (0..3).map(|index| Shard { index, of: 3 }.first_seed(9)).collect();
        assert_eq!(seeds, [9, APART + 9, 2 * APART + 9]);
    }
}
