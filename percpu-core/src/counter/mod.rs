//! Counters that many CPUs change and few read. Linux: `percpu_counter`.
//!
//! A [`PercpuCounter`] has a shared part and a small local part on each CPU. An add changes the local
//! part with one instruction; only when that reaches the [*batch*](batch()) it is folded into the
//! shared part, under the counter's lock. [`read`](PercpuCounter::read) looks at the shared part alone
//! and is off by less than batch times CPUs; [`sum`](PercpuCounter::sum) is exact.
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
//! | [`PercpuCounter`] | a cache line, and 4 bytes a CPU | two instructions, a lock once a batch | one load, off by up to batch × CPUs | a load an online CPU |
//! | [`LazyCounter`] | one word; 8 bytes a CPU once CPUs meet | an atomic instruction, then an unlocked one | exact | a load, then one a CPU |
//! | [`HierarchicalCounter`] | a cache line for eight CPUs, and 8 bytes a CPU | one instruction, an atomic one once a batch | one load, off by what its maker chose | a load a CPU |
//! | [`v26::Counter`] | a cache line a CPU there could be | preemption off, no interrupt handlers | one load | a lock, a load a CPU |
//!
//! [`Count`] is what they have in common.
//!
//! # CPUs that come and go
//!
//! A CPU that dies leaves its local parts behind. [`cpu_dead`] folds them, in every
//! [`PercpuCounter`] there is, and leaves zeroes; until then the CPU is in the dying mask and
//! [`sum`](PercpuCounter::sum) counts it. So a sum is exact at every moment, and no local part is
//! folded twice. [`register_hotplug_steps`] has this done at the right time. The other kinds leave a
//! CPU's part where it is and go on counting it.
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
