//! What happened in a run: each stay of a CPU in the guest, each event of the guest, in order, and a
//! hash of all that.

use std::fmt;

use percpu_guest::abi::{Doorbell, Event};

use crate::judge::EventLine;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A CPU ran until it rang.
    Ran {
        /// The CPU.
        cpu: u32,
        /// Steps of all CPUs when it rang.
        steps: u64,
        /// How it rang.
        bell: Doorbell,
        /// With what argument.
        argument: u64,
    },
    /// The host gave the guest an interrupt.
    Raised {
        /// The CPU.
        cpu: u32,
        /// Steps of all CPUs by then.
        steps: u64,
        /// The vector.
        vector: u8,
    },
    /// The guest told the host of something.
    Event(Event),
}

/// Entries and their hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    hash: u64,
    entries: Vec<Entry>,
}

impl Default for Trace {
    fn default() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, entries: Vec::new() }
    }
}

impl Trace {
    /// Adds an entry.
    pub(super) fn push(&mut self, entry: Entry) {
        match entry {
            Entry::Ran { cpu, steps, bell, argument } => {
                self.mix(&[1, u64::from(cpu), steps, bell as u64, argument]);
            }
            Entry::Raised { cpu, steps, vector } => {
                self.mix(&[2, u64::from(cpu), steps, u64::from(vector)]);
            }
            Entry::Event(event) => {
                let Event { seq, tsc, kind, cpu, thread, args } = event;
                self.mix(&[3, seq, tsc, u64::from(kind), u64::from(cpu), u64::from(thread)]);
                self.mix(&args);
            }
        }
        self.entries.push(entry);
    }

    /// FNV-1a, a word at a time, with the high half brought down so that every bit reaches every
    /// other.
    fn mix(&mut self, words: &[u64]) {
        for word in words {
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            self.hash ^= self.hash >> 32;
        }
    }

    /// The hash of all entries. Equal hashes are equal runs.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// All entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Where this trace and `other` part, and what each has there; `None` if they are equal.
    pub fn parting(&self, other: &Self) -> Option<(usize, Option<Entry>, Option<Entry>)> {
        let (a, b) = (&self.entries, &other.entries);
        let at = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        (at < a.len().max(b.len())).then(|| (at, a.get(at).copied(), b.get(at).copied()))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ran { cpu, steps, bell, argument } => {
                write!(f, "step {steps}: CPU {cpu} ran until {bell:?} ({argument:#x})")
            }
            Self::Raised { cpu, steps, vector } => {
                write!(f, "step {steps}: vector {vector:#x} for CPU {cpu}")
            }
            Self::Event(event) => write!(f, "event: {}", EventLine(event)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(steps: u64) -> Entry {
        Entry::Ran { cpu: 1, steps, bell: Doorbell::Switch, argument: 0 }
    }

    #[test]
    fn traces_part_at_the_first_entry_that_differs_or_is_missing() {
        let trace = |steps: &[u64]| {
            let mut trace = Trace::default();
            steps.iter().for_each(|&steps| trace.push(ran(steps)));
            trace
        };
        let (a, b, c) = (trace(&[1, 2, 3]), trace(&[1, 5, 3]), trace(&[1, 2]));
        assert_eq!(a.parting(&a.clone()), None);
        assert_eq!(a.parting(&b), Some((1, Some(ran(2)), Some(ran(5)))));
        assert_eq!(a.parting(&c), Some((2, Some(ran(3)), None)));
        assert_eq!(a.hash(), trace(&[1, 2, 3]).hash());
        assert!(a.hash() != b.hash() && a.hash() != c.hash());
        assert_ne!(trace(&[1, 2]).hash(), trace(&[2, 1]).hash());
    }
}
