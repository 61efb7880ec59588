//! A ref's shared word: the count of everything that is not in an open per-CPU word, and what the
//! ref is.
//!
//! Both are in one word, so that taking a reference only if the ref is alive is one step, which
//! cannot succeed once the ref is marked dead, and so that leaving per-CPU mode is one step, too.
//!
//! # The ends of the count
//!
//! The count has 62 bits with a sign: it goes from -2^61 up to 2^61 - 1.
//!
//! | count | what it means |
//! |---|---|
//! | per-CPU mode | [`REF_BIAS`] (2^60) and what is not in open words. While the flag is set the ref is not released, whatever the count |
//! | atomic mode, 0 | released |
//! | atomic mode, up to [`MAX`] (2^59) | references |
//! | atomic mode, up to [`FITS`] (3 * 2^58) | references that CPUs had taken in their own words, where no limit is looked at, when the ref left per-CPU mode. No more are taken |
//! | atomic mode, around [`SATURATED`] (-2^60) | there were more when the ref left per-CPU mode. The number is lost, so the ref is never released. Linux: `REFCOUNT_SATURATED` |

use crate::atomic::{AtomicU64, Ordering};
use crate::view::{REF_BIAS, REF_DEAD, REF_ONE, REF_PERCPU};

/// The number of references beyond which the shared word takes no more.
const MAX: i64 = REF_BIAS / 2;
/// The number of references beyond which they are not counted any more when all words are closed.
/// With the bias of a next life it still is a count.
const FITS: i64 = REF_BIAS / 4 * 3;
/// The count of a ref that is never released: as far from 0 as from the end of the range.
const SATURATED: i64 = -REF_BIAS;

/// What the shared word says.
#[derive(Clone, Copy)]
pub(super) struct State(u64);

impl State {
    /// References, [`REF_BIAS`] among them in per-CPU mode.
    fn count(self) -> i64 {
        crate::view::ref_count(self.0)
    }

    /// Returns whether nobody has a reference.
    pub(super) fn is_zero(self) -> bool {
        !self.is_percpu() && self.count() == 0
    }

    /// The ref was killed.
    pub(super) fn is_dead(self) -> bool {
        self.0 & REF_DEAD != 0
    }

    /// Per-CPU words may be open.
    pub(super) fn is_percpu(self) -> bool {
        self.0 & REF_PERCPU != 0
    }

    /// The number of references is lost.
    fn is_saturated(self) -> bool {
        !self.is_percpu() && self.count() < SATURATED / 2
    }

    /// Returns whether the shared word may count `amount` more references.
    fn has_room_for(self, amount: i64) -> bool {
        let bias = if self.is_percpu() { REF_BIAS } else { 0 };
        !self.is_saturated() && self.count() + amount <= MAX + bias
    }

    fn plus(self, amount: i64) -> Self {
        Self(self.0.wrapping_add(units(amount)))
    }

    /// The ref in per-CPU mode, with the bias; it is in atomic mode.
    fn opened(self) -> Self {
        if self.is_saturated() {
            too_many();
        }
        Self(self.plus(REF_BIAS).0 | REF_PERCPU)
    }

    /// The ref in atomic mode, with what its words held; it is in per-CPU mode.
    fn closed(self, balance: i128) -> Self {
        let count = i128::from(self.count() - REF_BIAS) + balance;
        let count = if count > i128::from(FITS) { SATURATED } else { count as i64 };
        Self(units(count) | self.0 & (REF_ONE - 1) & !REF_PERCPU)
    }
}

/// References as what is added to the word.
fn units(amount: i64) -> u64 {
    amount.wrapping_mul(REF_ONE as i64) as u64
}

