//! Only the crate says which types have single-instruction operations.

#[derive(Clone, Copy, PartialEq)]
#[repr(transparent)]
struct Mine(u64);

impl percpu_core::var::Word for Mine {} //~ E0277

fn main() {}
