//! Random choices of long tests, which a failed run tells how to make again.

use std::hash::{BuildHasher, RandomState};

/// Names the seed that is to be used instead of a new one.
const SEED: &str = "PERCPU_SEED";

/// A SplitMix64 generator.
pub struct Random(u64);

impl Random {
    /// A generator that is different in every run unless `PERCPU_SEED` is set. It prints its seed,
    /// which the test harness shows of tests that fail.
    pub fn new() -> Self {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().unwrap_or_else(|_| panic!("{SEED} is a number, not {seed:?}")),
            Err(_) => RandomState::new().hash_one(0),
        };
        println!("{SEED}={seed} makes the same choices again");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