#[cold]
#[inline(never)]
#[track_caller]
pub(super) fn too_many() -> ! {
    panic!("there are too many references: they are taken and never given back");
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

    /// Takes references if there is one already and `condition` holds. Returns whether it took them.
    ///
    /// # Panics
    ///
    /// If there would be too many. Nothing has changed then.
    pub(super) fn get_if(&self, amount: i64, condition: impl Fn(State) -> bool) -> bool {
        self.update(|state| {
            if state.is_zero() || !condition(state) {
                return None;
            }
            if !state.has_room_for(amount) {
                too_many();
            }
            Some(state.plus(amount))
        })
        .is_some()
    }

    /// Takes references unless there would be too many. The caller has one already. Returns whether
    /// it took them.
    pub(super) fn get(&self, amount: i64) -> bool {
        let before = State(self.0.fetch_add(units(amount), Ordering::Relaxed));
        let room = before.has_room_for(amount);
        if !room {
            // They are not the last: the caller has one.
            self.0.fetch_sub(units(amount), Ordering::Relaxed);
        }
        room
    }

    /// Gives references back. Returns whether they were the last.
    #[must_use]
    pub(super) fn put(&self, amount: i64) -> bool {
        // Release: what was done with the reference comes before what the caller does that gives the
        // last one back. Acquire: for that caller.
        let before = State(self.0.fetch_sub(units(amount), Ordering::AcqRel));
        before.count() - amount <= 0 && self.is_over(before, amount)
    }

    /// Returns whether the references that were given back were the last, where the count has come
    /// to its lower end.
    #[cold]
    fn is_over(&self, before: State, amount: i64) -> bool {
        if before.is_saturated() {
            // The count stays as far from 0 as it was, however many are given back.
            self.0.fetch_add(units(amount), Ordering::Relaxed);
            return false;
        }
        let count = before.count() - amount;
        debug_assert!(
            before.is_percpu() || count >= 0,
            "more references are given back than were taken"
        );
        !before.is_percpu() && count == 0
    }

    /// Sets `flags` in atomic mode.
    ///
    /// # Panics
    ///
    /// If the ref is never released because its references are not counted any more.
    pub(super) fn mark(&self, flags: u64) {
        self.update(|state| {
            if state.is_saturated() {
                too_many();
            }
            Some(State(state.0 | flags))
        });
    }

    /// Enters per-CPU mode from atomic mode.
    ///
    /// # Panics
    ///
    /// If the ref is never released because its references are not counted any more.
    pub(super) fn open(&self) {
        self.update(|state| Some(state.opened()));
    }

    /// Begins a new life with the one reference that killing it gives back, if `condition` holds.
    /// Returns whether it did. A ref that is never released has no other life.
    pub(super) fn revive(&self, percpu: bool, condition: impl Fn(State) -> bool) -> bool {
        self.update(|state| {
            if state.is_saturated() || !condition(state) {
                return None;
            }
            let alive = State(state.0 & !REF_DEAD).plus(1);
            Some(if percpu { alive.opened() } else { alive })
        })
        .is_some()
    }

    /// Leaves per-CPU mode and sets `flags`: all words are closed, and held `balance`.
    ///
    /// # Panics
    ///
    /// If there are too many references to be counted. The ref is in atomic mode then, `flags` are
    /// set, and it is never released.
    pub(super) fn settle(&self, balance: i128, flags: u64) {
        let mut after = State(0);
        self.update(|state| {
            after = State(state.closed(balance).0 | flags);
            Some(after)
        });
        if after.is_saturated() {
            too_many();
        }
        debug_assert!(after.count() > 0, "more references are given back than were taken");
    }

    /// Changes the word unless `change` refuses; what it was before.
    fn update(&self, mut change: impl FnMut(State) -> Option<State>) -> Option<State> {
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

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// A ref whose shared count is `count`.
    fn at(count: i64, flags: u64) -> Shared {
        Shared(AtomicU64::new(units(count) | flags))
    }

    fn count(of: &Shared) -> i64 {
        of.state().count()
    }

    fn any(_: State) -> bool {
        true
    }

    fn panics<R>(f: impl FnOnce() -> R) -> bool {
        catch_unwind(AssertUnwindSafe(f)).is_err()
    }

    #[test]
    fn references_are_taken_up_to_the_limit_and_not_beyond() {
        for (bias, flags) in [(0, 0), (0, REF_DEAD), (REF_BIAS, REF_PERCPU)] {
            for amount in [1, 7, i64::from(u32::MAX), 1 << 58] {
                let last = at(bias + MAX - amount, flags);
                assert!(last.get_if(amount, any));
                let before = last.state().0;
                assert!(panics(|| last.get_if(amount, any)));
                assert!(panics(|| last.get_if(1, any)));
                assert!(!last.get(amount) && !last.get(1));
                assert_eq!((last.state().0, count(&last)), (before, bias + MAX));
                // Refused for another reason, it is not too much.
                assert!(!last.get_if(amount, |_| false));
                assert!(!last.put(amount));
                assert!(last.get(amount));
                assert_eq!(last.state().0, before);
            }
        }
    }

    #[test]
    fn what_was_released_has_no_references_and_what_is_per_cpu_has() {
        assert!(!at(0, 0).get_if(1, any) && at(0, 0).state().is_zero());
        assert!(!at(0, REF_DEAD).get_if(1, any));
        // References were taken in words and given back here, in a century.
        for count in [0, -1, -REF_BIAS] {
            let shared = at(count, REF_PERCPU);
            assert!(!shared.state().is_zero() && !shared.state().is_saturated());
            assert!(shared.get_if(1, any) && !shared.put(1), "released in per-CPU mode");
        }
    }

    #[test]
    fn the_last_reference_is_the_last() {
        for flags in [0, REF_DEAD] {
            let shared = at(i64::from(u32::MAX) + 1, flags);
            assert!(!shared.put(i64::from(u32::MAX)));
            assert!(shared.put(1) && shared.state().is_zero());
        }
        assert!(!at(REF_BIAS, REF_PERCPU).put(REF_BIAS));
    }

    #[test]
    fn words_are_settled_whatever_they_held() {
        let ends = [-MAX, -1, 0, 1, MAX];
        for shared in ends {
            for total in [1, 2, MAX, FITS - 1, FITS] {
                let of = at(REF_BIAS + shared, REF_PERCPU);
                of.settle(i128::from(total - shared), REF_DEAD);
                assert_eq!(of.state().0, units(total) | REF_DEAD);
                // There is another life, with the bias of per-CPU mode in it.
                assert!(of.revive(true, any));
                assert_eq!(of.state().0, units(REF_BIAS + total + 1) | REF_PERCPU);
                assert_eq!(of.state().count(), REF_BIAS + total + 1);
            }
        }
    }

    #[test]
    fn what_cannot_be_counted_is_never_released() {
        // As much as 1024 words can hold, and sums of which the low bits are those of a small one.
        let many = [i128::from(FITS), 1 << 61, 1 << 62, 1 << 63, 1 << 64, 1024 << 62];
        for balance in many {
            let of = at(REF_BIAS + 1, REF_PERCPU);
            assert!(panics(|| of.settle(balance, REF_DEAD)));
            let state = of.state();
            assert!(state.is_saturated() && state.is_dead());
            assert!(!state.is_percpu() && !state.is_zero());
            // As many as there may be, in as few steps as there may be.
            for amount in [1, i64::from(u32::MAX), 1 << 58, MAX] {
                for _ in 0..8 {
                    assert!(!of.put(amount));
                    assert_eq!(of.state().0, state.0, "it moves");
                }
            }
            assert!(!of.get(1) && panics(|| of.get_if(1, any)));
            assert!(!of.revive(true, any) && !of.revive(false, any));
            assert!(panics(|| of.open()) && panics(|| of.mark(0)));
            assert_eq!(of.state().0, state.0);
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    fn what_was_never_taken_is_noticed_when_it_is_given_back() {
        assert!(panics(|| at(0, REF_DEAD).put(1)));
        assert!(panics(|| at(REF_BIAS, REF_PERCPU).settle(-1, 0)));
    }
}
