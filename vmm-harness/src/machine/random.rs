//! Choices out of a seed. Algorithm: SplitMix64 (Steele, Lea, Flood, 2014).

/// A generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator numbered `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03));
        // Seeds that follow each other begin with numbers that have nothing in common.
        random.0 = random.next();
        random
    }

    /// The next 64 bits.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A number from `from` to `to`, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A number from `from` to about `from << doublings`: each order of magnitude as often.
    pub fn magnitude(&mut self, from: u64, doublings: u64) -> u64 {
        let base = from << self.below(doublings);
        base + self.below(base)
    }

    /// Some of `all`, at least one.
    pub fn some_of<T: Copy>(&mut self, all: &[T]) -> Vec<T> {
        let bits = self.between(1, (1 << all.len()) - 1);
        (0..all.len()).filter(|i| bits >> i & 1 != 0).map(|i| all[i]).collect()
    }
}
