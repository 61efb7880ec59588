//! Reference counts that many CPUs change at once, until the owner kills them. Linux: `percpu_ref`.
//!
//! A [`PercpuRef`] begins with one reference. As long as that is there the count cannot be 0 and
//! need not be known: each CPU adds to a word of its own. [`kill`](PercpuRef::kill) takes that
//! reference back and collects the CPUs' words in a shared atomic count. The caller that gives the
//! last reference back takes that count to 0 and calls [`Release::release`], once.
//!
//! ```
//! use core::sync::atomic::{AtomicBool, Ordering};
//! use percpu_core::host;
//! use percpu_core::refcount::{PercpuRef, RefFlags, Release};
//!
//! struct Queue {
//!     drained: AtomicBool,
//! }
//!
//! impl Release for Queue {
//!     fn release(&self) {
//!         self.drained.store(true, Ordering::Release);
//!     }
//! }
//!
//! host::boot(2).unwrap();
//! let _cpu = host::enter_any().unwrap();
//! let queue = PercpuRef::new(Queue { drained: AtomicBool::new(false) }, RefFlags::NONE)?;
//! let user = queue.tryget_live().expect("nobody has killed it");
//! queue.kill().expect("nobody has killed it");
//! assert!(queue.tryget_live().is_none());
//! assert!(!user.drained.load(Ordering::Acquire));
//! drop(user);
//! assert!(queue.is_zero() && queue.tryget().is_none());
//! # Ok::<(), percpu_core::alloc::AllocError>(())
//! ```
//!
//! # Modes
//!
//! | mode | get and put cost | when |
//! |---|---|---|
//! | per-CPU | an addition to this CPU's word and a branch | from the start; after [`switch_to_percpu`](PercpuRef::switch_to_percpu) |
//! | atomic | that, and an atomic operation on the shared word | from [`kill`](PercpuRef::kill) until the ref is revived; with [`INIT_ATOMIC`](RefFlags::INIT_ATOMIC), or after [`switch_to_atomic`](PercpuRef::switch_to_atomic), until [`switch_to_percpu`](PercpuRef::switch_to_percpu) |
//!
//! In per-CPU mode too a CPU's first operation, and the first after a change of mode, is an atomic
//! one, which makes the CPU ready for those that follow.
//!
//! Changes of mode are made by threads that may wait, and are complete when the call returns. They
//! wait for each other, and while a CPU goes up or down; so they are not for hotplug callbacks, nor
//! for holders of a [`CpusReadGuard`](crate::hotplug::CpusReadGuard). Everything else is for any
//! context but an NMI's; mind that giving the last reference back calls `release` there and then.
//!
//! # Where operations are atomic in per-CPU mode, too
//!
//! - On a thread that is no CPU (feature `host`). References may be sent to and given back by any
//!   thread; all methods work on any thread.
//! - On a CPU that the thread that kills could not call: before
//!   [`hotplug::init`](crate::hotplug::init), in a kernel that never calls it, and on a CPU that is not
//!   in the online mask. The exception is a kernel with the feature `up`, which has no other CPU.
//!
//! # How many references there can be
//!
//! At least 2^59. A method that takes references panics where the shared count would go beyond that.
//! What CPUs have in their own words is not in the shared count: up to 2^40 of
//! [`get_many`](PercpuRef::get_many) on each CPU, and whatever else was taken one by one. On 1024
//! CPUs that each take a reference every nanosecond and never give it back, it takes 6 days to come to
//! 2^59. If there are more than 3 * 2^58 when the words are collected, [`kill`](PercpuRef::kill) or
//! [`switch_to_atomic`](PercpuRef::switch_to_atomic) panics, and the ref is **never released**: the
//! references leak, and none of them is to something that was released. The word of one CPU that only
//! takes, or only gives back, one reference a nanosecond, is good for 146 years.
//!
//! # Panics in `release` and `confirm`
//!
//! Both run after the ref has become what it will be. If `confirm` panics, the ref is dead, and the
//! reference with which it began is given back. If `release` panics, the ref counts as released. The
//! panic goes on through the call, which may be the drop of a [`RefGuard`].
//!
//! `release` may use the ref: it is dead and without references, so all methods that take one say so;
//! [`reinit`](PercpuRef::reinit) and [`resurrect`](PercpuRef::resurrect) begin the next life while this
//! `release` is still running.
//!
//! # There is no grace period
//!
//! Linux waits for an RCU grace period between `percpu_ref_kill` and the release, and code has come
//! to rely on that. Here `release` may be called before `kill` returns. The ref protects callers
//! that *have* a reference. A caller that finds the ref by a pointer, in a table say, has none until
//! [`tryget_live`](PercpuRef::tryget_live) succeeds. Until then the code that frees the ref must keep
//! it: by RCU, by a lock around looking up and taking the reference, by never freeing. Safe code
//! cannot do otherwise: it has a `&PercpuRef`, which keeps the ref and the value in it alive, and
//! reaches the value through a [`RefGuard`] alone, of which there is none after the release.
//!
//! `release` says that there are no references any more; it does not free the ref. Dropping the ref
//! does (Linux: `percpu_ref_exit`), which its owner does later.
//!
//! # Implementation
//!
//! `words` has the per-CPU words and says how an operation finds out that its CPU's is closed,
//! `shared` the shared word, `count` puts both together.

