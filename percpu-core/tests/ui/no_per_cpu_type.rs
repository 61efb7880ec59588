//! A variable that is not declared as the macro wants it is answered with what it wants.

use percpu_core::percpu;

percpu! { //~ error expected `static NAME: PerCpu<Type> = initial value;`
    static COUNT: u64 = 0;
}

fn main() {}
