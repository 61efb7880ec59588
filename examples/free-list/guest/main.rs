//! The guest: tests and workloads of the free list, on the kernel of percpu-guest.
#![no_std]
#![no_main]

mod tests;
mod workloads;

/// Where the workloads enter how many objects they have.
const HELD: u32 = 0;
