//! What happened in a run: each turn of a CPU, each event of the guest, in order, and a hash of all
//! that.

use std::fmt;

use percpu_guest::abi::{Doorbell, Event, Stay, StayEnd};

use crate::judge::EventLine;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A CPU gave way to another, was interrupted, or started one.
    Stay(Stay),
    /// The guest rang.
    Rang {
        /// The CPU.
        cpu: u32,
        /// Steps of all CPUs by then.
        steps: u64,
        /// How it rang.
        bell: Doorbell,
        /// With what argument.
        argument: u64,
    },
    /// The host ordered something.
    Ordered {
        /// Steps of all CPUs by then.
        steps: u64,
        /// For so many steps of the clock later.
        after: u64,
        /// To plug the CPU in; else out.
        up: bool,
        /// The CPU.
        cpu: u32,
        /// Number of the hotplug step that is to fail.
        fail: Option<u64>,
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
            Entry::Stay(Stay { steps, cpu, end, argument, sites, clock }) => {
                self.mix(&[0, steps, clock, cpu.into(), end.into(), argument.into()]);
                self.mix(&sites);
            }
            Entry::Rang { cpu, steps, bell, argument } => {
                self.mix(&[1, u64::from(cpu), steps, bell as u64, argument]);
            }
            Entry::Ordered { steps, after, up, cpu, fail } => {
                self.mix(&[2, steps, after, up.into(), cpu.into(), fail.unwrap_or(u64::MAX)]);
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

    /// What CPUs did.
    pub fn stays(&self) -> impl Iterator<Item = &Stay> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Stay(stay) => Some(stay),
            _ => None,
        })
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
            Self::Stay(stay) => {
                let Stay { steps, cpu, argument, .. } = stay;
                let what = match StayEnd::from_code(stay.end) {
                    Some(StayEnd::Due) => "another one's turn",
                    Some(StayEnd::Yield) => "waits for another one",
                    Some(StayEnd::Idle) => "is idle",
                    Some(StayEnd::Dead) => "is dead",
                    Some(StayEnd::Started) => {
                        return write!(f, "step {steps}: CPU {cpu} has started CPU {argument}");
                    }
                    Some(StayEnd::Interrupted) => {
                        return write!(f, "step {steps}: CPU {cpu} gets vector {argument:#x}");
                    }
                    None => "nobody knows what",
                };
                write!(f, "step {steps}: CPU {cpu}: {what}, at {:#x}", stay.sites[0])
            }
            Self::Rang { cpu, steps, bell, argument } => {
                write!(f, "step {steps}: CPU {cpu} rang {bell:?} ({argument:#x})")
            }
            Self::Ordered { steps, after, up, cpu, fail } => {
                let what = if *up { "in" } else { "out" };
                write!(f, "step {steps}: host: CPU {cpu} {what}, after {after} steps")?;
                fail.map_or(Ok(()), |step| write!(f, ", step {step} fails"))
            }
            Self::Event(event) => write!(f, "event: {}", EventLine(event)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(steps: u64) -> Entry {
        Entry::Rang { cpu: 1, steps, bell: Doorbell::Switch, argument: 0 }
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
