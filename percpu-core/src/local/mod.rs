//! Per-CPU values that a CPU changes in place, safe from its own interrupt handlers.
//!
//! Nobody else can be on the CPU while preemption is off, but an interrupt handler can, in the
//! middle of a change. Three answers to that:
//!
//! | type | a change | an interrupt handler in the middle of it | other CPUs | Linux |
//! |---|---|---|---|---|
//! | [`IrqCell<T>`] | `&mut T` for the length of a closure | is turned away, with an error | see nothing | |
//! | [`LocalLock<T>`] | `&mut T` as long as a guard | is turned away; or is kept away, at the price of masking interrupts | see nothing | `local_lock_t` |
//! | [`SeqStats<N>`] | adding to `N` numbers at once | is kept away | read all `N` as of one moment | `u64_stats_sync` |
//!
//! They are put into static variables or boxes, which then have the methods:
//!
//! ```
//! use percpu_core::local::{IrqCell, LocalLock, SeqStats};
//! use percpu_core::{host, irq, percpu, preempt};
//!
//! percpu! {
//!     static SLOTS: PerCpu<IrqCell<[u32; 4]>> = IrqCell::new([0; 4]);
//!     static BATCH: PerCpu<LocalLock<Option<u32>>> = LocalLock::new(None);
//!     static TRAFFIC: PerCpu<SeqStats<2>> = SeqStats::new();
//! }
//!
//! host::boot(2).unwrap();
//! let _cpu = host::enter_any().unwrap();
//! SLOTS.with_mut(&preempt::disable(), |slots| slots[1] += 1).expect("no handler is at it");
//! *BATCH.lock() = Some(7);
//! assert_eq!(BATCH.lock_irqsave().take(), Some(7));
//! TRAFFIC.update(&irq::disable(), [1, 1500]);
//! assert_eq!(TRAFFIC.sum(), [1, 1500]);
//! ```
//!
//! # Implementation
//!
//! A cell and a lock have a flag on each CPU, which is set by one instruction without a bus lock and
//! says that the CPU's value is in use: see `claim`. `methods` gives what `cell`, `lock` and `stats`
//! can do to whatever owns per-CPU values.

mod cell;
mod claim;
mod lock;
mod methods;
mod stats;

pub use cell::{IrqCell, Reentered};
pub use lock::{LocalGuard, LocalLock};
pub use stats::SeqStats;
