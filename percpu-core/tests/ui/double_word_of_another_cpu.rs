//! Of two words another CPU could see one old and one new.

use percpu_core::var::DoubleWord;
use percpu_core::{cpu, percpu};

percpu! { static PAIR: PerCpu<DoubleWord> = DoubleWord { low: 0, high: 0 }; }

fn main() {
    PAIR.read_on(cpu::current()); //~ E0277
    PAIR.remote(cpu::current()); //~ E0277 cannot be lent out by reference
}
