//! The guest's events around what went wrong, of all CPUs in the one order in which they happened.

use percpu_guest::abi::{Event, EventKind};
use serde::{Deserialize, Serialize};

use crate::judge::{EventText, Violation};

/// The last events that are told, whatever they are about.
const LAST: usize = 160;
/// Earlier ones that are about the object in question.
const ABOUT: usize = 60;

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventReport {
    /// Its number.
    pub seq: u64,
    /// Seconds since the guest had booted, where the guest's clock is known.
    pub at: Option<f64>,
    /// Its time stamp.
    pub tsc: u64,
    /// The CPU that wrote it.
    pub cpu: u16,
    /// The thread, if it was a workload's.
    pub thread: Option<u32>,
    /// What it says.
    pub text: String,
    /// It names the object that the violation is about.
    pub about: bool,
    /// It came after the violation was seen.
    pub after: bool,
}

/// The events that tell how a run came to its end: the last ones, and those before them that name
/// the object of the first violation.
pub(crate) fn telling(
    events: &[Event],
    violation: Option<&Violation>,
    seconds: impl Fn(u64) -> Option<f64>,
) -> Vec<EventReport> {
    let objects = violation.map(|v| addresses(&v.object)).unwrap_or_default();
    let until = violation.map_or(u64::MAX, |violation| violation.seq);
    // As many as are told may have come after it while the CPUs were stopped.
    let end = events.partition_point(|event| event.seq <= until);
    let end = (end + LAST / 4).min(events.len());
    let last = end.saturating_sub(LAST);
    let mut about: Vec<usize> =
        (0..last).rev().filter(|&i| is_about(&events[i], &objects)).take(ABOUT).collect();
    about.reverse();
    about
        .into_iter()
        .chain(last..end)
        .map(|i| {
            let event = &events[i];
            EventReport {
                seq: event.seq,
                at: seconds(event.tsc),
                tsc: event.tsc,
                cpu: event.cpu,
                thread: (event.thread != u32::MAX).then_some(event.thread),
                text: EventText(event).to_string(),
                about: is_about(event, &objects),
                after: event.seq > until,
            }
        })
        .collect()
}

/// Whether an event names one of the addresses, or an area that one is in.
fn is_about(event: &Event, objects: &[u64]) -> bool {
    let [a0, a1, a2, ..] = event.args;
    let names = |named: u64| objects.contains(&named);
    match EventKind::from_code(event.kind) {
        Some(EventKind::Alloc) => {
            objects.iter().any(|object| (a0..a0.saturating_add(a1.max(1))).contains(object))
        }
        Some(
            EventKind::Free
            | EventKind::Filled
            | EventKind::CounterInit
            | EventKind::CounterDestroy,
        ) => names(a0),
        Some(
            EventKind::SumInit
            | EventKind::LifeBegun
            | EventKind::LifeEnding
            | EventKind::LifeResumed
            | EventKind::LifeEnded,
        ) => names(a1),
        Some(EventKind::Violation) => names(a2),
        _ => false,
    }
}

/// The addresses in the name of an object: numbers as `0x...`.
pub(crate) fn addresses(object: &str) -> Vec<u64> {
    object
        .split("0x")
        .skip(1)
        .filter_map(|rest| {
            let digits = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
            u64::from_str_radix(&rest[..digits], 16).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, kind: EventKind, args: [u64; 5]) -> Event {
        Event { seq, tsc: seq * 10, kind: kind as u16, cpu: 1, thread: u32::MAX, args }
    }

    #[test]
    fn addresses_are_found_in_names() {
        assert_eq!(addresses("counter 0x222ee80, CPU 3"), [0x222_ee80]);
        assert_eq!(addresses("chunk 0x10 page 0xff)"), [0x10, 0xff]);
        assert!(addresses("CPU 3's event ring 0xffffffffffffffffff").is_empty());
    }

    #[test]
    fn the_last_events_are_told_and_the_first_ones_of_the_object() {
        let mut events: Vec<_> =
            (0..1000).map(|seq| event(seq, EventKind::Free, [seq * 64; 5])).collect();
        events[3] = event(3, EventKind::CounterInit, [0x7000, 0, 0, 0, 0]);
        events[5] = event(5, EventKind::Alloc, [0x6ff0, 32, 8, 0, 0]);
        let mut violation = Violation::new("K1", "counter 0x7000", "it lost one");
        violation.seq = 900;
        let told = telling(&events, Some(&violation), |tsc| Some(tsc as f64));
        let numbers: Vec<_> = told.iter().map(|event| event.seq).collect();
        assert_eq!(numbers[..3], [3, 5, 448], "{numbers:?}");
        assert!(told[..3].iter().all(|event| event.about && !event.after));
        assert!(told.len() <= LAST + ABOUT);
        let seen = told.iter().position(|event| event.after).unwrap();
        assert_eq!(told[seen - 1].seq, 900);
        assert_eq!((told[0].at, told[0].thread), (Some(30.0), None));
        assert!(told[0].text.contains("counter 0x7000 made"), "{}", told[0].text);
        // Without a violation the last ones are told.
        let told = telling(&events, None, |_| None);
        assert_eq!((told.len(), told[LAST - 1].seq), (LAST, 999));
    }
}
