//! The hotplug state machine, with threads as CPUs.

mod arrival;
mod ids;
mod instances;
mod model;
mod panics;
#[path = "../common/scale.rs"]
mod scale;
mod steps;
mod waits;

use std::sync::{Mutex, MutexGuard, PoisonError};

use percpu_core::cpu::{self, CpuId};
use percpu_core::host::{self, EnterError};

const CPUS: usize = 4;
/// The CPU that comes and goes.
const VICTIM: usize = 2;

/// What the steps' callbacks saw.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    guard
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn victim() -> CpuId {
    cpu(VICTIM)
}

fn log(entry: String) {
    LOG.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
}

fn take_log() -> Vec<String> {
    std::mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner))
}

fn assert_up(cpu: CpuId) {
    assert!(cpu::online().contains(cpu) && cpu::active().contains(cpu));
    assert!(!cpu::dying().contains(cpu));
    assert_eq!(host::enter(cpu).map(drop), Ok(()));
}

fn assert_down(cpu: CpuId) {
    assert!(!cpu::online().contains(cpu) && !cpu::active().contains(cpu));
    assert!(!cpu::dying().contains(cpu), "a dying bit that stays");
    assert_eq!(host::enter(cpu).map(drop), Err(EnterError::Offline));
}
