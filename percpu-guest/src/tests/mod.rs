//! Tests of percpu-core in the guest, a file a subject.

mod allocator;
mod balance;
mod counters;
mod hotplug;
mod interrupts;
mod local;
mod mounts;
mod refs;
mod statics;
mod threads;
