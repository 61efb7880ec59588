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
//! scalars only, and those only where they are [single instructions](crate::arch).
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
//! Nor does a variable whose type asks for more alignment than a unit has:
//!
//! ```compile_fail,E0080
//! #[repr(align(8192))]
//! struct Large(core::sync::atomic::AtomicU32);
//! percpu_core::percpu! {
//!     static LARGE: PerCpu<Large> = Large(core::sync::atomic::AtomicU32::new(0));
//! }
//! ```
//!
//! The value of every variable is `Send`, since any thread may come to run on the CPU. A scalar is
//! never lent out as `&T`, because the operations change it behind such a reference; [`Structured`]
//! marks what can be lent.
//!
//! # Implementation
//!
//! The statics lie in sections of which the linker knows the bounds. Set-up copies what lies
//! between them, the *template*, to the unit of each CPU. Before that the boot CPU's offset is 0 and it
//! works on the template itself: the scalars of early boot keep what they were set to, on all CPUs.
//! Values that are not scalars cannot be reached that early, because they would be duplicated with
//! whatever they own.

pub(crate) mod ops;
#[cfg(all(miri, not(feature = "up")))]
mod placement;
mod pointer;
mod section;
mod statics;
mod structured;
mod words;

pub use ops::{Integer, Pin, RawCpu, Scalar, Word};
pub use pointer::PerCpuPtr;
pub use section::template;
pub use statics::{Alignment, Hot, PageAligned, PerCpu, Plain, ReadMostly, SharedAligned};

pub use structured::Structured;
pub use words::{DoubleWord, RawPtr};

pub(crate) use ops::{owner_methods, this_cpu_ops};
pub(crate) use section::{SECTIONS, foreign_bytes, sections};

