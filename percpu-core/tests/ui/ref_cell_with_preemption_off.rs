//! With preemption off an interrupt handler may re-enter: what it would share must be `Sync`.

use core::cell::RefCell;

use percpu_core::{percpu, preempt};

percpu! { static LIST: PerCpu<RefCell<u32>> = RefCell::new(0); }

fn main() {
    LIST.with(&preempt::disable(), |list| *list.borrow_mut() += 1); //~ E0277
}
