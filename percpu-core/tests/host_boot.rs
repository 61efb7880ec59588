//! Booting a program with numbers of all sizes, in the middle of something, and again.

use std::panic::catch_unwind;

use percpu_core::area::{self, Config, SetupError};
use percpu_core::host::{self, BootError};
use percpu_core::hotplug::{self, RegisterError, Section};
use percpu_core::{cpu, irq};

#[test]
fn numbers_that_cannot_be_are_refused_and_change_nothing() {
    // One test: a program boots once.
    for cpus in [0, 1025, 1 << 31, 1 << 32, (1 << 32) + 2, 1 << 50, usize::MAX - 1, usize::MAX] {
        let refused = host::boot(cpus);
        let expected = if cpus == 0 { SetupError::NoCpu } else { SetupError::CpuOutOfRange(1024) };
        assert_eq!(refused, Err(BootError::Setup(expected)), "{cpus} CPUs");
        assert_eq!((area::is_set_up(), cpu::possible().count()), (false, 0));
    }
    let config = Config { boot_cpu: Some(1), ..Config::default() };
    assert_eq!(host::boot_with(4, 2, &config), Err(BootError::Setup(SetupError::BootCpu(1))));

    // Boot from within boot: the thread would wait for itself.
    let again = |_, _| match host::boot(4) {
        Ok(()) => 0,
        Err(_) => 20,
    };
    let config = Config { distance: again, ..Config::default() };
    assert!(catch_unwind(|| host::boot_with(4, 2, &config)).is_err());
    assert!(!area::is_set_up());

    let masked = irq::disable();
    assert!(catch_unwind(|| host::boot(4)).is_err(), "interrupts are masked");
    drop(masked);

    // Steps can be registered before there are CPUs, up to the last place.
    let full = || hotplug::register(Section::Prepare, "early", None, None);
    let mut steps: Vec<_> = std::iter::from_fn(|| full().ok()).collect();
    assert_eq!(steps.len(), hotplug::MAX_STEPS);
    let no_room = BootError::Register(RegisterError::Full);
    assert_eq!(host::boot_with(4, 2, &Config::default()), Err(no_room));
    steps.drain(..3).for_each(hotplug::unregister);
    assert_eq!(host::boot_with(4, 2, &Config::default()), Ok(()), "it goes on where it ended");
    assert_eq!((cpu::possible().count(), cpu::online().count()), (4, 2));
    assert_eq!(hotplug::steps().next().unwrap().2, "counter:dead", "before users' steps");

    assert_eq!(host::boot_with(4, 2, &config), Ok(()), "the first configuration is what counts");
    assert_eq!(host::boot(4), Err(BootError::BroughtUp(2)), "it would bring up all of them");
    for up in [0, 1, usize::MAX] {
        let refused = host::boot_with(4, up, &Config::default());
        assert_eq!(refused, Err(BootError::BroughtUp(2)));
    }
    for cpus in [0, 1, (1 << 32) + 4, usize::MAX] {
        assert_eq!(host::boot(cpus), Err(BootError::Booted(4)));
    }
    assert_eq!(cpu::online().count(), 2);
    let sentence = host::boot(4).unwrap_err().to_string();
    assert!(sentence.contains("brought 2 CPUs up"), "{sentence}");
}
