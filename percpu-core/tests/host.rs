//! Threads as CPUs: who is which, and until when.

use percpu_core::cpu::{self, CpuId};
use percpu_core::host::{self, EnterError};
use percpu_core::preempt;

const CPUS: usize = 4;

fn cpu(n: usize) -> CpuId {
    host::boot(CPUS).unwrap();
    CpuId::new(n).unwrap()
}

#[test]
fn a_cpu_is_one_thread_at_a_time() {
    let taken = cpu(3);
    let mine = host::enter_when_free(taken).unwrap();
    assert_eq!(cpu::current(), taken);
    assert_eq!(cpu::this_cpu_raw(), 3);
    assert_eq!(host::enter(taken).unwrap_err(), EnterError::Nested);
    let others = std::thread::spawn(move || host::enter(taken).map(drop).unwrap_err());
    assert_eq!(others.join().unwrap(), EnterError::Taken);
    drop(mine);
    let free = std::thread::spawn(move || host::enter_when_free(taken).map(|c| c.cpu()));
    assert_eq!(free.join().unwrap(), Ok(taken));
}

#[test]
fn a_thread_does_not_leave_its_cpu_with_a_guard() {
    let stuck = cpu(2);
    let result = std::thread::spawn(move || {
        let entered = host::enter_when_free(stuck).unwrap();
        let guard = preempt::disable();
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(entered)));
        // Still the CPU, as the guard says.
        assert_eq!(guard.cpu(), stuck);
        let others = std::thread::spawn(move || host::enter(stuck).map(drop).unwrap_err());
        assert_eq!(others.join().unwrap(), EnterError::Taken);
        drop(guard);
        refused.is_err()
    });
    assert!(result.join().unwrap());
}

#[test]
fn boot_happens_once() {
    cpu(0);
    assert_eq!(host::boot(CPUS), Ok(()));
    assert_eq!(host::boot(CPUS + 1), Err(host::BootError::Booted(CPUS)));
    assert_eq!(CpuId::new(CPUS), None);
}
