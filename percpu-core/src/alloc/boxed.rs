//! The owning form of a dynamic per-CPU variable.

use core::fmt;
use core::marker::PhantomData;
use core::mem::{self, MaybeUninit};
use core::ptr::NonNull;

use super::initialisers::{self, Head};
use super::{AllocError, Zeroable, alloc_percpu, free_percpu};
use crate::cpu::{self, CpuId};
use crate::irq::IrqGuard;
use crate::preempt::PreemptGuard;
use crate::unwind::for_each_to_the_end;
use crate::var::{PerCpuPtr, Scalar, Structured, owner_methods, this_cpu_ops};

/// A `T` for each CPU that has a unit, dropped with the box. Linux: `alloc_percpu` and
/// `free_percpu`.
///
/// Integers and `bool` have the `this_cpu` operations, other types are lent out under guards; the
/// rules are those of [`PerCpu`](crate::var::PerCpu). A CPU that comes up for the first time while
/// the box is there finds zero in its copy, or what the box's initialiser makes for it.
///
/// ```text
/// let hits = PerCpuBox::<u64>::try_new_zeroed()?;
/// hits.inc();
/// let sum: u64 = cpu::booted_once().iter().map(|cpu| hits.read_on(cpu)).sum();
///
/// let queues = PerCpuBox::try_new_with(|cpu| SpinLock::new(Queue::of(cpu)))?;
/// ```
///
/// The methods that name a CPU panic if that has no unit yet: it was never brought up.
pub struct PerCpuBox<T> {
    ptr: PerCpuPtr<T>,
    /// What made the values. Without one the copies began as zero.
    initialiser: Option<NonNull<Head>>,
    owns: PhantomData<T>,
}

