//! The `up` build: the same source, and statics that are plain globals.
//!
//! `cargo test -p percpu-core --features up --test up`

#![cfg(feature = "up")]

use std::cell::RefCell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use percpu_core::alloc::{PerCpuBox, alloc_percpu, free_percpu};
use percpu_core::area::{self, SetupError};
use percpu_core::counter::PercpuCounter;
use percpu_core::cpu::{self, CpuId};
use percpu_core::host::BootError;
use percpu_core::hotplug::{self, HotplugError};
use percpu_core::refcount::{PercpuRef, RefFlags, Release};
use percpu_core::var::{self, DoubleWord};
use percpu_core::{host, irq, percpu, preempt};

percpu! {
    static EARLY: PerCpu<u32> = 1;
    #[shared_aligned]
    static LINE: PerCpu<RefCell<[u8; 3]>> = RefCell::new([1, 2, 3]);
    #[hot]
    static HITS: PerCpu<AtomicU32> = AtomicU32::new(0);
    #[page_aligned]
    static HEAD: PerCpu<DoubleWord> = DoubleWord { low: 0, high: 1 };
}

fn boot() -> CpuId {
    static BOOTED: LazyLock<CpuId> = LazyLock::new(|| {
        assert_eq!(host::boot(2), Err(BootError::Setup(SetupError::OneCpu(2))));
        host::boot(1).unwrap();
        CpuId::new(0).unwrap()
    });
    *BOOTED
}

#[test]
fn a_static_is_its_own_only_copy() {
    let zero = boot();
    let _cpu = host::enter_when_free(zero).unwrap();
    assert_eq!((area::offset(zero), var::template()), (0, 0..0));
    assert_eq!(EARLY.on(zero).addr(), (&raw const EARLY).addr());
    assert_eq!(EARLY.ptr().raw(), (&raw const EARLY).addr());
    EARLY.add(4);
    assert_eq!((EARLY.read(), EARLY.read_on(zero)), (5, 5));
    // SAFETY: nobody writes it now.
    assert_eq!(unsafe { EARLY.on(zero).read() }, 5);
    assert_eq!(HEAD.xchg(DoubleWord { low: 2, high: 3 }), DoubleWord { low: 0, high: 1 });
    assert_eq!((&raw const HEAD).addr() % 4096, 0);
    assert_eq!((&raw const LINE).addr() % 64, 0);
}

#[test]
fn guards_and_lending_work_as_with_many() {
    let zero = boot();
    let _cpu = host::enter_when_free(zero).unwrap();
    let pin = preempt::disable();
    assert_eq!((pin.cpu(), preempt::count()), (zero, 1));
    HITS.with(&pin, |hits| hits.fetch_add(1, Relaxed));
    assert_eq!(HITS.remote(zero).load(Relaxed), 1);
    drop(pin);
    let irq = irq::disable();
    LINE.with_irq(&irq, |line| line.borrow_mut()[1] = 7);
    LINE.with_irq(&irq, |line| assert_eq!(*line.borrow(), [1, 7, 3]));
}

#[test]
fn dynamic_pointers_are_addresses() {
    let zero = boot();
    let area = alloc_percpu(100, 8).unwrap();
    assert_eq!(area.on(zero).addr(), area.raw());
    // SAFETY: allocated above, and nobody else has it.
    let bytes = unsafe { std::slice::from_raw_parts(area.on(zero), 100) };
    assert_eq!(bytes, [0; 100]);
    // SAFETY: as above, and the slice is not used any more.
    unsafe { free_percpu(area) }.unwrap();

    let _cpu = host::enter_when_free(zero).unwrap();
    let words = PerCpuBox::<u64>::try_new_zeroed().unwrap();
    words.add(9);
    assert_eq!((words.read(), words.read_on(zero)), (9, 9));
}

#[test]
fn counters_and_refs_work_as_with_many() {
    let zero = boot();
    let _cpu = host::enter_when_free(zero).unwrap();
    let counter = PercpuCounter::new(5).unwrap();
    (0..100).for_each(|_| counter.inc());
    assert_eq!(counter.sum(), 105);

    let released = PercpuRef::new(Released(AtomicU32::new(0)), RefFlags::NONE).unwrap();
    let held = released.tryget_live().unwrap();
    released.kill().unwrap();
    assert_eq!(held.0.load(Relaxed), 0);
    drop(held);
    assert!(released.is_zero());
}

struct Released(AtomicU32);

impl Release for Released {
    fn release(&self) {
        assert_eq!(self.0.fetch_add(1, Relaxed), 0, "once");
    }
}

#[test]
fn the_one_cpu_stays_up() {
    let zero = boot();
    assert_eq!(cpu::possible().count(), 1);
    assert_eq!(hotplug::cpu_down(zero), Err(HotplugError::LastCpu));
}
