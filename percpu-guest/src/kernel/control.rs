//! The control thread: takes the host's commands and drives CPU hotplug.

use core::sync::atomic::Ordering;

#[cfg(percpu_steps)]
use crate::abi::Doorbell;
use crate::abi::{COMMAND_RING_LEN, CommandKind, EventKind, PlugError};
use percpu_core::cpu::CpuId;
use percpu_core::hotplug;
use percpu_core::preempt;

#[cfg(percpu_steps)]
use crate::kernel::arch::doorbell;
use crate::kernel::arch::tsc;
use crate::kernel::cpus::{down, up};
use crate::kernel::trials::Trials;
use crate::kernel::{balance, events, sched, shared, testing, workload};

/// The doorbell interrupt's handler: the control thread goes first when the interrupt ends.
pub fn on_command() {
    preempt::set_need_resched();
}

/// Whether there is a command to take.
pub fn has_command(_cpu: u32) -> bool {
    let header = shared::header();
    // Where CPUs run one at a time a command is there before its time.
    #[cfg(percpu_steps)]
    if shared::turns().state.command_due.load(Ordering::Relaxed) != 0 {
        return false;
    }
    header.commands.head.load(Ordering::Acquire) != header.commands_taken.load(Ordering::Relaxed)
}

/// Brings up the CPUs that boot with the machine, and says that the guest is there.
fn boot() {
    for cpu in 1..shared::boot().boot_cpus {
        if let Err(e) = up(cpu) {
            panic!("CPU {cpu} does not come up at boot: {e:?}");
        }
    }
    // Else the host, which may look at once, would find nobody busy and take a kernel whose threads
    // are yet to come for one at rest.
    let busy = &shared::header().busy;
    busy.fetch_add(1, Ordering::SeqCst);
    events::emit_and_ring(EventKind::Booted, [0; 5]);
    #[cfg(percpu_steps)]
    doorbell::ring(Doorbell::Ready, 0);
    balance::start();
    match (shared::boot().test, shared::boot().bench_rounds) {
        (0, 0) => workload::start(),
        (0, _) => testing::start_benchmark(),
        (test, _) => testing::start(test as usize),
    }
    busy.fetch_sub(1, Ordering::SeqCst);
}

/// The thread.
pub fn run(_cpu: usize) {
    boot();
    let mut trials = Trials::new();
    loop {
        sched::wait_until(has_command);
        let header = shared::header();
        let n = header.commands_taken.load(Ordering::Relaxed);
        let slot = &header.commands.slots[(n % COMMAND_RING_LEN as u64) as usize];
        let kind = slot.kind.load(Ordering::Relaxed);
        let cpu = slot.arg0.load(Ordering::Relaxed);
        let arg = slot.arg1.load(Ordering::Relaxed);
        header.commands_taken.store(n + 1, Ordering::Release);
        match CommandKind::from_code(kind) {
            Some(CommandKind::Plug) => {
                let taken = tsc::now();
                let result = up(cpu);
                report(EventKind::PlugDone, cpu, result, n, taken);
            }
            Some(CommandKind::Unplug) => {
                let taken = tsc::now();
                let result = down(cpu);
                report(EventKind::UnplugDone, cpu, result, n, taken);
            }
            Some(CommandKind::FailStep) => fail_step(cpu, arg),
            Some(CommandKind::Trial) => trials.run(cpu, arg, n),
            None => panic!("the host sent a command of unknown kind {kind}"),
        }
    }
}

fn report(kind: EventKind, cpu: u32, result: Result<(), PlugError>, command: u64, taken: u64) {
    let code = result.err().map_or(0, |e| e as u64);
    events::emit_and_ring(kind, [u64::from(cpu), code, command, taken, 0]);
}

fn fail_step(cpu: u32, number: u64) {
    if let (Some(cpu), Some((step, ..))) =
        (CpuId::new(cpu as usize), hotplug::steps().nth(number as usize))
    {
        hotplug::inject_failure(step, cpu);
    }
}
