//! The initial value is a constant: the template is copied byte by byte.

use percpu_core::percpu;

percpu! { static NAMES: PerCpu<Option<Vec<u8>>> = Some(vec![1]); } //~ E0015

fn main() {}
