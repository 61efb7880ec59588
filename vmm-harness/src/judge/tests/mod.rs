//! Tests of the judge: a sound guest passes, and each planted corruption is reported as exactly
//! the invariant that it breaks.

mod corruption;
mod hostile;
mod lives;
mod order;
mod own;
mod plugs;
mod trials;
mod units;

use super::specimen as guest;
use super::{Judge, Quiescent};
use guest::Guest;

/// Names of the invariants that were found broken, each once.
fn broken(judge: &Judge) -> Vec<&'static str> {
    let mut names: Vec<_> = judge.violations().iter().map(|v| v.invariant).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The judge after a quiescent look at `guest`.
fn look(guest: &Guest) -> Judge {
    let mut judge = guest.judge();
    judge.drain();
    assert_eq!(judge.check_quiescent(), Quiescent::Checked, "{:#?}", judge.violations());
    judge
}

#[test]
fn a_sound_guest_passes_every_check() {
    let guest = Guest::new();
    let mut judge = look(&guest);
    judge.check_instant();
    assert_eq!(judge.violations(), []);
    let unchecked: Vec<_> = [
        "I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "I12", "I13", "I14",
        "I15", "I18", "K1", "K2", "K3", "K5", "S1",
    ]
    .into_iter()
    .filter(|name| judge.checks().get(name).copied().unwrap_or(0) == 0)
    .collect();
    assert_eq!(unchecked, [""; 0], "{:?}", judge.checks());
}
