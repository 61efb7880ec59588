//! A variable is placed in one way.

use percpu_core::percpu;

percpu! { //~ error a per-CPU variable is placed in one way
    #[hot]
    #[read_mostly]
    static BOTH: PerCpu<u64> = 0;
}

fn main() {}
