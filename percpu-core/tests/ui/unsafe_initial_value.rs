//! What is unsafe in an initial value has to say so.

use core::num::NonZeroU32;
use percpu_core::percpu;

percpu! {
    static ONE: PerCpu<Option<NonZeroU32>> = Some(NonZeroU32::new_unchecked(1)); //~ E0133
}

fn main() {}
