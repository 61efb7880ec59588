//! A copy is never lent out as `&mut`: nested calls would give two of them.

use core::cell::Cell;

use percpu_core::{irq, percpu};

percpu! { static QUEUE: PerCpu<Cell<u32>> = Cell::new(0); }

fn main() {
    let irq = irq::disable();
    QUEUE.with_irq(&irq, |queue: &mut Cell<u32>| queue.set(1)); //~ E0631
}
