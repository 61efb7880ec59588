//! A value that must stay with its thread cannot be in a box: the copies are dropped by whoever drops the box.

use std::rc::Rc;

use percpu_core::alloc::PerCpuBox;

fn main() {
    let _ = PerCpuBox::try_new_with(|_cpu| Rc::new(1)); //~ E0277
}
