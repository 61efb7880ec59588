//! Atomics for models under loom that are made as core's are: by `const` functions, or out of zero
//! bytes. Loom's own are neither, because each of them is an entry in a table of the execution.
//!
//! A model does its set-up first, during which these types are core's. From [`start`] to [`stop`]
//! each address that is touched gets one of loom's atomics out of a pool, which holds the value
//! exclusive-or what was there at `start`: so the pool's atomics all begin as 0, before any thread
//! does, whichever address they serve. What is stored is also written to the memory itself, where
//! whoever looks after `stop` finds it.
//!
//! All threads of a model are coroutines of one thread of the host: what is global to a model is
//! thread-local here.

use core::cell::RefCell;
use core::sync::atomic::{self, Ordering};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Addresses that a model's threads may touch.
const ATOMS: usize = 512;
/// Locks that they may take.
const CELLS: usize = 32;

#[derive(Default)]
struct Model {
    running: bool,
    atoms: BTreeMap<usize, (Rc<loom::sync::atomic::AtomicU64>, u64)>,
    spare_atoms: Vec<Rc<loom::sync::atomic::AtomicU64>>,
    cells: BTreeMap<usize, Rc<loom::cell::UnsafeCell<()>>>,
    spare_cells: Vec<Rc<loom::cell::UnsafeCell<()>>>,
    freed: Vec<Range<usize>>,
    /// The CPUs that threads are, by their offsets.
    offsets: Vec<(loom::thread::ThreadId, usize)>,
}

std::thread_local! {
    static MODEL: RefCell<Model> = RefCell::default();
}

/// Begins the part of an execution that loom explores; what was before is forgotten.
pub fn start() {
    let model = Model {
        running: true,
        spare_atoms: (0..ATOMS).map(|_| Rc::new(loom::sync::atomic::AtomicU64::new(0))).collect(),
        spare_cells: (0..CELLS).map(|_| Rc::new(loom::cell::UnsafeCell::new(()))).collect(),
        ..Model::default()
    };
    MODEL.with(|it| *it.borrow_mut() = model);
}

/// Ends it; the caller has joined all threads.
pub fn stop() {
    MODEL.with(|it| it.borrow_mut().running = false);
}

/// Says that memory was freed: whoever touches an atomic there from now on has a bug. The memory
/// itself stays until `stop`.
pub fn freed(addr: usize, size: usize) {
    MODEL.with(|it| {
        let mut model = it.borrow_mut();
        if model.running {
            model.freed.push(addr..addr + size);
        }
    });
}

/// Whether a model's threads run.
pub fn is_running() -> bool {
    MODEL.with(|it| it.borrow().running) && !std::thread::panicking()
}

/// Lets another thread of the model run, which this one waits for.
pub fn yield_now() {
    loom::thread::yield_now();
}

/// A fence among the threads of a model.
pub fn fence(order: Ordering) {
    if is_running() {
        loom::sync::atomic::fence(order);
    }
}

/// The offset of the CPU that this thread of a model is, if it is one; the outer `None` while
/// nothing is explored.
pub fn offset() -> Option<Option<usize>> {
    if !is_running() {
        return None;
    }
    let id = loom::thread::current().id();
    MODEL.with(|it| {
        let model = it.borrow();
        Some(model.offsets.iter().find(|(of, _)| *of == id).map(|&(_, offset)| offset))
    })
}

/// Makes this thread of a model the CPU with this offset; false while nothing is explored.
///
/// Several threads may be one CPU: a thread of that CPU and what interrupts it. Each of the CPU's
/// operations is one step. What is more than one step the model must keep apart as the CPU would:
/// what interrupts another context runs to its end before that one goes on.
pub fn set_offset(offset: usize) -> bool {
    if !is_running() {
        return false;
    }
    let id = loom::thread::current().id();
    MODEL.with(|it| it.borrow_mut().offsets.push((id, offset)));
    true
}

/// Loom's atomic for `addr`, where `value` is in memory, and the value it had at the start. `None`
/// while nothing is explored.
fn atom(addr: usize, value: u64) -> Option<(Rc<loom::sync::atomic::AtomicU64>, u64)> {
    // A failed model is being taken down.
    if std::thread::panicking() {
        return None;
    }
    MODEL.with(|it| {
        let model = &mut *it.borrow_mut();
        if !model.running {
            return None;
        }
        let freed = model.freed.iter().any(|range| range.contains(&addr));
        assert!(!freed, "an atomic at {addr:#x} was touched after its memory had been freed");
        let spare = &mut model.spare_atoms;
        let new = || (spare.pop().expect("a model of fewer addresses"), value);
        Some(model.atoms.entry(addr).or_insert_with(new).clone())
    })
}

/// Records an exclusive use of what lies at `addr`, which loom checks against the others.
fn used(addr: usize) {
    if std::thread::panicking() {
        return;
    }
    let cell = MODEL.with(|it| {
        let model = &mut *it.borrow_mut();
        let spare = &mut model.spare_cells;
        let new = || spare.pop().expect("a model of fewer locks");
        model.running.then(|| model.cells.entry(addr).or_insert_with(new).clone())
    });
    if let Some(cell) = cell {
        cell.with_mut(|_| ());
    }
}

