//! `PerCpuBox`: a value for each possible CPU that owns its memory.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use percpu_core::alloc::{self, AllocError, PerCpuBox};
use percpu_core::cpu::{self, CpuId};
use percpu_core::host;
use percpu_core::{irq, preempt};

const CPUS: usize = 3;

fn boot() {
    host::boot(CPUS).unwrap();
}

/// Areas that this test's allocations change; tests that compare take turns.
fn live() -> u64 {
    alloc::global().statistics().live
}

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> std::sync::MutexGuard<'static, ()> {
    boot();
    TURN.lock().unwrap_or_else(|error| error.into_inner())
}

#[test]
fn zeroes_are_there_on_every_cpu_and_operations_change_this_one() {
    let _turn = turn();
    let hits = PerCpuBox::<u64>::try_new_zeroed().unwrap();
    let one = CpuId::new(1).unwrap();
    {
        let _cpu = host::enter_when_free(one).unwrap();
        hits.inc();
        hits.add(4);
    }
    let values: Vec<u64> = cpu::possible().iter().map(|cpu| hits.read_on(cpu)).collect();
    assert_eq!(values, [0, 5, 0]);
    hits.write_on(one, 7);
    assert_eq!(hits.read_on(one), 7);
}

#[test]
fn each_cpu_gets_the_value_made_for_it_and_each_value_is_dropped_once() {
    let _turn = turn();
    let before = live();
    let token = Arc::new(());
    let value = token.clone();
    let boxed = PerCpuBox::try_new_with(move |cpu| (cpu.index() * 10, value.clone())).unwrap();
    assert_eq!(Arc::strong_count(&token), 2 + CPUS);
    for cpu in cpu::possible().iter() {
        // SAFETY: initialised, and nobody changes it.
        assert_eq!(unsafe { (*boxed.on(cpu)).0 }, cpu.index() * 10);
        assert_eq!(boxed.remote(cpu).0, cpu.index() * 10);
    }
    assert_eq!(live(), before + 1);
    drop(boxed);
    assert_eq!(Arc::strong_count(&token), 1);
    assert_eq!(live(), before);
}

#[test]
fn an_initialiser_that_panics_leaks_nothing() {
    let _turn = turn();
    let before = live();
    let token = Arc::new(());
    let result = catch_unwind(AssertUnwindSafe(|| {
        let value = token.clone();
        PerCpuBox::try_new_with(move |cpu| {
            assert!(cpu.index() != 2, "on purpose");
            value.clone()
        })
    }));
    assert!(result.is_err());
    assert_eq!(
        Arc::strong_count(&token),
        1,
        "the two values made before are dropped, and the initialiser"
    );
    assert_eq!(live(), before);
}

#[test]
fn references_are_lent_under_guards() {
    let _turn = turn();
    let shared = PerCpuBox::<AtomicU64>::try_new_zeroed().unwrap();
    let mut own =
        PerCpuBox::<Cell<u32>>::try_new_with(|cpu| Cell::new(cpu.index() as u32)).unwrap();
    let two = CpuId::new(2).unwrap();
    {
        let _cpu = host::enter_when_free(two).unwrap();
        let pin = preempt::disable();
        shared.with(&pin, |count| count.fetch_add(3, Ordering::Relaxed));
        drop(pin);
        let masked = irq::disable();
        own.with_irq(&masked, |cell| cell.set(cell.get() + 40));
    }
    assert_eq!(shared.remote(two).load(Ordering::Relaxed), 3);
    assert_eq!(own.get_mut(two).get(), 42);
    assert_eq!(own.get_mut(CpuId::new(0).unwrap()).get(), 0);
}

#[test]
fn layouts_that_cannot_be_are_refused_and_empty_ones_work() {
    #[repr(align(8192))]
    struct Wide(#[expect(dead_code, reason = "gives it a size")] u8);
    let _turn = turn();
    assert_eq!(PerCpuBox::try_new_with(|_| Wide(0)).unwrap_err(), AllocError::Align(8192));
    let large = PerCpuBox::<[u64; 5000]>::try_new_zeroed().unwrap_err();
    assert_eq!(large, AllocError::Size(40000));
    let before = live();
    drop(PerCpuBox::<()>::try_new_zeroed().unwrap());
    assert_eq!(live(), before);
}
