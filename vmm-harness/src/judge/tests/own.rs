//! Checks of a guest's own: counted and reported under their names, whatever they run into.

use std::sync::Arc;

use percpu_guest::abi::{Event, EventKind};

use super::super::own::{Check, Checks, Found, GuestView, Own, Statics};
use super::super::{Judge, Quiescent};
use super::guest::Guest;
use crate::memory::Wild;

/// A judge of `guest` with a check, after a look at rest and one at any instant.
fn look<C: Check + Default + 'static>(guest: &Guest) -> Judge {
    let mut judge = guest.judge();
    judge.own = Own::new(&Checks::none().with::<C>(), Arc::new(Statics::default()));
    judge.drain();
    assert_eq!(judge.check_quiescent(), Quiescent::Checked);
    judge.check_instant();
    judge
}

fn broken(judge: &Judge) -> Vec<(&'static str, &str)> {
    judge.violations().iter().map(|v| (v.invariant, v.detail.as_str())).collect()
}

#[derive(Default)]
struct Counts {
    notes: u64,
}

impl Check for Counts {
    fn name(&self) -> &'static str {
        "X1"
    }
    fn meaning(&self) -> &'static str {
        "there are notes, and CPUs online"
    }
    fn at_any_instant(&mut self, _: &GuestView<'_>, found: &mut Found<'_>) -> Result<(), Wild> {
        found.checked(100);
        Ok(())
    }
    fn at_rest(&mut self, guest: &GuestView<'_>, found: &mut Found<'_>) -> Result<(), Wild> {
        found.checked(1);
        if guest.online()? != 0b11 || self.notes != 2 {
            found.broken("the guest", format!("{} notes", self.notes));
        }
        Ok(())
    }
    fn on_event(&mut self, event: &Event, found: &mut Found<'_>) {
        if event.kind == EventKind::Note as u16 {
            found.checked(10);
            self.notes += event.args[0];
        }
    }
}

#[test]
fn looks_and_events_are_counted_together() {
    let mut guest = Guest::new();
    guest.emit(0, EventKind::Note, [2, 0, 0, 0, 0]);
    let judge = look::<Counts>(&guest);
    assert_eq!(broken(&judge), []);
    assert_eq!(judge.checks()["X1"], 111);
}

#[test]
fn what_a_check_finds_is_reported_once_under_its_name() {
    let judge = look::<Counts>(&Guest::new());
    assert_eq!(broken(&judge), [("X1", "0 notes")]);
}

#[derive(Default)]
struct Lost;

impl Check for Lost {
    fn name(&self) -> &'static str {
        "X2"
    }
    fn meaning(&self) -> &'static str {
        "nothing: it reads what is not there"
    }
    fn at_any_instant(&mut self, guest: &GuestView<'_>, _: &mut Found<'_>) -> Result<(), Wild> {
        guest.symbol("nobody::KNOWS")?;
        Ok(())
    }
    fn at_rest(&mut self, guest: &GuestView<'_>, _: &mut Found<'_>) -> Result<(), Wild> {
        // Each of these is refused by itself.
        assert!(guest.words(0x1000, usize::MAX).is_err());
        assert!(guest.ledger(u32::MAX).is_err());
        assert_eq!(guest.on(0, u32::MAX), None);
        guest.read::<[u64; 8]>(u64::MAX - 3)?;
        Ok(())
    }
}

#[test]
fn addresses_that_lead_nowhere_are_findings_of_the_check() {
    let judge = look::<Lost>(&Guest::new());
    let broken = broken(&judge);
    assert!(broken.iter().all(|(name, _)| *name == "X2"), "{broken:?}");
    assert!(broken[0].1.contains("wraps around"), "{broken:?}");
    assert!(broken[1].1.contains("nobody::KNOWS"), "{broken:?}");
}

#[derive(Default)]
struct Panics;

impl Check for Panics {
    fn name(&self) -> &'static str {
        "X3"
    }
    fn meaning(&self) -> &'static str {
        "nothing: it panics"
    }
    fn at_rest(&mut self, guest: &GuestView<'_>, _: &mut Found<'_>) -> Result<(), Wild> {
        let none: &[u64] = &[];
        // As code does that trusts what it reads.
        let _ = none[guest.possible() as usize];
        Ok(())
    }
}

#[test]
fn a_check_that_panics_is_reported_and_the_others_go_on() {
    let judge = look::<Panics>(&Guest::new());
    let broken = broken(&judge);
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert!(broken[0].0 == "X3" && broken[0].1.contains("index out of bounds"), "{broken:?}");
    assert!(judge.checks()["I1"] > 0);
}
