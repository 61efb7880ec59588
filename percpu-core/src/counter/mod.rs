//! Counters that many CPUs change and few read. Linux: `percpu_counter`.
//!
//! A [`PercpuCounter`] has a shared part and a small local part on each CPU. An add changes the local
//! part with one instruction; only when that reaches the [*batch*](batch()) it is folded into the
//! shared part, under the counter's lock. [`read`](PercpuCounter::read) looks at the shared part alone
//! and is off by less than the largest batch there has been, once for each CPU that may have a local
//! part: by at most [`error_bound`](PercpuCounter::error_bound). [`sum`](PercpuCounter::sum) is exact.
//!
//! ```
//! use percpu_core::{counter::PercpuCounter, host};
//!
//! host::boot(2).unwrap();
//! let _cpu = host::enter_any().unwrap();
//! let blocks = PercpuCounter::new(1000).unwrap();
//! blocks.sub(3);
//! assert_eq!(blocks.read(), 1000); // the three are still in this CPU's local part
//! assert_eq!(blocks.sum(), 997);
//! assert!(!blocks.limited_add(998, 2));
//! ```
//!
//! # Which counter
//!
//! | | memory | add | read | exact sum |
//! |---|---|---|---|---|
//! | [`PercpuCounter`] | a cache line, and 4 bytes a CPU | two instructions, a lock once a batch | one load, off by less than largest batch × counted CPUs | a load a [counted](crate::cpu::counted) CPU |
//! | [`LazyCounter`] | one word; 8 bytes a CPU once CPUs meet, or beyond 63 bits | an atomic instruction, then an unlocked one | exact | a load, then one a CPU |
//! | [`HierarchicalCounter`] | a cache line for eight CPUs, and 8 bytes a CPU | one instruction, an atomic one once a batch | one load, off by what its maker chose | a load a CPU |
//! | [`v26::Counter`] | a cache line a CPU there could be | preemption off, no interrupt handlers | one load | a lock, a load a CPU |
//!
//! [`Count`] is what they have in common.
//!
//! # Numbers
//!
//! A counter is a number of 64 bits, and wraps. A sum is exact whenever the value fits an `i64`,
//! however far away the adds in between went. `sub(i64::MIN)` adds 2⁶³. Comparisons and
//! [`limited_add`](PercpuCounter::limited_add) go by the exact value and do not wrap: they decide as in
//! numbers of any size. A `read` is off by its bound as numbers that wrap are: where the value is that
//! near to the end of the number line the read may lie at the other end. A [`LazyCounter`] that is one
//! word holds 63 bits, and becomes per-CPU before it leaves them.
//!
//! # Which threads
//!
//! What adds needs a CPU. With the feature `host` it panics on a thread that is none, before anything
//! has changed and whatever the counter's state is; so do [`sync`](PercpuCounter::sync) and
//! [`fold_excess`], which look for this CPU's local part. Everything else works on any thread: making
//! and dropping counters, reading, summing, comparing, setting.
//!
//! # CPUs that come and go
//!
//! A CPU that dies leaves its local parts behind. [`cpu_dead`] folds them, in every
//! [`PercpuCounter`] there is, and leaves zeroes; until then the CPU is
//! [counted](crate::cpu::counted), and [`sum`](PercpuCounter::sum) has its part. So a sum is exact at
//! every moment, and no local part is folded twice. [`register_hotplug_steps`] has this done at the
//! right time; a kernel that does not call it, or has no hotplug, has exact sums of all CPUs that ever
//! had a unit. The other kinds leave a CPU's part where it is and go on counting it.
//!
//! When CPUs go down the batch becomes smaller, and local parts that were made under the larger one
//! may exceed it. A CPU's next add to such a counter folds it; for those to which nobody adds any more
//! the CPU that went down has every other CPU fold what exceeds, see [`fold_excess`].
//!
//! # Implementation
//!
//! | | |
//! |---|---|
//! | `percpu`, `many` | the handles: one counter, many made at once |
//! | `node` | what a counter is made of; folding and summing |
//! | `memory` | where nodes come from and go to |
//! | `list`, `hotplug` | all counters there are; what happens when a CPU dies |
//! | `batch` | the batch, and the largest there has been |
//! | `bounds` | what the shared part says about the sum |

mod batch;
mod bounds;
mod count;
mod hierarchical;
mod hotplug;
mod lazy;
mod list;
mod many;
mod memory;
mod node;
mod percpu;
pub mod v26;

pub use batch::{batch, set_smallest_batch};
pub use count::Count;
pub use hierarchical::{HierarchicalCounter, HierarchicalError};
pub use hotplug::{cpu_dead, fold_excess, register_hotplug_steps};
pub use lazy::LazyCounter;
pub use many::PercpuCounters;
pub use percpu::PercpuCounter;

pub(crate) use batch::batch_address;
pub(crate) use list::head_address;
