//! The timer interrupt: heartbeat, preemption at random moments, work in interrupt context.

use core::sync::atomic::{AtomicUsize, Ordering};

use percpu_core::{cpu, percpu, preempt};

use crate::kernel::arch::{lapic, tsc};
use crate::kernel::rng::Rng;
use crate::kernel::{shared, workload};

percpu! {
    /// State of this CPU's choice of intervals; 0 = not seeded.
    static INTERVALS: PerCpu<u64> = 0;
}

/// What a test has the handler do: address of its function, 0 = nothing.
static HOOK: AtomicUsize = AtomicUsize::new(0);

/// From now on every timer interrupt, on whatever CPU, calls `hook`.
pub fn set_hook(hook: fn()) {
    HOOK.store((hook as *const ()).expose_provenance(), Ordering::Release);
}

fn call_hook() {
    let hook = core::ptr::with_exposed_provenance::<()>(HOOK.load(Ordering::Acquire));
    if !hook.is_null() {
        // SAFETY: `set_hook` has put the address of such a function there.
        let hook: fn() = unsafe { core::mem::transmute(hook) };
        hook();
    }
}

/// The handler.
pub fn on_timer() {
    let control = shared::this_control();
    control.heartbeat.fetch_add(1, Ordering::Relaxed);
    workload::on_interrupt();
    call_hook();
    preempt::set_need_resched();
    arm();
}

/// Arms the timer for half to one and a half times the usual interval, so that preemption does
/// not fall into step with a workload.
pub fn arm() {
    let usual = shared::boot().tick_us.max(2);
    let mut rng = Rng::new(INTERVALS.read() ^ tsc::now(), u64::from(cpu::this_cpu_raw()));
    let choice = rng.next_u64();
    INTERVALS.write(choice);
    lapic::arm_timer(usual / 2 + (choice % u64::from(usual)) as u32);
}
