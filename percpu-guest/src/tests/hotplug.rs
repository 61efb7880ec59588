//! CPUs coming and going.

use percpu_core::cpu::{self, CpuId};
use percpu_guest::abi::PlugError;

use super::{guest_test, run_on};
use crate::control;

guest_test!(a_cpu_goes_down_and_comes_up_again, cpus = 2, possible = 3, {
    let one = CpuId::new(1).expect("possible");
    run_on(0, || {
        for _ in 0..5 {
            assert_eq!(control::down(1), Ok(()));
            assert_eq!(control::up(1), Ok(()));
        }
        assert_eq!(control::up(2), Ok(()));
    });
    assert!(cpu::online().contains(one) && cpu::active().contains(one));
    assert_eq!(cpu::online().count(), 3);
    assert_eq!(cpu::dying().count(), 0);
});

guest_test!(impossible_orders_are_refused, cpus = 2, possible = 2, {
    run_on(0, || {
        assert_eq!(control::up(1), Err(PlugError::AlreadyThere));
        assert_eq!(control::up(7), Err(PlugError::NoSuchCpu));
        assert_eq!(control::down(0), Err(PlugError::Busy));
        assert_eq!(control::down(1), Ok(()));
        assert_eq!(control::down(1), Err(PlugError::AlreadyThere));
    });
    assert_eq!(cpu::online().count(), 1);
});

guest_test!(a_failing_step_is_rolled_back, cpus = 1, possible = 2, {
    use percpu_core::hotplug;
    let count = hotplug::steps().count();
    assert!(count >= 3, "only {count} steps");
    for n in 0..count {
        let (step, ..) = hotplug::steps().nth(n).expect("counted");
        hotplug::inject_failure(step, CpuId::new(1).expect("possible"));
        run_on(0, || assert_eq!(control::up(1), Err(PlugError::StepFailed)));
        assert_eq!(cpu::online().count(), 1);
    }
    run_on(0, || assert_eq!(control::up(1), Ok(())));
    assert_eq!(cpu::online().count(), 2);
});

guest_test!(every_possible_cpu_comes_up, cpus = 1, possible = 16, {
    run_on(0, || {
        for cpu in 1..16 {
            assert_eq!(control::up(cpu), Ok(()), "CPU {cpu}");
        }
        for cpu in (1..16).rev() {
            assert_eq!(control::down(cpu), Ok(()), "CPU {cpu}");
        }
    });
    assert_eq!(cpu::online().count(), 1);
});