mod count;
mod guard;
mod shared;
mod words;

use core::fmt;

use crate::alloc::AllocError;

pub use guard::RefGuard;

use count::Count;
use shared::too_many;

/// What is to be done when there are no references any more.
///
/// Closures implement it: `PercpuRef::new(|| wake_the_owner(), RefFlags::NONE)`.
pub trait Release {
    /// Called once for each life of the ref, in the context of the caller that gives the last
    /// reference back. Linux: `percpu_ref_func_t *release`.
    ///
    /// The ref itself is still in use by that caller: only something that happens later may drop it.
    /// No lock is held.
    fn release(&self);
}

impl<F: Fn()> Release for F {
    fn release(&self) {
        self();
    }
}

/// How a ref begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefFlags(u32);

impl RefFlags {
    /// In per-CPU mode, and killed for good when it is killed.
    pub const NONE: Self = Self(0);
    /// In atomic mode, until it is [switched](PercpuRef::switch_to_percpu); can be revived. Linux:
    /// `PERCPU_REF_INIT_ATOMIC`.
    pub const INIT_ATOMIC: Self = Self(1 << 0);
    /// Dead and without references, until it is [revived](PercpuRef::reinit). Linux:
    /// `PERCPU_REF_INIT_DEAD`.
    pub const INIT_DEAD: Self = Self(1 << 1);
    /// Can be revived. Linux: `PERCPU_REF_ALLOW_REINIT`.
    pub const ALLOW_REINIT: Self = Self(1 << 2);

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl core::ops::BitOr for RefFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a ref was not killed or revived. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefError {
    /// It is dead already.
    Dead,
    /// It is alive.
    Alive,
    /// There are references left.
    InUse,
    /// It was made without [`ALLOW_REINIT`](RefFlags::ALLOW_REINIT).
    Final,
}

impl fmt::Display for RefError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dead => "the ref has been killed already",
            Self::Alive => "the ref is alive",
            Self::InUse => "there are references left",
            Self::Final => "the ref was made without ALLOW_REINIT",
        })
    }
}

impl core::error::Error for RefError {}

/// A value with a count of references to it. Linux: `struct percpu_ref`.
///
/// Takes a word on each CPU and memory for an initialiser, see
/// [`PerCpuBox::try_new_with`](crate::alloc::PerCpuBox::try_new_with). Dropping it (Linux:
/// `percpu_ref_exit`) calls no `release`: no guard exists then.
#[repr(C)]
pub struct PercpuRef<T: Release> {
    /// First: its address is that of the [`RefView`](crate::view::RefView).
    count: Count,
    value: T,
}

impl<T: Release> PercpuRef<T> {
    /// A ref around `value`: alive with one reference, which [`kill`](Self::kill) gives back, or as
    /// `flags` say. May sleep. Linux: `percpu_ref_init`.
    ///
    /// # Errors
    ///
    /// There is no memory for the per-CPU words.
    #[track_caller]
    pub fn new(value: T, flags: RefFlags) -> Result<Self, AllocError> {
        Ok(Self { count: Count::new(flags)?, value })
    }

