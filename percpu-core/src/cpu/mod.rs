//! CPUs: their numbers, the masks, and the guards that keep a thread on one.

mod id;
mod mask;

pub use id::{CpuId, NR_CPUS, nr_cpu_ids};
pub use mask::{CpuMask, active, dying, online, possible, present};

pub(crate) use mask::MASKS;
