//! A per-CPU cell that turns the second user away.

use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::AtomicBool;

use super::claim::Claim;
use crate::alloc::Zeroable;
use crate::atomic::UnsafeCell;
use crate::var::PerCpuPtr;

/// A value that this CPU alone changes in place, and that an interrupt handler which comes in the
/// middle of that does not get.
///
/// Put it into a [`PerCpu`](crate::var::PerCpu) or a [`PerCpuBox`](crate::alloc::PerCpuBox), which
/// then have [`with_mut`](crate::var::PerCpu::with_mut) and
/// [`with_mut_irq`](crate::var::PerCpu::with_mut_irq). A use costs a dozen
/// instructions, none of them locked.
///
/// Values that are not `Send` do not go into a per-CPU variable, in a cell neither:
///
/// ```compile_fail,E0277
/// # use percpu_core::local::IrqCell;
/// percpu_core::percpu! {
///     static CELL: PerCpu<IrqCell<Option<std::rc::Rc<u32>>>> = IrqCell::new(None);
/// }
/// ```
///
/// There is no way to another CPU's copy,
///
/// ```compile_fail,E0277
/// # use percpu_core::local::IrqCell;
/// # percpu_core::percpu! { static CELL: PerCpu<IrqCell<u32>> = IrqCell::new(0); }
/// # fn f(cpu: percpu_core::cpu::CpuId) {
/// CELL.remote(cpu);
/// # }
/// ```
///
/// and no reference leaves the closure.
///
/// ```compile_fail
/// # use percpu_core::local::IrqCell;
/// # percpu_core::percpu! { static CELL: PerCpu<IrqCell<u32>> = IrqCell::new(0); }
/// let pin = percpu_core::preempt::disable();
/// let value: &mut u32 = CELL.with_mut(&pin, |value| value).unwrap();
/// ```
#[repr(C)]
pub struct IrqCell<T> {
    /// In use on this CPU. Accessed as a per-CPU variable.
    in_use: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: zero is a flag that is not set, and a `T`.
unsafe impl<T: Zeroable> Zeroable for IrqCell<T> {}

impl<T> IrqCell<T> {
    /// A cell that is not in use.
    pub const fn new(value: T) -> Self {
        Self { in_use: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The value, for the cell's only owner.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Takes this CPU's copy for its alone, unless it is in use. The value, and what holds it.
    ///
    /// # Safety
    ///
    /// `cell` is a live per-CPU variable, whose copies nobody reaches in another way. The thread
    /// stays on the CPU until the claim is dropped, and the value is not used afterwards.
    ///
    /// # Panics
    ///
    /// Before the per-CPU areas are set up.
    #[inline]
    pub(super) unsafe fn claim(cell: PerCpuPtr<Self>) -> Option<(Claim, *mut T)> {
        let here = cell.here();
        let flag = cell.raw().wrapping_add(offset_of!(Self, in_use));
        // SAFETY: the flag lives as long as the cell; the rest is passed on to the caller.
        let claim = unsafe { Claim::take(PerCpuPtr::from_raw(flag)) }?;
        // SAFETY: `here` is the address of the CPU's copy, which nobody else uses.
        let value = unsafe { &*here }.value.get();
        Some((claim, value))
    }
}

/// This CPU's copy is in use: by what this code interrupted, or by what called it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reentered;

impl fmt::Display for Reentered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this CPU's copy is in use by the code that was interrupted, or by the caller")
    }
}

impl core::error::Error for Reentered {}
