//! Another CPU's copy is used by that CPU at the same time: it must be `Sync`.

use core::cell::Cell;

use percpu_core::{cpu, percpu};

percpu! { static CELL: PerCpu<Cell<u32>> = Cell::new(0); }

fn main() {
    CELL.remote(cpu::current()).set(1); //~ E0277
}
