//! Atomics for models under shuttle: core's own, with a chance for the scheduler before each
//! operation. So they have an address, are made by `const` functions or out of zero bytes, and are
//! sequentially consistent, as everything is there.
//!
//! All threads of a model are coroutines of one thread of the host, so what is thread-local to that
//! is global to the model; which CPU a thread is, is kept here. From [`start`] to [`stop`] the
//! model's threads run; before and after, the types are core's.

use core::cell::{Cell, RefCell};
use core::sync::atomic::{self, Ordering};

pub use core::cell::UnsafeCell;

std::thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    /// The CPUs that threads are, by their offsets.
    static OFFSETS: RefCell<std::vec::Vec<(shuttle::thread::ThreadId, usize)>> =
        const { RefCell::new(std::vec::Vec::new()) };
}

/// Begins the part of an execution that is scheduled; to be called in it.
pub fn start() {
    OFFSETS.with_borrow_mut(std::vec::Vec::clear);
    RUNNING.set(true);
}

/// Ends it; the caller has joined all threads.
pub fn stop() {
    RUNNING.set(false);
}

/// Whether a model's threads run.
pub fn is_running() -> bool {
    RUNNING.get() && !std::thread::panicking()
}

/// Lets another thread of the model run, and says that this one waits for it.
pub fn yield_now() {
    shuttle::thread::yield_now();
}

/// The offset of the CPU that this thread of a model is, if it is one; the outer `None` while
/// nothing is scheduled.
pub fn offset() -> Option<Option<usize>> {
    if !is_running() {
        return None;
    }
    let id = shuttle::thread::current().id();
    OFFSETS.with_borrow(|offsets| {
        Some(offsets.iter().find(|(of, _)| *of == id).map(|&(_, offset)| offset))
    })
}

/// Makes this thread of a model the CPU with this offset; false while nothing is scheduled.
pub fn set_offset(offset: usize) -> bool {
    if !is_running() {
        return false;
    }
    let id = shuttle::thread::current().id();
    OFFSETS.with_borrow_mut(|offsets| {
        offsets.retain(|(of, _)| *of != id);
        offsets.push((id, offset));
    });
    true
}

/// Gives the scheduler a chance. Shuttle offers one before each operation of its own atomics.
fn step() {
    if is_running() {
        shuttle::sync::atomic::AtomicBool::new(false).load(Ordering::SeqCst);
    }
}

/// A fence, of which a sequentially consistent machine has no need.
pub fn fence(order: Ordering) {
    step();
    atomic::fence(order);
}

macro_rules! atomics {
    ($($name:ident $(<$g:ident>)?, $core:ty, $value:ty, [$($op:ident),*];)*) => {$(
        #[repr(transparent)]
        pub struct $name $(<$g>)? ($core);

        // What no part of the crate uses of a type is there all the same.
        #[allow(dead_code)]
        impl $(<$g>)? $name $(<$g>)? {
            pub const fn new(value: $value) -> Self {
                Self(<$core>::new(value))
            }

            /// # Safety
            ///
            /// As that of core's types.
            pub unsafe fn from_ptr<'a>(ptr: *mut $value) -> &'a Self {
                // SAFETY: the type is core's; the rest is the caller's duty.
                unsafe { &*ptr.cast::<Self>() }
            }

            pub fn get_mut(&mut self) -> &mut $value {
                self.0.get_mut()
            }

            pub fn load(&self, _order: Ordering) -> $value {
                step();
                self.0.load(Ordering::SeqCst)
            }

            pub fn store(&self, value: $value, _order: Ordering) {
                step();
                self.0.store(value, Ordering::SeqCst);
            }

            pub fn swap(&self, value: $value, _order: Ordering) -> $value {
                step();
                self.0.swap(value, Ordering::SeqCst)
            }

            pub fn compare_exchange(
                &self,
                expected: $value,
                value: $value,
                _success: Ordering,
                _failure: Ordering,
            ) -> Result<$value, $value> {
                step();
                self.0.compare_exchange(expected, value, Ordering::SeqCst, Ordering::SeqCst)
            }

            $(
                pub fn $op(&self, value: $value, _order: Ordering) -> $value {
                    step();
                    self.0.$op(value, Ordering::SeqCst)
                }
            )*
        }
    )*};
}

atomics! {
    AtomicBool, atomic::AtomicBool, bool, [fetch_or, fetch_and];
    AtomicU8, atomic::AtomicU8, u8, [fetch_add, fetch_sub, fetch_or, fetch_and];
    AtomicI8, atomic::AtomicI8, i8, [fetch_add, fetch_sub, fetch_or, fetch_and];
    AtomicU16, atomic::AtomicU16, u16, [fetch_add, fetch_sub, fetch_or, fetch_and];
    AtomicI16, atomic::AtomicI16, i16, [fetch_add, fetch_sub, fetch_or, fetch_and];
    AtomicU32, atomic::AtomicU32, u32, [fetch_add, fetch_sub, fetch_or, fetch_and];
    AtomicI32, atomic::AtomicI32, i32, [fetch_add, fetch_sub, fetch_or, fetch_and, fetch_max];
    AtomicU64, atomic::AtomicU64, u64, [fetch_add, fetch_sub, fetch_or, fetch_and];
    AtomicI64, atomic::AtomicI64, i64, [fetch_add, fetch_sub, fetch_or, fetch_and];
    AtomicUsize, atomic::AtomicUsize, usize, [fetch_add, fetch_sub, fetch_or, fetch_and];
    AtomicIsize, atomic::AtomicIsize, isize, [fetch_add, fetch_sub, fetch_or, fetch_and];
    AtomicPtr<T>, atomic::AtomicPtr<T>, *mut T, [];
}
