//! What a run reached, in all kinds: what a fuzzer keeps scenarios for.

use super::covered::Covered;

/// Bits of a number that stands for a pair of places.
const PAIR_BITS: u32 = 16;
/// Such numbers.
pub(super) const PAIRS: usize = 1 << PAIR_BITS;

/// What a run reached, or many together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Edges, by their number in [`Edges`](super::Edges).
    pub edges: Covered,
    /// Where one CPU stopped and the next one went on: the pair of places, as a number of 16 bits.
    /// Pairs that have the same number are one; of a few thousand pairs, few have.
    pub switches: Covered,
}

/// How many features were new, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct New {
    /// Edges.
    pub edges: usize,
    /// Switches.
    pub switches: usize,
}

impl New {
    /// Whether there were any.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

impl Features {
    /// None yet.
    pub const fn new() -> Self {
        Self { edges: Covered::new(), switches: Covered::new() }
    }

    /// Notes that a CPU stopped at one address of the code and another one went on at another.
    pub fn note_switch(&mut self, stopped: u64, went_on: u64) {
        self.switches.insert(pair(stopped, went_on));
    }

    /// Notes the switches of a run out of the stays of its CPUs in the guest, one after the other: the
    /// CPU, and the address at which its stay ended. It goes on from there when it is its turn again.
    pub fn note_stays(&mut self, stays: impl IntoIterator<Item = (u32, u64)>) {
        // Where each CPU stands; they are few. Those that never ran begin nowhere.
        let mut stands: Vec<(u32, u64)> = Vec::new();
        let mut last = None;
        for (cpu, end) in stays {
            let went_on = match stands.iter_mut().find(|(other, _)| *other == cpu) {
                Some((_, stood)) => std::mem::replace(stood, end),
                None => {
                    stands.push((cpu, end));
                    0
                }
            };
            if let Some((before, stopped)) = last.replace((cpu, end))
                && before != cpu
            {
                self.note_switch(stopped, went_on);
            }
        }
    }

    /// How many of these are not in `known`.
    pub fn count_new(&self, known: &Self) -> New {
        New {
            edges: self.edges.count_new(&known.edges),
            switches: self.switches.count_new(&known.switches),
        }
    }

    /// Adds all of `other`, and says how many of those were new.
    pub fn add(&mut self, other: &Self) -> New {
        New { edges: self.edges.add(&other.edges), switches: self.switches.add(&other.switches) }
    }
}

/// The number of an ordered pair of addresses.
fn pair(stopped: u64, went_on: u64) -> usize {
    // Fibonacci hashing, once for each; the rotation tells (a, b) from (b, a).
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = (stopped.wrapping_mul(GOLDEN).rotate_left(32) ^ went_on).wrapping_mul(GOLDEN);
    (mixed >> (u64::BITS - PAIR_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_counted_by_kind_and_once() {
        let mut known = Features::new();
        let mut run = Features { edges: [1, 70].into_iter().collect(), ..Features::new() };
        run.note_switch(0x200_0000, 0x200_1000);
        run.note_switch(0x200_0000, 0x200_1000);
        assert_eq!(run.count_new(&known), New { edges: 2, switches: 1 });
        assert_eq!(known.add(&run), New { edges: 2, switches: 1 });
        run.edges.insert(3);
        assert_eq!(known.add(&run), New { edges: 1, switches: 0 });
        assert!(!known.add(&run).any());
    }

    #[test]
    fn a_switch_is_where_one_stopped_and_where_the_other_had_stopped_before() {
        let mut run = Features::new();
        // CPU 0 is interrupted at 10 and goes on, CPU 1 begins, CPU 0 goes on from 20.
        run.note_stays([(0, 10), (0, 20), (1, 30), (0, 40)]);
        let mut same = Features::new();
        same.note_switch(20, 0);
        same.note_switch(30, 20);
        assert_eq!(run, same);
        let mut other_order = Features::new();
        other_order.note_switch(20, 30);
        assert_eq!(other_order.count_new(&run).switches, 1);
    }

    #[test]
    fn pairs_of_places_in_the_code_rarely_share_a_number() {
        // Places as they are: some bytes apart.
        let places = || (0..60u64).map(|i| 0x20a_98b0 + 37 * i);
        let mut features = Features::new();
        for stopped in places() {
            places().for_each(|went_on| features.note_switch(stopped, went_on));
        }
        // 3600 numbers drawn from 65536 are 3503 different ones on average.
        assert!(features.switches.count() > 3400, "{}", features.switches.count());
    }
}
