//! How a run failed, as it is written down, and whether another run fails in the same way.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::store;
use crate::error::Status;
use crate::image::Image;
use crate::machine::{Ending, Outcome};

/// What [`Seen::what`] says of two runs of one scenario that differ.
pub(super) const NONDETERMINISM: &str = "nondeterminism";

/// How a scenario failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// The invariant by its name, `crash`, `hang`, or `nondeterminism`.
    pub what: String,
    /// What was seen.
    pub detail: String,
    /// Hash of the run's trace.
    pub hash: String,
    /// Steps of the run.
    pub steps: u64,
    /// The guest's privilege level.
    pub ring: u8,
    /// [`image_name`] of the guest.
    pub image: String,
}

/// A hash as it is written.
pub(super) fn hash_text(hash: u64) -> String {
    format!("{hash:#018x}")
}

/// A name for what an image has in memory: other code, another name. What debuggers are told does
/// not matter.
pub fn image_name(image: &Image) -> String {
    let segments = image.loaded();
    let parts = segments.iter().flat_map(|(address, bytes)| [&address[..], *bytes]);
    hash_text(store::hash(parts))
}

impl Seen {
    /// What a run of the guest with this [`image_name`] has shown; `None` if it held.
    pub fn of(outcome: &Outcome, ring: u8, image: &str) -> Option<Self> {
        let detail = match &outcome.ending {
            Ending::Held => return None,
            Ending::Broken(violations) => {
                violations.first().map(|v| v.detail.clone()).unwrap_or_default()
            }
            Ending::Crashed(crash) | Ending::Hung(crash) => crash.text.clone(),
        };
        Some(Self {
            what: outcome.ending.name().to_owned(),
            detail,
            hash: hash_text(outcome.trace.hash()),
            steps: outcome.steps,
            ring,
            image: image.into(),
        })
    }

    /// What two runs of one scenario have shown; `None` if they are equal.
    pub fn of_two(first: &Outcome, second: &Outcome, ring: u8, image: &str) -> Option<Self> {
        let (a, b) = (&first.trace, &second.trace);
        let (at, one, other) = a.parting(b)?;
        let entry = |entry: Option<_>| {
            entry.map_or("the end".to_owned(), |entry: crate::machine::Entry| entry.to_string())
        };
        Some(Self {
            what: NONDETERMINISM.into(),
            detail: format!(
                "two runs part at entry {at} of {} and {}: [{}] against [{}]",
                a.entries().len(),
                b.entries().len(),
                entry(one),
                entry(other)
            ),
            hash: hash_text(a.hash()),
            steps: first.steps,
            ring,
            image: image.into(),
        })
    }

    /// Whether this takes two runs to be seen.
    pub fn is_of_two_runs(&self) -> bool {
        self.what == NONDETERMINISM
    }

    /// Holds a run against this one, or two runs if this was of two.
    pub fn compare(
        &self,
        outcome: &Outcome,
        again: Option<&Outcome>,
        ring: u8,
        image: &str,
    ) -> Likeness {
        let now = match again {
            Some(again) => Self::of_two(outcome, again, ring, image),
            None => Self::of(outcome, ring, image),
        };
        Likeness {
            then: self.clone(),
            what: now.map_or("held".into(), |seen| seen.what),
            hash: hash_text(outcome.trace.hash()),
            ring,
            image: image.into(),
        }
    }
}

/// A run beside the one that a failure's file tells of.
#[derive(Clone, Debug, PartialEq)]
pub struct Likeness {
    then: Seen,
    what: String,
    hash: String,
    ring: u8,
    image: String,
}

impl Likeness {
    /// The same guest in the same ring: everything has to be as it was.
    fn is_of_the_same_guest(&self) -> bool {
        self.image == self.then.image && self.ring == self.then.ring
    }

    fn is_the_same(&self) -> bool {
        self.what == self.then.what && (self.hash == self.then.hash || self.then.is_of_two_runs())
    }

    /// What to tell the caller, where the run's own status is `status`: a run that has to go as it
    /// did before and does not is a failure even if every invariant holds.
    pub fn status(&self, status: Status) -> Status {
        let otherwise = self.is_of_the_same_guest() && !self.is_the_same();
        let two_differ = self.what == NONDETERMINISM;
        if status == Status::Held && (otherwise || two_differ) { Status::Broken } else { status }
    }
}

impl fmt::Display for Likeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { then, what, hash, ring, image } = self;
        if self.is_the_same() {
            write!(f, "as in the file: {what}, trace {hash}")?;
        } else {
            write!(
                f,
                "NOT as in the file: {what}, trace {hash}; there {}, trace {}",
                then.what, then.hash
            )?;
        }
        if *image != then.image {
            write!(f, "\nThe file is of another guest image: {}, this one is {image}", then.image)?;
        }
        if *ring != then.ring {
            write!(f, "\nThe file is of a run in ring {}, this was in ring {ring}", then.ring)?;
        }
        if self.is_of_the_same_guest() && !self.is_the_same() {
            write!(
                f,
                "\nThe guest is the same: vmm-harness was changed since, or runs are not \
                 deterministic (`{} fuzz --scenario FILE --seeds 0..100 --verify`)",
                crate::guest::program()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn likeness(what: &str, hash: &str, image: &str) -> Likeness {
        let then = Seen {
            what: "K3".into(),
            detail: String::new(),
            hash: "0x1".into(),
            steps: 1,
            ring: 3,
            image: "a".into(),
        };
        let (what, hash, image) = (what.into(), hash.into(), image.into());
        Likeness { then, what, hash, ring: 3, image }
    }

    #[test]
    fn a_run_that_has_to_go_as_before_and_does_not_is_a_failure() {
        let same = likeness("K3", "0x1", "a");
        assert_eq!(same.status(Status::Broken), Status::Broken);
        assert!(same.to_string().starts_with("as in the file: K3"), "{same}");
        // A guest without the bug.
        let mended = likeness("held", "0x2", "b");
        assert_eq!(mended.status(Status::Held), Status::Held);
        let text = mended.to_string();
        assert!(text.starts_with("NOT as") && text.contains("another guest image: a"), "{text}");
        // The same guest.
        for other in [likeness("held", "0x2", "a"), likeness("held", "0x1", "a")] {
            assert_eq!(other.status(Status::Held), Status::Broken);
            assert!(other.to_string().contains("not deterministic"), "{other}");
        }
        assert_eq!(likeness("crash", "0x2", "a").status(Status::Crashed), Status::Crashed);
        let text = likeness("K3", "0x2", "a").to_string();
        assert!(text.starts_with("NOT as in the file"), "{text}");
    }

    #[test]
    fn two_runs_that_differ_again_are_a_failure_though_each_holds() {
        let mut two = likeness(NONDETERMINISM, "0x2", "a");
        two.then.what = NONDETERMINISM.into();
        assert_eq!(two.status(Status::Held), Status::Broken);
        assert!(two.to_string().starts_with("as in the file"), "{two}");
        two.what = "held".into();
        assert_eq!(two.status(Status::Held), Status::Broken);
        two.image = "b".into();
        assert_eq!(two.status(Status::Held), Status::Held);
    }
}
