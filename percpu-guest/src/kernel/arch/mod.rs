//! Everything that depends on the machine: entry, tables, stubs, interrupts, the local APIC.
//!
//! The kernel runs in ring 0 or, where a host emulates ring 0 instruction by instruction, in ring 3
//! above a few ring-0 stubs; one image does both. Three rules make that possible:
//! - interrupts are masked in software, by a per-CPU flag that the entry stub reads (`irq`);
//! - nothing outside `stubs` and `entry` executes a privileged instruction; `int3` asks ring 0 for
//!   the few services that need one (`service`);
//! - the host is called by a store to a page without memory (`doorbell`).
//!
//! A build with `--cfg percpu_steps` is for a host that has one vCPU, on which the CPUs take turns: each
//! step of theirs is counted (`steps`), and at which another goes on is in a schedule (`turns`). It has
//! no clock but the steps, and no interrupts but those of the schedule, of other CPUs and of the host.

pub mod doorbell;
pub mod entry;
pub mod irq;
#[cfg(not(percpu_steps))]
pub mod lapic;
#[cfg(percpu_steps)]
#[path = "serial.rs"]
pub mod lapic;
pub mod service;
#[cfg(percpu_steps)]
pub mod steps;
mod stubs;
pub mod tables;
pub mod tsc;
#[cfg(percpu_steps)]
pub mod turns;