    /// Takes a reference to a ref that is known not to be released, dead or alive. Linux:
    /// `percpu_ref_get`.
    ///
    /// One instruction and a branch in per-CPU mode. A caller that has a guard clones that: then
    /// there is nothing to be checked.
    ///
    /// # Panics
    ///
    /// If the ref was released, or if there are [too many](self#how-many-references-there-can-be)
    /// references.
    #[inline]
    #[track_caller]
    pub fn get(&self) -> RefGuard<'_, T> {
        match self.tryget() {
            Some(guard) => guard,
            None => released(),
        }
    }

    /// Takes a reference, unless the ref was released; also if it was killed. Linux:
    /// `percpu_ref_tryget`.
    ///
    /// One instruction and a branch in per-CPU mode.
    ///
    /// # Panics
    ///
    /// If there are [too many](self#how-many-references-there-can-be) references.
    #[inline]
    pub fn tryget(&self) -> Option<RefGuard<'_, T>> {
        // SAFETY: the reference has just been taken.
        self.count.tryget(1).then(|| unsafe { RefGuard::from_raw(self) })
    }

    /// Takes a reference, unless the ref was killed. Linux: `percpu_ref_tryget_live`.
    ///
    /// Never succeeds from when [`kill`](Self::kill) confirms until the ref is revived; before that
    /// it may, on some CPUs longer than on others. One instruction and a branch in per-CPU mode.
    ///
    /// # Panics
    ///
    /// If there are [too many](self#how-many-references-there-can-be) references.
    #[inline]
    pub fn tryget_live(&self) -> Option<RefGuard<'_, T>> {
        // SAFETY: the reference has just been taken.
        self.count.tryget_live(1).then(|| unsafe { RefGuard::from_raw(self) })
    }

    /// Takes `amount` references at the price of one, for [`put_many`](Self::put_many) or as many
    /// [guards](RefGuard::from_raw). Linux: `percpu_ref_get_many`.
    ///
    /// # Panics
    ///
    /// If the ref was released, or if there are [2^59](self#how-many-references-there-can-be)
    /// references. None is taken then.
    #[inline]
    #[track_caller]
    pub fn get_many(&self, amount: u32) {
        if !self.tryget_many(amount) {
            released();
        }
    }

    /// As [`get_many`](Self::get_many), unless the ref was released. Linux:
    /// `percpu_ref_tryget_many`.
    ///
    /// # Panics
    ///
    /// If there are [2^59](self#how-many-references-there-can-be) references. None is taken then.
    #[inline]
    #[track_caller]
    #[must_use = "if it is false there is nothing to give back"]
    pub fn tryget_many(&self, amount: u32) -> bool {
        let taken = self.count.tryget(amount);
        // As long as there certainly is one.
        if taken && amount > 1 && !self.count.recentre(i64::from(amount)) {
            // SAFETY: they have just been taken.
            unsafe { self.put_many(amount) };
            too_many();
        }
        taken
    }

    /// Gives a reference back that was taken without a guard. Linux: `percpu_ref_put`.
    ///
    /// One instruction and a branch in per-CPU mode; calls [`Release::release`] if it was the last.
    ///
    /// # Safety
    ///
    /// The caller has the reference, and does not use it any more. The ref stays until this returns,
    /// also if other code learns that it was released.
    #[inline]
    pub unsafe fn put(&self) {
        if self.count.put(1) {
            self.value.release();
        }
    }

    /// Gives `amount` references back at the price of one. Linux: `percpu_ref_put_many`.
    ///
    /// # Safety
    ///
    /// As [`put`](Self::put), for all of them.
    #[inline]
    pub unsafe fn put_many(&self, amount: u32) {
        if amount > 1 {
            // Before they are given back, as long as there certainly is one.
            let counted = self.count.recentre(-i64::from(amount));
            debug_assert!(counted, "there is room for fewer references");
        }
        if self.count.put(amount) {
            self.value.release();
        }
    }

    /// Marks the ref dead, switches it to atomic mode, and gives the reference back with which it
    /// began. When this returns [`tryget_live`](Self::tryget_live) succeeds no more. Linux:
    /// `percpu_ref_kill`.
    ///
    /// May sleep. Interrupts each CPU that has used the ref, if that is in per-CPU mode.
    ///
    /// # Errors
    ///
    /// [`Dead`](RefError::Dead): it was killed before.
    ///
    /// # Panics
    ///
    /// If there are [too many](self#how-many-references-there-can-be) references: the ref is never
    /// released. If the caller must not change modes here (see [above](self#modes)) and that is
    /// noticed: nothing has changed then.
    pub fn kill(&self) -> Result<(), RefError> {
        self.kill_and_confirm(|| ())
    }

    /// As [`kill`](Self::kill), and calls `confirm` when [`tryget_live`](Self::tryget_live) succeeds
    /// no more: before the release, in the context of the caller. Linux:
    /// `percpu_ref_kill_and_confirm`.
    ///
    /// `confirm` must not change the ref's mode nor kill or revive it: that waits for this call to be
    /// over.
    ///
    /// # Errors
    ///
    /// As [`kill`](Self::kill); `confirm` is not called then.
    ///
    /// # Panics
    ///
    /// As [`kill`](Self::kill), before `confirm` is called; or as `confirm` does, when the reference
    /// with which the ref began has been given back.
    pub fn kill_and_confirm(&self, confirm: impl FnOnce()) -> Result<(), RefError> {
        /// The reference with which the ref began.
        struct First<'a, T: Release>(&'a PercpuRef<T>);

        impl<T: Release> Drop for First<'_, T> {
            fn drop(&mut self) {
                if self.0.count.put_first() {
                    self.0.value.release();
                }
            }
        }

        // Given back at the end, also when `confirm` panics; but nothing is if the ref was dead.
        let mut first = None;
        self.count.kill(|| {
            first = Some(First(self));
            confirm();
        })
    }

    /// Revives a ref that was killed and released: it is alive with one reference, in the mode in
    /// which it was before it was killed. Linux: `percpu_ref_reinit`.
    ///
    /// May sleep. That the release is over, and not only about to be called, is for `release`
    /// itself to say.
    ///
    /// # Errors
    ///
    /// It is not dead, or not released, or killed for good.
    pub fn reinit(&self) -> Result<(), RefError> {
        self.count.revive(true)
    }

    /// Revives a ref that was killed, released or not: if it was not, it will not be. Linux:
    /// `percpu_ref_resurrect`.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// It is not dead, or killed for good; [`InUse`](RefError::InUse) if it is never released because
    /// there were [too many](self#how-many-references-there-can-be) references.
    pub fn resurrect(&self) -> Result<(), RefError> {
        self.count.revive(false)
    }

    /// Switches to atomic mode, in which the ref stays until
    /// [`switch_to_percpu`](Self::switch_to_percpu), also when it is killed and revived. Linux:
    /// `percpu_ref_switch_to_atomic_sync`.
    ///
    /// May sleep. Interrupts each CPU that has used the ref, if that is in per-CPU mode.
    ///
    /// # Panics
    ///
    /// As [`kill`](Self::kill).
    pub fn switch_to_atomic(&self) {
        self.count.switch_to_atomic();
    }

    /// Switches to per-CPU mode; a ref that is dead, when it is revived. Linux:
    /// `percpu_ref_switch_to_percpu`.
    ///
    /// May sleep.
    ///
    /// # Panics
    ///
    /// If the ref is never released because there were
    /// [too many](self#how-many-references-there-can-be) references.
    pub fn switch_to_percpu(&self) {
        self.count.switch_to_percpu();
    }

    /// Whether the ref was killed and not revived. Linux: `percpu_ref_is_dying`.
    pub fn is_dying(&self) -> bool {
        self.count.is_dead()
    }

    /// Whether there are no references: the ref was released, or is about to be. One load. Linux:
    /// `percpu_ref_is_zero`.
    pub fn is_zero(&self) -> bool {
        self.count.is_zero()
    }

    /// Whether the ref is in per-CPU mode. Linux: not `__PERCPU_REF_ATOMIC`.
    pub fn is_percpu(&self) -> bool {
        self.count.is_percpu()
    }

    /// The value, for the ref's owner.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.value
    }

    /// Address of the [`RefView`](crate::view::RefView), as long as the ref stays where it is.
    pub fn view_address(&self) -> usize {
        (&raw const self.count).expose_provenance()
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn released() -> ! {
    panic!("a reference was asked for after the ref had been released");
}

impl<T: Release> fmt::Debug for PercpuRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PercpuRef")
            .field("percpu", &self.is_percpu())
            .field("dying", &self.is_dying())
            .field("zero", &self.is_zero())
            .finish_non_exhaustive()
    }
}
