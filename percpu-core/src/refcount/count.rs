//! The count of a ref, without what it counts references to.

use core::mem::offset_of;

use super::shared::{Shared, too_many};
use super::words::{Drift, Words};
use super::{RefError, RefFlags};
use crate::alloc::AllocError;
use crate::hotplug::cpus_read_lock;
use crate::irq;
use crate::sync::{Mutex, SpinLock};
use crate::view::{REF_DEAD, RefView};

/// The per-CPU words and the shared one, and the lock of those that change the mode.
///
/// The number of references is at every moment the sum of the shared count and the balances of the
/// open words, less the bias that is in the shared count in per-CPU mode: from before the first word
/// may be opened until after the last is closed. In that mode the ref is not released; in atomic mode
/// the shared count is the number of references.
///
/// # How many references there can be
///
/// The shared word [takes no more](Shared::get_if) than 2^59. It does not know what CPUs have in
/// their own words, where the one addition of an operation leaves no room for a limit:
///
/// - An operation on many references keeps the word of its CPU [near](Words::drift) 0: all words
///   together have up to 2^50 from such operations, on 1024 CPUs.
/// - Single operations of one CPU that all go the same way, one a nanosecond, fill its word up in
///   146 years (2^62).
/// - Single operations of 1024 CPUs that take a reference a nanosecond each, and forget it, come to
///   2^59 in 6 days. So that is what [`settle`](Shared::settle) looks at when the words are closed.
#[repr(C)]
pub(super) struct Count {
    shared: Shared,
    words: Words,
    /// Whether words may be opened. Held while one is, and while that is being forbidden.
    opening: SpinLock<bool>,
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
            opening: SpinLock::new(!atomic),
            control: Mutex::new(control),
        };
        if !atomic {
            count.shared.open();
        }
        Ok(count)
    }

    /// Takes references. Returns whether there were any.
    #[inline(always)]
    pub(super) fn tryget(&self, amount: u32) -> bool {
        let amount = i64::from(amount);
        // While a word is open there is a reference, the bias.
        !self.words.add_or_closed(amount) || self.tryget_closed(amount)
    }

    /// Takes references if the ref is alive. Returns whether it took them.
    #[inline(always)]
    pub(super) fn tryget_live(&self, amount: u32) -> bool {
        let amount = i64::from(amount);
        // While a word is open no kill has confirmed.
        !self.words.add_or_closed(amount) || self.tryget_live_closed(amount)
    }

    /// Takes references. The caller has one already.
    ///
    /// # Panics
    ///
    /// If there would be too many. None is taken then.
    #[inline(always)]
    pub(super) fn get_more(&self, amount: u32) {
        let amount = i64::from(amount);
        if self.words.add_or_closed(amount) {
            self.get_more_closed(amount);
        }
    }

    /// Gives references back. Returns whether they were the last.
    #[inline(always)]
    #[must_use]
    pub(super) fn put(&self, amount: u32) -> bool {
        let amount = i64::from(amount);
        self.words.add_or_closed(-amount) && self.put_closed(amount)
    }

    /// Gives back the reference that there was from the beginning, which is in the shared word.
    /// Returns whether it was the last.
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
        if !self.shared.get(amount) {
            too_many();
        }
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
        let open = self.shared.state().is_percpu() && self.open_here();
        if !open && let Some(Drift::Closed(word)) = self.words.drift() {
            self.words.tidy(word);
        }
    }

    /// Opens this CPU's word if it can be closed again. Returns whether it is open.
    fn open_here(&self) -> bool {
        // The CPU stays what it is until its word is open.
        let _irq = irq::disable();
        if !Words::can_be_opened_here() {
            return false;
        }
        let Some(allowed) = self.opening.try_lock() else { return false };
        if *allowed {
            self.words.open_here();
        }
        *allowed
    }

    /// Looks after this CPU's word when many references have been taken (`amount` is positive), or
    /// will be given back, at once: a CPU that only takes, while another only gives back, must not
    /// fill its word up. The caller has them, so none that is given back here is the last.
    ///
    /// Returns whether the ref can count that many: if not, the caller gives them back.
    #[inline]
    #[must_use]
    pub(super) fn recentre(&self, amount: i64) -> bool {
        self.words.drift().is_none() || self.recentre_here(amount)
    }

    #[cold]
    #[inline(never)]
    fn recentre_here(&self, amount: i64) -> bool {
        let _irq = irq::disable();
        // Each step is an ordinary operation, and the total is never too small.
        match self.words.drift() {
            Some(Drift::Open(balance @ 0..)) if amount > 0 => {
                if !self.shared.get(balance) {
                    return false;
                }
                if self.words.add_or_closed(-balance) {
                    let last = self.shared.put(balance);
                    debug_assert!(!last);
                }
            }
            Some(Drift::Open(balance @ ..0)) if amount < 0 => {
                if !self.words.add_or_closed(-balance) {
                    let last = self.shared.put(-balance);
                    debug_assert!(!last);
                }
            }
            // The operation itself brings the word nearer to its centre.
            Some(Drift::Open(_)) | None => {}
            Some(Drift::Closed(word)) => self.words.tidy(word),
        }
        true
    }

    /// Marks the ref dead, closes all words, and calls `confirm`, which tells the caller to
    /// [give the first reference back](Self::put_first).
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
        let percpu = !control.sticky_atomic;
        if !self.shared.revive(percpu, |state| !unused || state.is_zero()) {
            return Err(RefError::InUse);
        }
        *self.opening.lock() = percpu;
        Ok(())
    }

    pub(super) fn switch_to_atomic(&self) {
        let mut control = self.control.lock();
        self.close(0);
        control.sticky_atomic = true;
    }

    pub(super) fn switch_to_percpu(&self) {
        let mut control = self.control.lock();
        let state = self.shared.state();
        if !state.is_dead() && !state.is_percpu() {
            self.shared.open();
            *self.opening.lock() = true;
        }
        control.sticky_atomic = false;
    }

    /// Closes all words if any may be open, and sets `flags` together with atomic mode. By the holder
    /// of the control lock.
    fn close(&self, flags: u64) {
        if !self.shared.state().is_percpu() {
            return self.shared.mark(flags);
        }
        // Before anything has changed: this panics where it would wait for ever.
        let cpus = cpus_read_lock();
        *self.opening.lock() = false;
        let balance = self.words.close_all(&cpus);
        drop(cpus);
        self.shared.settle(balance, flags);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.shared.state().is_dead()
    }

    pub(super) fn is_zero(&self) -> bool {
        self.shared.state().is_zero()
    }

    pub(super) fn is_percpu(&self) -> bool {
        self.shared.state().is_percpu()
    }
}
