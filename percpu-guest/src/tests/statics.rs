//! Static per-CPU variables.

use percpu_core::cpu::CpuId;
use percpu_core::{area, percpu, preempt};

use super::{guest_test, run_on};

percpu! {
    static A: PerCpu<u32> = 1;
    static B: PerCpu<u32> = 1;
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("a possible CPU")
}

/// The copy of CPU `n`, by the address computed by hand.
fn by_hand(template: usize, n: usize) -> u32 {
    let address = template.wrapping_add(area::offset(cpu(n)));
    // SAFETY: the address is that CPU's copy, by the rule of addressing; nobody writes now.
    unsafe { core::ptr::with_exposed_provenance::<u32>(address).read_volatile() }
}

guest_test!(
    /// `a` and `b` are 1 everywhere; CPU 1 adds 1 to `a`: CPU 0 has 1 and 1, CPU 1 has 2 and 1.
    worked_example, cpus = 2, possible = 2, {
        run_on(1, || A.add(1));
        assert_eq!((A.read_on(cpu(0)), B.read_on(cpu(0))), (1, 1));
        assert_eq!((A.read_on(cpu(1)), B.read_on(cpu(1))), (2, 1));
        assert_eq!((by_hand(A.ptr().raw(), 0), by_hand(B.ptr().raw(), 0)), (1, 1));
        assert_eq!((by_hand(A.ptr().raw(), 1), by_hand(B.ptr().raw(), 1)), (2, 1));
        run_on(0, || assert_eq!((A.read(), B.read()), (1, 1)));
        run_on(1, || assert_eq!((A.read(), B.read()), (2, 1)));
    }
);

guest_test!(a_guard_keeps_the_thread_on_its_cpu, cpus = 4, possible = 4, {
    for _ in 0..200 {
        let pin = preempt::disable();
        let here = pin.cpu();
        for _ in 0..50 {
            assert_eq!(percpu_core::cpu::this_cpu_raw() as usize, here.index());
        }
        drop(pin);
        crate::sched::yield_now();
    }
});
