//! Per-CPU variables: one copy for each CPU. Linux: `DEFINE_PER_CPU`, `this_cpu_*`,
//! `per_cpu`.
//!
//! [`percpu!`](crate::percpu) declares them. A scalar is used with single-instruction operations
//! that need no guard; anything else through a closure, under a guard that keeps the thread on its
//! CPU ([`PerCpu::with`]) or also keeps interrupts away ([`PerCpu::with_irq`]).
//!
//! ```
//! use core::cell::RefCell;
//! use percpu_core::{host, irq, percpu};
//!
//! percpu! {
//!     /// Packets seen.
//!     pub static PACKETS: PerCpu<u64> = 0;
//!     #[shared_aligned]
//!     static LAST: PerCpu<RefCell<[u8; 4]>> = RefCell::new([0; 4]);
//! }
//!
//! host::boot(2).unwrap();
//! let _cpu = host::enter_any().unwrap();
//! PACKETS.add(1);
//! let irq = irq::disable();
//! LAST.with_irq(&irq, |last| *last.borrow_mut() = *b"ping");
//! ```
//!
//! # Who may see what
//!
//! A copy is reached from its own CPU by threads and by the interrupt handlers that interrupt them,
//! and from other CPUs. Each way in asks for as much as it needs:
//!
//! | access | value | sees it at the same time |
//! |---|---|---|
//! | `add`, `read`, ... | a scalar | anybody: each access is one instruction or atomic |
//! | [`read_on`](PerCpu::read_on) | a scalar | anybody |
//! | [`with_irq`](PerCpu::with_irq) | `Send` | nested `with_irq` of the same thread: hence `&T`, not `&mut T` |
//! | [`with`](PerCpu::with) | `Sync` | interrupt handlers of this CPU, too |
//! | [`remote`](PerCpu::remote) | `Sync` | other CPUs, too |
//!
//! A handler that cannot be masked (an NMI) is kept away by no guard: it uses the operations on
//! scalars only.
//!
//! So these do not compile: a reference that outlives its guard,
//!
//! ```compile_fail
//! # use core::sync::atomic::AtomicU32;
//! # percpu_core::percpu! { static HITS: PerCpu<AtomicU32> = AtomicU32::new(0); }
//! let pin = percpu_core::preempt::disable();
//! let hits = HITS.with(&pin, |hits| hits);
//! ```
//!
//! a guard that another thread, on another CPU, drops or looks at,
//!
//! ```compile_fail,E0277
//! let pin = percpu_core::preempt::disable();
//! std::thread::scope(|s| { s.spawn(|| drop(pin)); });
//! ```
//!
//! ```compile_fail,E0277
//! let irq = percpu_core::irq::disable();
//! std::thread::scope(|s| { s.spawn(|| irq.cpu()); });
//! ```
//!
//! a value that must stay with its thread, or one that interrupt handlers may not share,
//!
//! ```compile_fail,E0277
//! # use std::rc::Rc;
//! percpu_core::percpu! { static SHARED: PerCpu<Option<Rc<u32>>> = None; }
//! ```
//!
//! ```compile_fail,E0277
//! # use core::cell::RefCell;
//! # percpu_core::percpu! { static LIST: PerCpu<RefCell<u32>> = RefCell::new(0); }
//! LIST.with(&percpu_core::preempt::disable(), |list| *list.borrow_mut() += 1);
//! ```
//!
//! ```compile_fail,E0277
//! # use core::cell::Cell;
//! # percpu_core::percpu! { static CELL: PerCpu<Cell<u32>> = Cell::new(0); }
//! # fn f(cpu: percpu_core::cpu::CpuId) {
//! CELL.remote(cpu).set(1);
//! # }
//! ```
//!
//! a reference to a scalar, or a variable outside of the section.
//!
//! ```compile_fail,E0277
//! # percpu_core::percpu! { static PACKETS: PerCpu<u64> = 0; }
//! PACKETS.with(&percpu_core::preempt::disable(), |packets| *packets);
//! ```
//!
//! ```compile_fail,E0133
//! use percpu_core::var::{PerCpu, Plain};
//! static STRAY: PerCpu<u64, Plain> = PerCpu::new(0);
//! ```
//!
//! The value of every variable is `Send`, since any thread may come to run on the CPU. A scalar is
//! never lent out as `&T`, because the operations change it behind such a reference; [`Structured`]
//! marks what can be lent.
//!
//! # Implementation
//!
//! The statics lie in the section `percpu`, of which the linker knows the bounds. Set-up copies the
//! section, the *template*, to the unit of each CPU. Before that the boot CPU's offset is 0 and it
//! works on the template itself: the scalars of early boot keep what they were set to, on all CPUs.
//! Values that are not scalars cannot be reached that early, because they would be duplicated with
//! whatever they own.

pub(crate) mod ops;
#[cfg(miri)]
mod placement;
mod pointer;
mod section;
mod statics;
mod structured;

pub use ops::{Integer, Scalar};
pub use pointer::PerCpuPtr;
pub use section::template;
pub use statics::{Alignment, PageAligned, PerCpu, Plain, SharedAligned};
pub use structured::Structured;

pub(crate) use ops::this_cpu_ops;

/// Declares per-CPU variables: `pub static NAME: PerCpu<Type> = initial value;`. Linux:
/// `DEFINE_PER_CPU`.
///
/// The initial value is a constant expression; every CPU's copy starts with it. Attributes and
/// documentation are carried through. Two attributes of the macro's own, each on its own line before
/// the visibility, choose where the variable is placed:
///
/// - `#[shared_aligned]`: on cache lines of its own, for what other CPUs write too (Linux:
///   `DEFINE_PER_CPU_SHARED_ALIGNED`);
/// - `#[page_aligned]`: on pages of its own (Linux: `DEFINE_PER_CPU_PAGE_ALIGNED`).
#[macro_export]
macro_rules! percpu {
    (@item [$($attr:tt)*] [$kind:ident]) => {};
    (@item [$($attr:tt)*] [$kind:ident] #[shared_aligned] $($rest:tt)*) => {
        $crate::percpu! { @item [$($attr)*] [SharedAligned] $($rest)* }
    };
    (@item [$($attr:tt)*] [$kind:ident] #[page_aligned] $($rest:tt)*) => {
        $crate::percpu! { @item [$($attr)*] [PageAligned] $($rest)* }
    };
    (@item [$($attr:tt)*] [$kind:ident] #[$meta:meta] $($rest:tt)*) => {
        $crate::percpu! { @item [$($attr)* #[$meta]] [$kind] $($rest)* }
    };
    (@item [$($attr:tt)*] [$kind:ident]
        $vis:vis static $name:ident: PerCpu<$ty:ty> = $init:expr; $($rest:tt)*
    ) => {
        $($attr)*
        // SAFETY: the section belongs to this crate, and only this macro puts statics there.
        #[unsafe(link_section = "percpu")]
        $vis static $name: $crate::var::PerCpu<$ty, $crate::var::$kind> = {
            // A constant, not just a value: constants may be had any number of times, and so may
            // the copies of the template.
            #[allow(clippy::declare_interior_mutable_const)]
            const INITIAL: $ty = $init;
            // SAFETY: it lies in the section, and `INITIAL` is a constant.
            unsafe { $crate::var::PerCpu::new(INITIAL) }
        };
        $crate::percpu! { @item [] [Plain] $($rest)* }
    };
    ($($body:tt)*) => {
        $crate::percpu! { @item [] [Plain] $($body)* }
    };
}
