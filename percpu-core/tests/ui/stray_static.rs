//! A variable outside of the section has no copies.

use percpu_core::var::{PerCpu, Plain};

static STRAY: PerCpu<u64, Plain> = PerCpu::new(0); //~ E0133

fn main() {}
