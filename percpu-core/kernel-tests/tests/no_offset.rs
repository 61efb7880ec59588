//! A CPU that runs without its offset after set-up: it was forgotten, or wiped by a load of the
//! segment selector after `set_offset`. Builds with debug assertions panic. In others the CPU works on
//! the template, and no later CPU gets what it writes there.

use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::thread;

use kernel_tests::{boot, on_cpus};
use percpu_core::alloc::PerCpuBox;
use percpu_core::area::{self, Config};
use percpu_core::cpu::{self, CpuId};
use percpu_core::{arch, percpu, preempt};

percpu! {
    static PACKETS: PerCpu<u32> = 3;
    static NAME: PerCpu<[u8; 4]> = *b"idle";
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

/// What a call that must not return says, if the build has debug assertions; else it is not made.
fn refused<R>(what: &str, f: impl FnOnce() -> R) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(f()))) else {
        panic!("{what} returned")
    };
    let said = panic.downcast_ref::<&str>().copied().unwrap_or_default();
    assert!(said.starts_with("this CPU has no offset: call "), "{what}: {said}");
}

#[test]
fn a_cpu_without_an_offset_is_refused_and_later_cpus_begin_with_the_initial_values() {
    // As a kernel's panic handler that uses per-CPU data.
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PACKETS.read();
        usual(info);
    }));
    PACKETS.write(5);
    boot(4, &Config { units_on_demand: true, ..Config::default() }).unwrap();
    assert_eq!(PACKETS.read(), 5, "what early boot has set is on all CPUs");
    area::add_unit(cpu(1)).unwrap();
    let hits = PerCpuBox::<u64>::try_new_zeroed().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: this thread alone is CPU 1, and then it is no CPU: a load of the selector leaves
            // the same.
            unsafe {
                arch::set_offset(area::offset(cpu(1)));
                arch::set_offset(0);
            }
            refused("add", || PACKETS.add(7));
            refused("inc", || PACKETS.inc());
            refused("read", || PACKETS.read());
            refused("xchg", || PACKETS.xchg(1));
            refused("disable", preempt::disable);
            refused("current", cpu::current);
            refused("this_cpu_raw", cpu::this_cpu_raw);
            // SAFETY: a live box's copies, used as scalars only.
            refused("an operation on a box", || unsafe { hits.ptr().add(1) });
            // What a build without debug assertions does: the template is written.
            let template = std::ptr::with_exposed_provenance_mut::<u32>(PACKETS.ptr().raw());
            // SAFETY: the template's variable, which nothing else uses after set-up.
            unsafe { template.write(template.read() + 7) };
        });
    });
    assert_eq!(PACKETS.read_on(cpu(1)), 5);
    area::add_unit(cpu(2)).unwrap();
    assert_eq!(PACKETS.read_on(cpu(2)), 5, "a later CPU begins with what there was at set-up");
    // SAFETY: nothing writes the copy.
    assert_eq!(unsafe { NAME.on(cpu(2)).read() }, *b"idle");
    on_cpus(2..3, |_| PACKETS.add(1));
    assert_eq!(PACKETS.read_on(cpu(2)), 6);
}
