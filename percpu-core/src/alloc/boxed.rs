//! The owning form of a dynamic per-CPU variable.

use core::fmt;
use core::marker::PhantomData;
use core::mem;

use super::{AllocError, Zeroable, alloc_percpu, free_percpu};
use crate::cpu::{self, CpuId};
use crate::irq::IrqGuard;
use crate::preempt::PreemptGuard;
use crate::var::{PerCpuPtr, Scalar, Structured, this_cpu_ops};

/// A `T` for each possible CPU, dropped with the box. Linux: `alloc_percpu` and `free_percpu`.
///
/// Integers and `bool` have the `this_cpu` operations, other types are lent out under guards; the
/// rules are those of [`PerCpu`](crate::var::PerCpu).
///
/// ```text
/// let hits = PerCpuBox::<u64>::try_new_zeroed()?;
/// hits.inc();
/// let sum: u64 = cpu::possible().iter().map(|cpu| hits.read_on(cpu)).sum();
/// ```
pub struct PerCpuBox<T> {
    ptr: PerCpuPtr<T>,
    owns: PhantomData<T>,
}

// SAFETY: the box owns its `T`s, which other CPUs use and drop already: `T: Send`.
unsafe impl<T: Send> Send for PerCpuBox<T> {}
// SAFETY: a shared box lends copies out as the rules of `PerCpu` say: to the one CPU that has it
// to itself, which takes `T: Send`, or to many, which each such method asks `T: Sync` for.
unsafe impl<T: Send> Sync for PerCpuBox<T> {}

impl<T> PerCpuBox<T> {
    /// Allocates zeroes. May sleep.
    ///
    /// # Errors
    ///
    /// As [`alloc_percpu`]; in particular [`AllocError::Align`] if `T` asks for more than a page.
    #[track_caller]
    pub fn try_new_zeroed() -> Result<Self, AllocError>
    where
        T: Zeroable + Send,
    {
        Ok(Self { ptr: Self::allocate()?, owns: PhantomData })
    }

    /// Allocates and calls `init` once for each possible CPU, on the CPU that runs this. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// As [`try_new_zeroed`](Self::try_new_zeroed).
    #[track_caller]
    pub fn try_new_with(mut init: impl FnMut(CpuId) -> T) -> Result<Self, AllocError>
    where
        T: Send,
    {
        let mut partial = Partial { ptr: Self::allocate()?, done: 0 };
        for cpu in cpu::possible().iter() {
            let value = init(cpu);
            // SAFETY: the allocator has just handed this out, as large and aligned as a `T`, on
            // every possible CPU, and nobody else knows of it.
            unsafe { partial.ptr.on(cpu).write(value) };
            partial.done += 1;
        }
        let ptr = partial.ptr;
        mem::forget(partial);
        Ok(Self { ptr, owns: PhantomData })
    }

    #[track_caller]
    fn allocate() -> Result<PerCpuPtr<T>, AllocError> {
        // A type without bytes still gets a name of its own.
        Ok(alloc_percpu(size_of::<T>().max(1), align_of::<T>())?.cast())
    }

    /// The pointer, which outlives neither the box nor what is in it.
    #[inline]
    pub fn ptr(&self) -> PerCpuPtr<T> {
        self.ptr
    }

    /// Address of `cpu`'s copy. Linux: `per_cpu_ptr`.
    #[inline]
    pub fn on(&self, cpu: CpuId) -> *const T {
        self.ptr.on(cpu)
    }

    /// `cpu`'s copy, for the box's only user.
    #[inline]
    pub fn get_mut(&mut self, cpu: CpuId) -> &mut T {
        // SAFETY: the copy is initialised and lives as long as the box; everybody else reaches it
        // through a shared borrow of the box, which `&mut self` excludes.
        unsafe { &mut *self.ptr.on(cpu) }
    }

    /// Lends this CPU's copy, with preemption off. Linux: `get_cpu_ptr`.
    ///
    /// Interrupt handlers of this CPU may see the copy at the same time, hence `T: Sync`.
    #[inline]
    pub fn with<R>(&self, pin: &PreemptGuard, f: impl for<'a> FnOnce(&'a T) -> R) -> R
    where
        T: Structured + Sync,
    {
        let _ = pin;
        // SAFETY: the copy is initialised and lives as long as the box; the guard keeps this
        // thread on the CPU, and `T: Sync` allows for everybody else.
        f(unsafe { &*self.ptr.here() })
    }

    /// Lends this CPU's copy, with interrupts masked. Linux: `local_irq_save` and `this_cpu_ptr`.
    ///
    /// Nobody else sees the copy at that time; but `f` may itself ask for it again, which is why it
    /// gets a shared reference. Put a `Cell` or a `RefCell` into the box to change it.
    #[inline]
    pub fn with_irq<R>(&self, irq: &IrqGuard, f: impl for<'a> FnOnce(&'a T) -> R) -> R
    where
        T: Structured + Send,
    {
        let _ = irq;
        // SAFETY: the copy is initialised and lives as long as the box; the guard keeps this
        // thread on the CPU and everybody else off it. Other CPUs get references by `remote` only,
        // which asks for `T: Sync`.
        f(unsafe { &*self.ptr.here() })
    }

    /// The copy of any CPU. Linux: `per_cpu_ptr`.
    #[inline]
    pub fn remote(&self, cpu: CpuId) -> &T
    where
        T: Structured + Sync,
    {
        // SAFETY: the copy is initialised and lives as long as the box, and `T: Sync` allows for
        // everybody.
        unsafe { &*self.on(cpu) }
    }

    /// Reads `cpu`'s copy with one relaxed load.
    #[inline]
    pub fn read_on(&self, cpu: CpuId) -> T
    where
        T: Scalar,
    {
        // SAFETY: the copy lives as long as the box, and scalars are never lent out by a shared
        // one.
        unsafe { self.ptr.read_on(cpu) }
    }

    /// Writes `cpu`'s copy with one relaxed store. An operation that `cpu` is in the middle of may
    /// undo it.
    #[inline]
    pub fn write_on(&self, cpu: CpuId, value: T)
    where
        T: Scalar,
    {
        // SAFETY: as in `read_on`.
        unsafe { self.ptr.write_on(cpu, value) }
    }
}

this_cpu_ops!(impl<T> PerCpuBox<T>);

impl<T> Drop for PerCpuBox<T> {
    fn drop(&mut self) {
        drop(Partial { ptr: self.ptr, done: usize::MAX });
    }
}

impl<T> fmt::Debug for PerCpuBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PerCpuBox({:#x})", self.ptr.raw())
    }
}

/// An area in which the first `done` possible CPUs' copies are initialised. Dropping it drops
/// those and frees the area, also when an initialiser or a destructor panics.
struct Partial<T> {
    ptr: PerCpuPtr<T>,
    done: usize,
}

impl<T> Drop for Partial<T> {
    fn drop(&mut self) {
        /// Frees the area when all the rest is done.
        struct Free(PerCpuPtr<u8>);

        impl Drop for Free {
            fn drop(&mut self) {
                // SAFETY: the owner of the copies is gone.
                let freed = unsafe { free_percpu(self.0) };
                debug_assert!(freed.is_ok(), "a box's area is live");
            }
        }

        let _free = Free(self.ptr.cast());
        if mem::needs_drop::<T>() {
            for cpu in cpu::possible().iter().take(self.done) {
                // SAFETY: the copy is initialised, and this is its owner's end.
                unsafe { self.ptr.on(cpu).drop_in_place() };
            }
        }
    }
}
