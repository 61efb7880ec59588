//! A value that must stay with its thread is no per-CPU variable: any thread may come to run on the CPU.

use core::cell::Cell;

use percpu_core::percpu;

struct OfThisThread(*mut Cell<u32>);

percpu! { static SHARED: PerCpu<Option<OfThisThread>> = None; } //~ E0277

fn main() {}
