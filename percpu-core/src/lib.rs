//! The Linux per-CPU subsystem as a crate: variables of which every CPU has its own copy, memory
//! allocated the same way, counters on top of it, and CPUs that come and go meanwhile.
//!
//! ```
//! use percpu_core::{counter::PercpuCounter, host, percpu, preempt};
//!
//! percpu! {
//!     /// Packets seen.
//!     static PACKETS: PerCpu<u64> = 0;
//! }
//!
//! host::boot(4).unwrap(); // a kernel: `area::setup_per_cpu_areas`
//! let bytes = PercpuCounter::new(0).unwrap();
//! host::on_each_cpu(|cpu| {
//!     PACKETS.inc(); // one instruction, safe against interrupts and migration
//!     bytes.add(1500);
//!     assert_eq!(preempt::disable().cpu(), cpu);
//! });
//! assert_eq!(bytes.sum(), 4 * 1500);
//! ```
//!
//! # Where to find what
//!
//! | module | what | Linux |
//! |---|---|---|
//! | [`var`] | static variables, the `this_cpu` operations | `linux/percpu-defs.h` |
//! | [`area`] | the CPUs' areas and their set-up | `setup_per_cpu_areas` |
//! | [`alloc`] | dynamic per-CPU memory | `mm/percpu.c` |
//! | [`counter`] | counters that many change and few read | `lib/percpu_counter.c` |
//! | [`refcount`] | references that many CPUs take and give back | `lib/percpu-refcount.c` |
//! | [`local`] | values a CPU changes in place: cells, locks, statistics | `linux/local_lock.h`, `u64_stats_sync.h` |
//! | [`cpu`], [`preempt`], [`irq`] | CPU numbers and masks, guards | `cpumask.h`, `preempt.h` |
//! | [`hotplug`] | CPUs going up and down | `kernel/cpu.c` |
//! | [`platform`] | what a kernel provides | |
//! | [`view`] | the structures, as seen from another address space | |
#![cfg_attr(feature = "host", doc = "| [`host`] | threads of a process as CPUs | |")]
//!
//! [`concepts`] explains all of them in ten minutes.
//!
//! # In a kernel
//!
//! Without the feature `host`, which is on by default, the crate is `no_std` and needs nothing but
//! `core`. The kernel implements [`Platform`](platform::Platform), names it with
//! [`set_platform!`], links the section `percpu` like data, runs on the boot CPU with a GS base of
//! 0 (`CR4.FSGSBASE` set), calls [`area::setup_per_cpu_areas`], and installs each CPU's
//! [offset](area::offset) with [`arch::set_offset`] before that CPU uses anything here. [`adopting`]
//! says it step by step.
//!
#![doc = include_str!("../docs/linux.md")]
#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![warn(missing_docs)]

pub mod alloc;
pub mod arch;
pub mod area;
mod atomic;
pub mod counter;
pub mod cpu;
#[cfg(feature = "host")]
pub mod host;
pub mod hotplug;
pub mod irq;
pub mod local;
pub mod platform;
pub mod preempt;
pub mod refcount;
#[cfg(test)]
#[path = "../tests/common/scale.rs"]
mod scale;
#[cfg(percpu_steps)]
mod steps;
pub mod sync;
mod unwind;
pub mod var;
pub mod view;

/// What per-CPU data is, and the words for it.
#[cfg(any(doc, doctest))]
pub mod concepts {
    #![doc = include_str!("../docs/concepts.md")]
}

/// The guide for kernels, and the package's README as a test.
#[cfg(any(doc, doctest))]
pub mod adopting {
    #![doc = include_str!("../docs/adopting.md")]

    #[cfg(doctest)]
    #[doc = include_str!("../README.md")]
    struct Readme;
}

#[cfg(any(loom, shuttle))]
#[doc(hidden)]
pub use atomic::model;
