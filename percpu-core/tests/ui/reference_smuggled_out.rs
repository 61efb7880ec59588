//! Neither does it by way of a variable outside.

use core::cell::Cell;

use percpu_core::{irq, percpu};

percpu! { static CELL: PerCpu<Cell<u32>> = Cell::new(0); }

fn main() {
    let mut smuggled = None;
    {
        let irq = irq::disable();
        CELL.with_irq(&irq, |cell| smuggled = Some(cell)); //~ E0521
    }
    smuggled.unwrap().set(1);
}