/// A cell whose every use is exclusive.
#[repr(transparent)]
pub struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    pub fn get(&self) -> *mut T {
        used((&raw const *self).addr());
        self.0.get()
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

macro_rules! atomics {
    ($($name:ident $(<$g:ident>)?, $core:ty, $value:ty, $from:expr, $into:expr;)*) => {$(
        #[repr(transparent)]
        pub struct $name $(<$g>)? ($core);

        impl $(<$g>)? $name $(<$g>)? {
            pub const fn new(value: $value) -> Self {
                Self(<$core>::new(value))
            }

            /// # Safety
            ///
            /// As that of core's types.
            #[allow(dead_code)]
            pub unsafe fn from_ptr<'a>(ptr: *mut $value) -> &'a Self {
                // SAFETY: the type is core's; the rest is the caller's duty.
                unsafe { &*ptr.cast::<Self>() }
            }

            fn atom(&self) -> Option<(Rc<loom::sync::atomic::AtomicU64>, u64)> {
                let value = $into(self.0.load(Ordering::Relaxed));
                atom((&raw const self.0).addr(), value)
            }

            pub fn load(&self, order: Ordering) -> $value {
                match self.atom() {
                    Some((atom, first)) => $from(atom.load(order) ^ first),
                    None => self.0.load(order),
                }
            }

            pub fn store(&self, value: $value, order: Ordering) {
                if let Some((atom, first)) = self.atom() {
                    atom.store($into(value) ^ first, order);
                }
                self.0.store(value, Ordering::SeqCst);
            }

            #[allow(dead_code)]
            pub fn compare_exchange(
                &self,
                expected: $value,
                value: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let Some((atom, first)) = self.atom() else {
                    return self.0.compare_exchange(expected, value, success, failure);
                };
                let (from, to) = ($into(expected) ^ first, $into(value) ^ first);
                match atom.compare_exchange(from, to, success, failure) {
                    Ok(_) => {
                        self.0.store(value, Ordering::SeqCst);
                        Ok(expected)
                    }
                    Err(other) => Err($from(other ^ first)),
                }
            }

            /// Replaces the value by `change` of it, and returns the old one.
            #[allow(dead_code)]
            fn update(&self, order: Ordering, change: impl Fn($value) -> $value) -> $value {
                // What is in memory is the latest value, which a read-modify-write reads, unless
                // loom lets another thread run first.
                let mut old = self.0.load(Ordering::Relaxed);
                loop {
                    match self.compare_exchange(old, change(old), order, Ordering::Relaxed) {
                        Ok(old) => return old,
                        Err(other) => old = other,
                    }
                }
            }

            #[allow(dead_code)]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                self.update(order, |_| value)
            }

            #[allow(dead_code)]
            pub fn get_mut(&mut self) -> &mut $value {
                self.0.get_mut()
            }
        }
    )*};
}

atomics! {
    AtomicBool, atomic::AtomicBool, bool, |bits: u64| bits != 0, u64::from;
    AtomicU8, atomic::AtomicU8, u8, |bits: u64| bits as u8, u64::from;
    AtomicI8, atomic::AtomicI8, i8, |bits: u64| bits as i8, |value: i8| value as u64;
    AtomicU16, atomic::AtomicU16, u16, |bits: u64| bits as u16, u64::from;
    AtomicI16, atomic::AtomicI16, i16, |bits: u64| bits as i16, |value: i16| value as u64;
    AtomicU32, atomic::AtomicU32, u32, |bits: u64| bits as u32, u64::from;
    AtomicI32, atomic::AtomicI32, i32, |bits: u64| bits as i32, |value: i32| value as u64;
    AtomicI64, atomic::AtomicI64, i64, |bits: u64| bits as i64, |value: i64| value as u64;
    AtomicIsize, atomic::AtomicIsize, isize, |bits: u64| bits as isize, |value: isize| value as u64;
    AtomicU64, atomic::AtomicU64, u64, |bits: u64| bits, u64::from;
    AtomicUsize, atomic::AtomicUsize, usize, |bits: u64| bits as usize, |value: usize| value as u64;
    AtomicPtr<T>, atomic::AtomicPtr<T>, *mut T,
        |bits: u64| core::ptr::with_exposed_provenance_mut::<T>(bits as usize),
        |value: *mut T| value.expose_provenance() as u64;
}

macro_rules! arithmetic {
    ($($name:ident, $value:ty, $($op:ident: $change:expr),*;)*) => {$(
        impl $name {
            $(
                #[allow(dead_code)]
                pub fn $op(&self, value: $value, order: Ordering) -> $value {
                    self.update(order, |old| $change(old, value))
                }
            )*
        }
    )*};
}

arithmetic! {
    AtomicI32, i32, fetch_add: i32::wrapping_add, fetch_sub: i32::wrapping_sub, fetch_max: Ord::max;
    AtomicI64, i64, fetch_add: i64::wrapping_add, fetch_sub: i64::wrapping_sub;
    AtomicU16, u16, fetch_sub: u16::wrapping_sub;
    AtomicU32, u32, fetch_add: u32::wrapping_add, fetch_sub: u32::wrapping_sub, fetch_or: core::ops::BitOr::bitor, fetch_and: core::ops::BitAnd::bitand;
    AtomicUsize, usize, fetch_add: usize::wrapping_add, fetch_sub: usize::wrapping_sub;
    AtomicU64, u64, fetch_add: u64::wrapping_add, fetch_sub: u64::wrapping_sub, fetch_or: core::ops::BitOr::bitor, fetch_and: core::ops::BitAnd::bitand;
}
