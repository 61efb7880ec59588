//! The count of a ref, without what it counts references to.

use core::mem::offset_of;

use super::shared::Shared;
use super::words::{Drift, Words};
use super::{RefError, RefFlags};
use crate::alloc::AllocError;
use crate::irq;
use crate::sync::{Mutex, SpinLock};
use crate::view::{REF_DEAD, RefView};

/// The per-CPU words and the shared one, and who may change the mode.
///
/// The number of references is at every moment the sum of the shared count and the balances of the
/// open words, less the bias that is in the shared count from before the first word may be opened
/// until after the last is closed. With the bias the shared count alone reaches 0 only if it is
/// the number of references.
#[repr(C)]
pub(super) struct Count {
    shared: Shared,
    words: Words,
    /// Held while a word is opened, and while that is being forbidden.
    opening: SpinLock<()>,
    control: Mutex<Control>,
}

/// Owned by the one thread that changes the mode.
struct Control {
    /// Stay in atomic mode, also in the next life.
    sticky_atomic: bool,
    /// There may be a next life.
    reusable: bool,
}

const _: () = {
    assert!(offset_of!(Count, words) == offset_of!(RefView, words));
    assert!(offset_of!(Count, shared) == offset_of!(RefView, shared));
};

impl Count {
    #[track_caller]
    pub(super) fn new(flags: RefFlags) -> Result<Self, AllocError> {
        let dead = flags.contains(RefFlags::INIT_DEAD);
        let atomic = dead || flags.contains(RefFlags::INIT_ATOMIC);
        let control = Control {
            sticky_atomic: flags.contains(RefFlags::INIT_ATOMIC),
            reusable: atomic || flags.contains(RefFlags::ALLOW_REINIT),
        };
        let count = Self {
            words: Words::new()?,
            shared: Shared::new(dead),
            opening: SpinLock::new(()),
            control: Mutex::new(control),
        };
        if !atomic {
            count.shared.allow_opening();
        }
        Ok(count)
    }

    /// Takes references; whether there were any.
    #[inline(always)]
    pub(super) fn tryget(&self, amount: u32) -> bool {
        let amount = i64::from(amount);
        // While a word is open there is a reference, the bias.
        !self.words.add_or_closed(amount) || self.tryget_closed(amount)
    }

    /// Takes references if the ref is alive.
    #[inline(always)]
    pub(super) fn tryget_live(&self, amount: u32) -> bool {
        let amount = i64::from(amount);
        // While a word is open nobody has been told that all words are closed.
        !self.words.add_or_closed(amount) || self.tryget_live_closed(amount)
    }

    /// Takes references, for one who has one.
    #[inline(always)]
    pub(super) fn get_more(&self, amount: u32) {
        let amount = i64::from(amount);
        if self.words.add_or_closed(amount) {
            self.get_more_closed(amount);
        }
    }

    /// Gives references back; whether they were the last.
    #[inline(always)]
    #[must_use]
    pub(super) fn put(&self, amount: u32) -> bool {
        let amount = i64::from(amount);
        self.words.add_or_closed(-amount) && self.put_closed(amount)
    }

    /// Gives back the reference that there was from the beginning, which is in the shared word;
    /// whether it was the last.
    #[must_use]
    pub(super) fn put_first(&self) -> bool {
        self.shared.put(1)
    }

    #[cold]
    #[inline(never)]
    fn tryget_closed(&self, amount: i64) -> bool {
        self.open_if_percpu();
        self.shared.get_if(amount, |_| true)
    }

    #[cold]
    #[inline(never)]
    fn tryget_live_closed(&self, amount: i64) -> bool {
        self.open_if_percpu();
        self.shared.get_if(amount, |state| !state.is_dead())
    }

    #[cold]
    #[inline(never)]
    fn get_more_closed(&self, amount: i64) {
        self.open_if_percpu();
        self.shared.get(amount);
    }

    #[cold]
    #[inline(never)]
    fn put_closed(&self, amount: i64) -> bool {
        self.open_if_percpu();
        self.shared.put(amount)
    }

    /// Opens this CPU's word if the mode allows. If another CPU opens its own, the next operation
    /// here tries again. A word that stays closed is kept far from what an open one looks like,
    /// however much is added to it by operations that find it closed.
    #[inline]
    fn open_if_percpu(&self) {
        if !self.shared.state().is_percpu() {
            if let Some(Drift::Closed(word)) = self.words.drift() {
                self.words.tidy(word);
            }
            return;
        }
        let Some(_opening) = self.opening.try_lock() else { return };
        // Whoever closes words has forbidden it under the lock before.
        if self.shared.state().is_percpu() {
            self.words.open_here();
        }
    }

    /// Looks after this CPU's word when many references are taken or given back at once: a CPU that
    /// only takes, while another only gives back, must not fill its word up. The caller has a
    /// reference, so none that is given back here is the last.
    #[inline]
    pub(super) fn recentre(&self) {
        if self.words.drift().is_some() {
            self.recentre_here();
        }
    }

    #[cold]
    #[inline(never)]
    fn recentre_here(&self) {
        let _irq = irq::disable();
        // Each step is an ordinary operation, and the total is never too small.
        match self.words.drift() {
            Some(Drift::Open(balance @ 0..)) => {
                self.shared.get(balance);
                let last = self.words.add_or_closed(-balance) && self.shared.put(balance);
                debug_assert!(!last);
            }
            Some(Drift::Open(balance)) => {
                if self.words.add_or_closed(-balance) {
                    self.shared.get(-balance);
                }
                let last = self.shared.put(-balance);
                debug_assert!(!last);
            }
            Some(Drift::Closed(word)) => self.words.tidy(word),
            None => {}
        }
    }

    /// Marks the ref dead, closes all words, calls `confirm`, by which the caller learns that it is
    /// for him to [give the first reference back](Self::put_first).
    pub(super) fn kill(&self, confirm: impl FnOnce()) -> Result<(), RefError> {
        let _control = self.control.lock();
        if self.shared.state().is_dead() {
            return Err(RefError::Dead);
        }
        self.close(REF_DEAD);
        confirm();
        Ok(())
    }

    /// Begins a new life.
    pub(super) fn revive(&self, unused: bool) -> Result<(), RefError> {
        let control = self.control.lock();
        if !self.shared.state().is_dead() {
            return Err(RefError::Alive);
        }
        if !control.reusable {
            return Err(RefError::Final);
        }
        let permitted =
            self.shared.revive(!control.sticky_atomic, |state| !unused || state.count() == 0);
        if permitted { Ok(()) } else { Err(RefError::InUse) }
    }

    pub(super) fn switch_to_atomic(&self) {
        let mut control = self.control.lock();
        control.sticky_atomic = true;
        self.close(0);
    }

    pub(super) fn switch_to_percpu(&self) {
        let mut control = self.control.lock();
        control.sticky_atomic = false;
        let state = self.shared.state();
        if !state.is_dead() && !state.is_percpu() {
            self.shared.allow_opening();
        }
    }

    /// Sets `flags`, closes all words if any may be open, and drops the bias. By the holder of the
    /// control lock.
    fn close(&self, flags: u64) {
        let opening = self.opening.lock();
        let before = self.shared.forbid_opening(flags);
        drop(opening);
        if before.is_percpu() {
            let balance = self.words.close_all();
            self.shared.settle(balance);
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.shared.state().is_dead()
    }

    pub(super) fn is_zero(&self) -> bool {
        self.shared.state().count() == 0
    }

    pub(super) fn is_percpu(&self) -> bool {
        self.shared.state().is_percpu()
    }
}
