//! Static per-CPU variables.

use core::cell::UnsafeCell;
use core::ptr::with_exposed_provenance;

use super::{PerCpuPtr, Scalar, Structured, owner_methods, this_cpu_ops};
use crate::cpu::CpuId;
use crate::irq::IrqGuard;
use crate::preempt::PreemptGuard;

/// Where [`percpu!`](crate::percpu) places a variable.
pub trait Alignment: 'static {
    /// A type with the alignment to be had.
    #[doc(hidden)]
    type Unit;
}

/// Aligned as its type asks.
pub enum Plain {}
/// Next to the other hot ones.
pub enum Hot {}
/// Next to the others that are hardly ever written.
pub enum ReadMostly {}
/// On cache lines of its own.
pub enum SharedAligned {}
/// On pages of its own.
pub enum PageAligned {}

#[doc(hidden)]
#[repr(align(64))]
pub struct CacheLine;
#[doc(hidden)]
#[repr(align(4096))]
pub struct Page;

impl Alignment for Plain {
    type Unit = ();
}
impl Alignment for Hot {
    type Unit = ();
}
impl Alignment for ReadMostly {
    type Unit = ();
}
impl Alignment for SharedAligned {
    type Unit = CacheLine;
}
impl Alignment for PageAligned {
    type Unit = Page;
}

/// A static variable with one copy for each CPU that has a unit, made by
/// [`percpu!`](crate::percpu).
///
/// The static itself is the template of the copies.
#[repr(C)]
pub struct PerCpu<T: 'static, A: Alignment = Plain> {
    align: [A::Unit; 0],
    template: UnsafeCell<T>,
    #[cfg(all(miri, not(feature = "up")))]
    place: super::placement::Place,
}

// SAFETY: the methods lend a copy out only as the table in the module's documentation says; that a
// thread may find what another thread of the CPU left there needs `T: Send`.
unsafe impl<T: Send, A: Alignment> Sync for PerCpu<T, A> {}

impl<T, A: Alignment> PerCpu<T, A> {
    /// A template with this value.
    ///
    /// # Safety
    ///
    /// The result becomes a static in the section `percpu`, and `value` is one of which any number
    /// of bitwise copies may exist: that of a constant.
    #[doc(hidden)]
    pub const unsafe fn new(value: T) -> Self {
        const { assert!(align_of::<Self>() <= 4096, "a unit is aligned to a page, not to more") };
        Self {
            align: [],
            template: UnsafeCell::new(value),
            #[cfg(all(miri, not(feature = "up")))]
            place: super::placement::Place::new(),
        }
    }

    /// Address of the template: the variable's name in the space of per-CPU pointers.
    #[inline]
    pub fn ptr(&self) -> PerCpuPtr<T> {
        const { assert!(align_of::<Self>() <= 4096, "a unit is aligned to a page, not to more") };
        #[cfg(not(all(miri, not(feature = "up"))))]
        let address = self.template.get().expose_provenance();
        #[cfg(all(miri, not(feature = "up")))]
        let address = self.place.address(&self.template, align_of::<A::Unit>());
        PerCpuPtr::from_raw(address)
    }

    /// Address of `cpu`'s copy: template address plus `per_cpu_offset[cpu]`. Linux: `per_cpu_ptr`.
    ///
    /// # Panics
    ///
    /// As [`PerCpuPtr::on`].
    #[inline]
    pub fn on(&self, cpu: CpuId) -> *mut T {
        self.ptr().on(cpu)
    }

    /// Lends this CPU's copy, with preemption off. Linux: `get_cpu_var`.
    ///
    /// Interrupt handlers of this CPU may see the copy at the same time, hence `T: Sync`.
    ///
    /// # Panics
    ///
    /// Before the per-CPU areas are set up.
    #[inline]
    pub fn with<R>(&self, pin: &PreemptGuard, f: impl for<'a> FnOnce(&'a T) -> R) -> R
    where
        T: Structured + Sync,
    {
        let _ = pin;
        // SAFETY: the guard keeps this thread on the CPU; `T: Sync` allows for everybody else.
        f(unsafe { &*self.ptr().here() })
    }

    /// Lends this CPU's copy, with interrupts masked. Linux: `local_irq_save` and `this_cpu_ptr`.
    ///
    /// Nobody else sees the copy at that time; but `f` may itself ask for it again, which is why it
    /// gets a shared reference. Put a `Cell` or a `RefCell` into the variable to change it.
    ///
    /// # Panics
    ///
    /// Before the per-CPU areas are set up.
    #[inline]
    pub fn with_irq<R>(&self, irq: &IrqGuard, f: impl for<'a> FnOnce(&'a T) -> R) -> R
    where
        T: Structured + Send,
    {
        let _ = irq;
        // SAFETY: the guard keeps this thread on the CPU and everybody else off it. Other CPUs get
        // references by `remote` only, which asks for `T: Sync`.
        f(unsafe { &*self.ptr().here() })
    }

    /// The copy of any CPU. Linux: `per_cpu`.
    ///
    /// # Panics
    ///
    /// If the CPU has no unit yet: it was never brought up.
    #[inline]
    pub fn remote(&'static self, cpu: CpuId) -> &'static T
    where
        T: Structured + Send + Sync,
    {
        // SAFETY: the CPU has a unit, or `on` panics; a unit has the template's values before it is
        // known, and is never given back. `T: Sync` allows for everybody.
        unsafe { &*with_exposed_provenance(self.on(cpu).addr()) }
    }

    /// Reads `cpu`'s copy with one relaxed load. Linux: `READ_ONCE(per_cpu(var, cpu))`.
    ///
    /// # Panics
    ///
    /// If the CPU has no unit yet: it was never brought up.
    #[inline]
    pub fn read_on(&self, cpu: CpuId) -> T
    where
        T: Scalar,
    {
        // SAFETY: the copy is valid for ever, or the CPU has none and this panics; scalars are only
        // accessed atomically.
        unsafe { self.ptr().read_on(cpu) }
    }
}

this_cpu_ops! { impl<T, A: Alignment> PerCpu<T, A> }
