//! Holes that the type system cannot close, each with what closes it: use before set-up, the
//! template's bytes, interrupts that re-enter, guards that go in another order or not at all.
//!
//! What it can close is in `tests/compile_fail.rs`.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::with_exposed_provenance;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use percpu_core::alloc::{self, AllocError, PerCpuBox};
use percpu_core::area::Config;
use percpu_core::counter::PercpuCounter;
use percpu_core::cpu::{self, CpuId};
use percpu_core::{host, hotplug, irq, percpu, preempt, var};

const CPUS: usize = 3;
/// The CPU that is down at first, and has no unit.
const LATE: usize = 2;

percpu! {
    static SCALAR: PerCpu<u64> = 0x1234;
    static SHARED: PerCpu<AtomicU32> = AtomicU32::new(7);
    static LIST: PerCpu<RefCell<[u32; 2]>> = RefCell::new([0; 2]);
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let payload = catch_unwind(AssertUnwindSafe(|| drop(f()))).unwrap_err();
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.unwrap_or_else(|| *payload.downcast::<String>().unwrap())
}

/// Boots, after a look at what happens before; the first test that comes here.
fn boot() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        before_set_up();
        let config = Config { units_on_demand: true, ..Config::default() };
        host::boot_with(CPUS, LATE, &config).unwrap();
    });
}

/// Before set-up there is no CPU that a thread of a process could be. A kernel's boot CPU works on
/// the template: `tests/kernel.rs`, and the guest.
fn before_set_up() {
    for panic in [
        panic_of(|| SCALAR.inc()),
        panic_of(|| SCALAR.read()),
        panic_of(preempt::disable),
        panic_of(cpu::current),
        panic_of(|| LIST.with_irq(&irq::disable(), |list| list.borrow()[0])),
    ] {
        let sentences = ["this thread is no CPU", "the per-CPU areas are not set up yet"];
        assert!(sentences.iter().any(|sentence| panic.contains(sentence)), "{panic}");
    }
    assert_eq!(CpuId::new(0), None, "no CPU can be named");
    assert_eq!(host::enter_any().map(drop), Err(host::EnterError::Offline));
    assert_eq!(alloc::alloc_percpu(8, 8).err(), Some(AllocError::NotSetUp));
    assert_eq!(PerCpuBox::<u64>::try_new_zeroed().err(), Some(AllocError::NotSetUp));
    assert_eq!(PercpuCounter::new(0).err(), Some(AllocError::NotSetUp));
}

/// What the template holds for a variable.
fn template_of<T>(ptr: var::PerCpuPtr<T>) -> T {
    assert!(var::template().contains(&ptr.raw()));
    // SAFETY: the variable's place in the template, which nobody writes after set-up.
    unsafe { with_exposed_provenance::<T>(ptr.raw()).read() }
}

#[test]
fn the_template_is_not_used_after_set_up() {
    boot();
    let look = || (template_of(SCALAR.ptr()), template_of(SHARED.ptr()).into_inner());
    let dirty = |cpu: CpuId| {
        let _cpu = host::enter_when_free(cpu).unwrap();
        SCALAR.add(1);
        SHARED.with(&preempt::disable(), |shared| shared.fetch_add(1, Relaxed));
    };
    assert_eq!(look(), (0x1234, 7));
    dirty(cpu(0));
    dirty(cpu(1));
    SHARED.remote(cpu(1)).store(99, Relaxed);
    assert_eq!(look(), (0x1234, 7), "a copy was the template");

    // A copy that is made late is one of the template's first bytes.
    hotplug::cpu_up(cpu(LATE)).unwrap();
    assert_eq!((SCALAR.read_on(cpu(LATE)), SHARED.remote(cpu(LATE)).load(Relaxed)), (0x1234, 7));
    dirty(cpu(LATE));
    assert_eq!(look(), (0x1234, 7));

    // And in its next life a CPU finds what it left.
    hotplug::cpu_down(cpu(LATE)).unwrap();
    hotplug::cpu_up(cpu(LATE)).unwrap();
    assert_eq!((SCALAR.read_on(cpu(LATE)), SHARED.remote(cpu(LATE)).load(Relaxed)), (0x1235, 8));
}

#[test]
fn a_second_set_up_is_refused() {
    boot();
    let config = Config::default();
    assert_eq!(host::boot_with(CPUS, LATE, &config), Ok(()), "once for all tests");
    assert_eq!(host::boot(CPUS), Err(host::BootError::BroughtUp(LATE)), "not all of them are up");
    assert_eq!(host::boot(CPUS + 1), Err(host::BootError::Booted(CPUS)));
    let offset = percpu_core::area::offset(cpu(0));
    // SAFETY: to be refused.
    let again =
        unsafe { percpu_core::area::setup_per_cpu_areas(0..CPUS as u32, &Config::default()) };
    assert_eq!(again, Err(percpu_core::area::SetupError::AlreadySetUp));
    assert_eq!(percpu_core::area::offset(cpu(0)), offset);
    assert_eq!(cpu::nr_cpu_ids(), CPUS);
}

/// Whoever re-enters finds a `RefCell` taken: a panic, and no second `&mut`.
#[test]
fn a_copy_that_is_lent_out_again_is_the_same() {
    boot();
    let _cpu = host::enter_when_free(cpu(0)).unwrap();
    let irq = irq::disable();
    let refused = LIST.with_irq(&irq, |list| {
        let mut outer = list.borrow_mut();
        outer[0] += 1;
        LIST.with_irq(&irq, |again| {
            assert!(std::ptr::eq(list, again));
            again.try_borrow_mut().is_err()
        })
    });
    assert!(refused);
}

#[test]
fn guards_may_be_dropped_in_any_order() {
    boot();
    let _cpu = host::enter_when_free(cpu(1)).unwrap();
    let here = cpu(1);
    // Each order in which two of each kind can go, 24 in all.
    for order in 0..24 {
        let mut preempts = [(); 2].map(|()| Some(preempt::disable()));
        let mut irqs = [(); 2].map(|()| Some(irq::disable()));
        let mut left = vec![0, 1, 2, 3];
        let mut choice = order;
        while !left.is_empty() {
            let goes = left.remove(choice % left.len());
            choice /= left.len() + 1;
            if goes < 2 {
                drop(preempts[goes].take())
            } else {
                drop(irqs[goes - 2].take())
            }
            let pins = preempts.iter().flatten().count();
            assert_eq!(preempt::count(), pins as u32, "order {order}");
            assert!(preempts.iter().flatten().all(|guard| guard.cpu() == here));
            assert!(irqs.iter().flatten().all(|guard| guard.cpu() == here));
        }
    }
}