/// Declares per-CPU variables: `pub static NAME: PerCpu<Type> = initial value;`. Linux:
/// `DEFINE_PER_CPU`.
///
/// The initial value is a constant expression; every CPU's copy starts with it. Attributes and
/// documentation are carried through. Attributes of the macro's own, each on its own line before
/// the visibility, choose where the variable is placed:
///
/// - `#[shared_aligned]`: on cache lines of its own, for what other CPUs write too (Linux:
///   `DEFINE_PER_CPU_SHARED_ALIGNED`);
/// - `#[page_aligned]`: on pages of its own (Linux: `DEFINE_PER_CPU_PAGE_ALIGNED`);
/// - `#[hot]`: next to the other hot ones, so that what every interrupt or system call uses shares a
///   few cache lines (Linux: `DEFINE_PER_CPU_CACHE_HOT`);
/// - `#[read_mostly]`: next to the others that are hardly ever written, away from those that are
///   (Linux: `DEFINE_PER_CPU_READ_MOSTLY`).
///
/// A `pub static` is used from other crates like any other static. What another crate or object file
/// defines under a symbol name is declared, as in Linux by `DECLARE_PER_CPU`:
///
/// ```
/// use percpu_core::{host, percpu};
///
/// // Here or anywhere else in the program, in C or assembly as well:
/// percpu! {
///     #[unsafe(export_name = "timer_ticks")]
///     static DEFINED: PerCpu<u64> = 3;
/// }
///
/// percpu! {
///     // SAFETY: `timer_ticks` is a per-CPU variable, a 64-bit integer.
///     unsafe extern "C" {
///         /// Ticks of the CPU's timer.
///         #[link_name = "timer_ticks"]
///         pub static TICKS: PerCpu<u64>;
///     }
/// }
///
/// host::boot(2).unwrap();
/// let _cpu = host::enter_any().unwrap();
/// TICKS.inc();
/// assert_eq!(DEFINED.read(), 4);
/// ```
///
/// The symbol has to be that of a variable of this type, in one of the `percpu` sections.
#[macro_export]
macro_rules! percpu {
    // @ [define, or declare and the caller's own `unsafe`] [attributes] [kind] what is left
    (@ $mode:tt $attrs:tt [$kind:ident]) => {};
    (@ $mode:tt $attrs:tt [$kind:ident] #[shared_aligned] $($rest:tt)*) => {
        $crate::percpu! { @place $mode $attrs [$kind SharedAligned] $($rest)* }
    };
    (@ $mode:tt $attrs:tt [$kind:ident] #[page_aligned] $($rest:tt)*) => {
        $crate::percpu! { @place $mode $attrs [$kind PageAligned] $($rest)* }
    };
    (@ $mode:tt $attrs:tt [$kind:ident] #[hot] $($rest:tt)*) => {
        $crate::percpu! { @place $mode $attrs [$kind Hot] $($rest)* }
    };
    (@ $mode:tt $attrs:tt [$kind:ident] #[read_mostly] $($rest:tt)*) => {
        $crate::percpu! { @place $mode $attrs [$kind ReadMostly] $($rest)* }
    };
    (@place $mode:tt $attrs:tt [Plain $kind:ident] $($rest:tt)*) => {
        $crate::percpu! { @ $mode $attrs [$kind] $($rest)* }
    };
    (@place $($rest:tt)*) => {
        ::core::compile_error! { "a per-CPU variable is placed in one way: keep one of `#[hot]`, \
                                  `#[read_mostly]`, `#[shared_aligned]`, `#[page_aligned]`" }
    };
    (@ $mode:tt [$($attr:tt)*] $kind:tt #[$meta:meta] $($rest:tt)*) => {
        $crate::percpu! { @ $mode [$($attr)* #[$meta]] $kind $($rest)* }
    };
    (@ [define] [] [Plain] $unsafe:tt extern "C" { $($declared:tt)* } $($rest:tt)*) => {
        $crate::percpu! { @ [declare $unsafe] [] [Plain] $($declared)* }
        $crate::percpu! { @ [define] [] [Plain] $($rest)* }
    };
    (@ [define] [$($attr:tt)*] [$kind:ident]
        $vis:vis static $name:ident: PerCpu<$ty:ty> = $init:expr; $($rest:tt)*
    ) => {
        $crate::__percpu_place! { unsafe $kind
            $($attr)*
            $vis static $name: $crate::var::PerCpu<$ty, $crate::var::$kind> = {
                // A constant, not just a value: constants may be had any number of times, and so
                // may the copies of the template. Outside of the block below, so that what is
                // unsafe in it has to say so.
                let value = const { $init };
                // SAFETY: it lies in the section, and the value is a constant.
                unsafe { $crate::var::PerCpu::new(value) }
            };
        }
        $crate::percpu! { @ [define] [] [Plain] $($rest)* }
    };
    (@ [declare $unsafe:tt] [$($attr:tt)*] [$kind:ident]
        $vis:vis static $name:ident: PerCpu<$ty:ty>; $($rest:tt)*
    ) => {
        $unsafe extern "C" {
            $($attr)*
            #[allow(improper_ctypes)]
            $vis safe static $name: $crate::var::PerCpu<$ty, $crate::var::$kind>;
        }
        $crate::percpu! { @ [declare $unsafe] [] [Plain] $($rest)* }
    };
    (@ $($rest:tt)*) => {
        ::core::compile_error! { "expected `static NAME: PerCpu<Type> = initial value;`, or \
                                  `unsafe extern \"C\" { static NAME: PerCpu<Type>; }`" }
    };
    ($($body:tt)*) => {
        $crate::percpu! { @ [define] [] [Plain] $($body)* }
    };
}

/// Puts a static where its kind belongs.
///
/// The sections are this crate's: what is in them has to be a [`PerCpu`](crate::var::PerCpu), since the
/// bytes are copied for each CPU, and nobody may write the template meanwhile. So the word `unsafe` is part
/// of the call.
#[cfg(not(feature = "up"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __percpu_place {
    // SAFETY: the sections belong to this crate, and only `percpu!` puts statics there.
    (unsafe Plain $($item:tt)*) => {
        #[unsafe(link_section = "percpu")]
        $($item)*
    };
    (unsafe Hot $($item:tt)*) => {
        #[unsafe(link_section = "percpu_hot")]
        $($item)*
    };
    (unsafe ReadMostly $($item:tt)*) => {
        #[unsafe(link_section = "percpu_read_mostly")]
        $($item)*
    };
    (unsafe SharedAligned $($item:tt)*) => {
        #[unsafe(link_section = "percpu_shared_aligned")]
        $($item)*
    };
    (unsafe PageAligned $($item:tt)*) => {
        #[unsafe(link_section = "percpu_page_aligned")]
        $($item)*
    };
}

/// With one CPU a static is its own only copy, and may lie anywhere.
#[cfg(feature = "up")]
#[doc(hidden)]
#[macro_export]
macro_rules! __percpu_place {
    (unsafe $kind:ident $($item:tt)*) => { $($item)* };
}
