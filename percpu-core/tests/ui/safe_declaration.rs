//! A declaration by symbol name is unsafe, however the macro is called.

use percpu_core::percpu;

percpu! { //~ error expected `static NAME: PerCpu<Type> = initial value;`
    @ [declare] [] [Plain] #[link_name = "environ"] static ENVIRON: PerCpu<u64>;
}

percpu! { //~ error expected `static NAME: PerCpu<Type> = initial value;`
    extern "C" {
        static STDOUT: PerCpu<u64>;
    }
}

fn main() {}
