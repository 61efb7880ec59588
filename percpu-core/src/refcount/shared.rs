//! A ref's shared word: the count of everything that is not in an open per-CPU word, and what the
//! ref is.
//!
//! Both in one word, so that whoever takes a reference only if the ref is alive does that in one
//! step, which cannot succeed once the ref is marked dead.

use crate::atomic::{AtomicU64, Ordering};
use crate::view::{REF_BIAS, REF_DEAD, REF_ONE, REF_PERCPU};

/// The count of one who owns more references than there can be.
const TOO_MANY: i64 = REF_BIAS / 2;

/// What the shared word says.
#[derive(Clone, Copy)]
pub(super) struct State(u64);

impl State {
    /// References, [`REF_BIAS`] among them while a per-CPU word may be open.
    pub(super) fn count(self) -> i64 {
        crate::view::ref_count(self.0)
    }

    /// The ref was killed.
    pub(super) fn is_dead(self) -> bool {
        self.0 & REF_DEAD != 0
    }

    /// Per-CPU words may be opened.
    pub(super) fn is_percpu(self) -> bool {
        self.0 & REF_PERCPU != 0
    }

    fn plus(self, amount: i64) -> Self {
        Self(self.0.wrapping_add(units(amount)))
    }
}

/// References as what is added to the word.
fn units(amount: i64) -> u64 {
    amount.wrapping_mul(REF_ONE as i64) as u64
}

/// The shared word.
#[repr(transparent)]
pub(super) struct Shared(AtomicU64);

impl Shared {
    /// A ref in atomic mode: alive with the one reference that killing it gives back, or dead.
    pub(super) fn new(dead: bool) -> Self {
        Self(AtomicU64::new(if dead { REF_DEAD } else { REF_ONE }))
    }

    pub(super) fn state(&self) -> State {
        State(self.0.load(Ordering::Acquire))
    }

    /// Takes references, if there is one already and `condition` holds.
    ///
    /// # Panics
    ///
    /// If there are too many.
    pub(super) fn get_if(&self, amount: i64, condition: impl Fn(State) -> bool) -> bool {
        self.update(|state| {
            assert!(
                state.count() < REF_BIAS + TOO_MANY,
                "references are taken and never given back"
            );
            (state.count() > 0 && condition(state)).then(|| state.plus(amount))
        })
        .is_some()
    }

    /// Takes references, for one who has some.
    pub(super) fn get(&self, amount: i64) {
        self.0.fetch_add(units(amount), Ordering::Relaxed);
    }

    /// Gives references back; whether they were the last.
    #[must_use]
    pub(super) fn put(&self, amount: i64) -> bool {
        // Release: what was done with the reference comes before what the one does who gives the
        // last one back. Acquire: for that one.
        let before = State(self.0.fetch_sub(units(amount), Ordering::AcqRel));
        let count = before.count() - amount;
        debug_assert!(count >= 0, "more references are given back than were taken");
        count == 0
    }

    /// Forbids the opening of words and sets `flags`; what it was before.
    pub(super) fn forbid_opening(&self, flags: u64) -> State {
        self.update(|state| Some(State((state.0 | flags) & !REF_PERCPU)))
            .expect("the change is never refused")
    }

    /// Allows words to be opened; in atomic mode only.
    pub(super) fn allow_opening(&self) {
        self.update(|state| Some(state.opened()));
    }

    /// Begins a new life with the one reference that killing it gives back, if `condition` holds.
    pub(super) fn revive(&self, percpu: bool, condition: impl Fn(State) -> bool) -> bool {
        self.update(|state| {
            let alive = State(state.0 & !REF_DEAD).plus(1);
            condition(state).then(|| if percpu { alive.opened() } else { alive })
        })
        .is_some()
    }

    /// All words are closed; adds up what they held.
    pub(super) fn settle(&self, balance: i64) {
        let before = State(self.0.fetch_add(units(balance - REF_BIAS), Ordering::AcqRel));
        debug_assert!(
            before.count() + balance > REF_BIAS,
            "more references are given back than were taken"
        );
    }

    /// Changes the word unless `change` refuses; what it was before.
    fn update(&self, change: impl Fn(State) -> Option<State>) -> Option<State> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let new = change(State(word))?.0;
            match self.0.compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(State(word)),
                Err(latest) => word = latest,
            }
        }
    }
}

impl State {
    fn opened(self) -> Self {
        assert!(self.count() < TOO_MANY, "references are taken and never given back");
        Self(self.plus(REF_BIAS).0 | REF_PERCPU)
    }
}
