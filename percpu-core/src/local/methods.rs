//! The methods that owners of per-CPU values, static or boxed, have when those are cells, locks or
//! statistics.

use super::lock::{IrqLocalGuard, taken};
use super::{IrqCell, LocalGuard, LocalLock, Reentered, SeqStats};
use crate::alloc::PerCpuBox;
use crate::cpu::{self, CpuId};
use crate::irq::{self, IrqGuard};
use crate::platform::{Global, Platform};
use crate::preempt::{self, PreemptGuard};
use crate::var::{Alignment, PerCpu};

macro_rules! methods {
    ($owner:ident $(, $p:ident: $bound:path)?) => {
        /// An [`IrqCell`] on each CPU.
        impl<T: Send $(, $p: $bound)?> $owner<IrqCell<T> $(, $p)?> {
            /// Lends this CPU's value for a change, with preemption off.
            ///
            /// Costs finding the copy, a compare-and-exchange without a bus lock that sets the flag, two
            /// branches, and a store.
            ///
            /// # Errors
            ///
            /// [`Reentered`]: it is lent already, to what this code interrupted or to its caller.
            ///
            /// # Panics
            ///
            /// Before the per-CPU areas are set up. If `f` panics the value is free again.
            #[inline]
            pub fn with_mut<R>(
                &self,
                pin: &PreemptGuard,
                f: impl for<'a> FnOnce(&'a mut T) -> R,
            ) -> Result<R, Reentered> {
                let _ = pin;
                // SAFETY: the cell lives as long as `self`, and these methods are the only way to
                // it; the guard outlives the claim, which outlives `f`.
                let (_claim, value) = unsafe { IrqCell::claim(self.ptr()) }.ok_or(Reentered)?;
                // SAFETY: claimed, so this is the only reference, and it ends with `f`.
                Ok(f(unsafe { &mut *value }))
            }

            /// Lends this CPU's value for a change, with interrupts masked: no handler comes in the
            /// middle.
            ///
            /// Costs what [`with_mut`](Self::with_mut) does.
            ///
            /// # Errors
            ///
            /// [`Reentered`]: it is lent already, without interrupts masked to what this code
            /// interrupted, or to its caller.
            ///
            /// # Panics
            ///
            /// As [`with_mut`](Self::with_mut).
            #[inline]
            pub fn with_mut_irq<R>(
                &self,
                irq: &IrqGuard,
                f: impl for<'a> FnOnce(&'a mut T) -> R,
            ) -> Result<R, Reentered> {
                let _ = irq;
                // SAFETY: as in `with_mut`.
                let (_claim, value) = unsafe { IrqCell::claim(self.ptr()) }.ok_or(Reentered)?;
                // SAFETY: as in `with_mut`.
                Ok(f(unsafe { &mut *value }))
            }
        }

        /// A [`LocalLock`] on each CPU.
        impl<T: Send $(, $p: $bound)?> $owner<LocalLock<T> $(, $p)?> {
            /// Turns preemption off and takes this CPU's lock. Linux: `local_lock`.
            ///
            /// For what no interrupt handler locks: it could not wait for the holder it interrupts.
            ///
            /// # Panics
            ///
            /// If the lock is taken: by what this code interrupted, or by its caller. Before the
            /// per-CPU areas are set up.
            #[inline]
            #[track_caller]
            pub fn lock(&self) -> LocalGuard<'_, T> {
                match self.try_lock() {
                    Some(guard) => guard,
                    None => taken(),
                }
            }

            /// Masks interrupts and takes this CPU's lock. Linux: `local_lock_irqsave`.
            ///
            /// # Panics
            ///
            /// As [`lock`](Self::lock).
            #[inline]
            #[track_caller]
            pub fn lock_irqsave(&self) -> LocalGuard<'_, T, IrqGuard> {
                match self.try_lock_irqsave() {
                    Some(guard) => guard,
                    None => taken(),
                }
            }

            /// As [`lock`](Self::lock); `None` if the lock is taken. Linux: `local_trylock`.
            ///
            /// # Panics
            ///
            /// Before the per-CPU areas are set up.
            #[inline]
            pub fn try_lock(&self) -> Option<LocalGuard<'_, T>> {
                // SAFETY: the lock lives as long as `self`, and these methods are the only way to
                // it.
                unsafe { LocalLock::take(self.ptr(), preempt::disable()) }
            }

            /// As [`lock_irqsave`](Self::lock_irqsave); `None` if the lock is taken. Linux:
            /// `local_trylock_irqsave`.
            ///
            /// # Panics
            ///
            /// Before the per-CPU areas are set up.
            #[inline]
            pub fn try_lock_irqsave(&self) -> Option<IrqLocalGuard<'_, T>> {
                // SAFETY: as in `try_lock`.
                unsafe { LocalLock::take(self.ptr(), irq::disable()) }
            }
        }

        /// [`SeqStats`] on each CPU.
        impl<const N: usize $(, $p: $bound)?> $owner<SeqStats<N> $(, $p)?> {
            /// Adds to this CPU's numbers, all at once for whoever reads them; wraps. Linux:
            /// `u64_stats_update_begin` to `u64_stats_update_end`.
            ///
            /// Costs two stores and, on weak machines, a fence more than the additions.
            ///
            /// # Panics
            ///
            /// Before the per-CPU areas are set up.
            #[inline]
            pub fn update(&self, irq: &IrqGuard, amounts: [u64; N]) {
                let _ = irq;
                // SAFETY: the copy lives as long as `self` and is atomics; interrupts are masked,
                // so that nobody else writes it.
                unsafe { &*self.ptr().here() }.add(amounts);
            }

            /// As [`update`](Self::update), for numbers that no interrupt handler updates.
            ///
            /// If one does all the same, in the middle of this, its amounts may be lost and readers
            /// may see some of the numbers of one moment and some of another. Nor does a handler
            /// read them on this CPU by anything but [`try_snapshot`](Self::try_snapshot): it would
            /// wait for what it has interrupted, and panics.
            ///
            /// # Panics
            ///
            /// As [`update`](Self::update); and a handler that updates all the same does, if debug
            /// assertions are on.
            #[inline]
            pub fn update_pinned(&self, pin: &PreemptGuard, amounts: [u64; N]) {
                let _ = pin;
                // SAFETY: the copy lives as long as `self` and is atomics.
                unsafe { &*self.ptr().here() }.add(amounts);
            }

            /// Returns `cpu`'s numbers as of one moment. Waits while they are being written, which is not
            /// long. Linux: `u64_stats_fetch_begin` to `u64_stats_fetch_retry`.
            ///
            /// # Panics
            ///
            /// If the CPU has no unit yet: it was never brought up. If this runs on `cpu` and has
            /// interrupted the update of the numbers, for which it would wait for ever.
            pub fn snapshot(&self, cpu: CpuId) -> [u64; N] {
                let mut spins = 0;
                loop {
                    if let Some(numbers) = self.try_snapshot(cpu) {
                        return numbers;
                    }
                    // SAFETY: as in `try_snapshot`.
                    unsafe { &*self.ptr().on(cpu) }.refuse_interrupted(cpu);
                    Global::relax(spins);
                    spins = spins.saturating_add(1);
                }
            }

            /// As [`snapshot`](Self::snapshot), for any context; `None` if the numbers are just
            /// being written.
            ///
            /// # Panics
            ///
            /// As [`snapshot`](Self::snapshot).
            pub fn try_snapshot(&self, cpu: CpuId) -> Option<[u64; N]> {
                // SAFETY: the CPU has a copy, or `on` panics; it lives as long as `self` and is
                // atomics.
                unsafe { &*self.ptr().on(cpu) }.try_read()
            }

            /// The sum over all CPUs, each CPU's numbers as of one moment; wraps. Costs a
            /// [`snapshot`](Self::snapshot) for each CPU that was ever up.
            pub fn sum(&self) -> [u64; N] {
                let mut sum = [0_u64; N];
                for cpu in cpu::booted_once().iter() {
                    for (sum, number) in sum.iter_mut().zip(self.snapshot(cpu)) {
                        *sum = sum.wrapping_add(number);
                    }
                }
                sum
            }
        }
    };
}

methods!(PerCpu, A: Alignment);
methods!(PerCpuBox);