// SAFETY: the box owns its `T`s, which other CPUs use and drop already: `T: Send`. Its initialiser
// is one that any thread may call and drop.
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
        Ok(Self { ptr: Self::allocate()?.into_ptr(), initialiser: None, owns: PhantomData })
    }

    /// Allocates memory for values that are written [later](Self::get_mut). It is zero, as all
    /// per-CPU memory: this is [`try_new_zeroed`](Self::try_new_zeroed) for types of which zero
    /// bytes are no value. May sleep.
    ///
    /// # Errors
    ///
    /// As [`try_new_zeroed`](Self::try_new_zeroed).
    #[track_caller]
    pub fn try_new_uninit() -> Result<PerCpuBox<MaybeUninit<T>>, AllocError>
    where
        T: Send,
    {
        PerCpuBox::try_new_zeroed()
    }

    /// Allocates and calls `init` once for each CPU that has a unit, on the CPU that runs this; and
    /// later, as long as the box is there, for each CPU that comes up for the first time, on the CPU
    /// that brings it up. May sleep, and so may the drop of the box, which waits while `init` runs.
    ///
    /// `init` may make and drop other boxes, but not drop the one that it is of: the drop would wait for
    /// `init` to end, and [panics](Self#method.drop). Nor may it bring up another CPU while it runs for one
    /// that comes up. Takes memory for `init` and a few words more.
    ///
    /// # Errors
    ///
    /// As [`try_new_zeroed`](Self::try_new_zeroed), and [`AllocError::NoMemory`] for `init`.
    ///
    /// # Panics
    ///
    /// If `init` does; the values made before have been dropped then, and the memory freed. If it does
    /// so later, for a CPU that comes up, that CPU does not come up.
    #[track_caller]
    pub fn try_new_with<F>(init: F) -> Result<Self, AllocError>
    where
        T: Send + 'static,
        F: Fn(CpuId) -> T + Send + Sync + 'static,
    {
        let area = Self::allocate()?;
        let node = initialisers::register(area.ptr, init).map_err(|_| AllocError::NoMemory)?;
        Ok(Self { ptr: area.into_ptr(), initialiser: Some(node), owns: PhantomData })
    }

    #[track_caller]
    fn allocate() -> Result<Area<T>, AllocError> {
        // A type without bytes still gets a name of its own.
        Ok(Area { ptr: alloc_percpu(size_of::<T>().max(1), align_of::<T>())?.cast() })
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
        // SAFETY: the CPU has a unit, or `on` panics, and then its copy is initialised; it lives as
        // long as the box. Everybody else reaches it through a shared borrow of the box, which
        // `&mut self` excludes; an initialiser writes before the CPU is known to have a unit.
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
        // SAFETY: the CPU has a unit, or `on` panics, and then its copy is initialised and lives as
        // long as the box; `T: Sync` allows for everybody.
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

impl<T> PerCpuBox<MaybeUninit<T>> {
    /// The box as one of values.
    ///
    /// # Safety
    ///
    /// The copy of every CPU that [has a unit](cpu::booted_once) holds a `T`, and so does that of a
    /// CPU that gets one later: what it begins with, zero bytes or what the initialiser makes, is a
    /// `T`.
    pub unsafe fn assume_init(self) -> PerCpuBox<T> {
        let this = mem::ManuallyDrop::new(self);
        PerCpuBox { ptr: this.ptr.cast(), initialiser: this.initialiser, owns: PhantomData }
    }
}

impl<T, const N: usize> PerCpuBox<[T; N]> {
    /// The pointer to the element at `index`, which outlives neither the box nor what is in it.
    ///
    /// # Panics
    ///
    /// Unless `index` is below `N`.
    #[inline]
    pub fn element(&self, index: usize) -> PerCpuPtr<T> {
        assert!(index < N, "element {index} of {N}");
        PerCpuPtr::from_raw(self.ptr.raw().wrapping_add(index * size_of::<T>()))
    }
}

impl<T> Drop for PerCpuBox<T> {
    /// Drops the value of each CPU and frees the memory. If a destructor panics the other values are
    /// dropped all the same, and the memory is freed.
    ///
    /// # Panics
    ///
    /// If the box's own initialiser drops it, while it runs for a CPU that comes up. The box is leaked
    /// then: it goes on to get values for the CPUs that come up. On a platform that does not tell
    /// [threads](crate::platform::Platform::thread_id) apart the drop waits for ever.
    fn drop(&mut self) {
        if let Some(node) = self.initialiser {
            // First, since it may panic: then all is as it was.
            // SAFETY: the node is this box's, and this is the box's end.
            unsafe { initialisers::unlist(node) };
        }
        // Freed at the end, also when a destructor panics.
        let _area = Area { ptr: self.ptr };
        match self.initialiser {
            // SAFETY: the node is this box's, with this pointer, and off the list since above; this is
            // the box's end.
            Some(node) => unsafe { initialisers::retire(node, self.ptr) },
            None if mem::needs_drop::<T>() => {
                for_each_to_the_end(cpu::booted_once().iter(), |cpu| {
                    // SAFETY: the copies began as zero bytes, which are a `T`, or hold one by the
                    // promise made to `assume_init`; this is their owner's end. A CPU that comes up
                    // only now leaves a `T` of zero bytes, which owns nothing.
                    unsafe { self.ptr.on(cpu).drop_in_place() };
                });
            }
            None => {}
        }
    }
}

impl<T> fmt::Debug for PerCpuBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PerCpuBox({:#x})", self.ptr.raw())
    }
}

/// An area without values, freed when it is dropped.
struct Area<T> {
    ptr: PerCpuPtr<T>,
}

impl<T> Area<T> {
    /// Keeps the area.
    fn into_ptr(self) -> PerCpuPtr<T> {
        mem::ManuallyDrop::new(self).ptr
    }
}

impl<T> Drop for Area<T> {
    fn drop(&mut self) {
        // SAFETY: the owner of what was there is gone, and nobody else knows of the area.
        let freed = unsafe { free_percpu(self.ptr.cast()) };
        debug_assert!(freed.is_ok(), "a box's area is live");
    }
}
