//! Operations on a CPU that other CPUs interrupt between any two instructions.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;

use kernel_tests::{boot, on_cpus};
use percpu_core::area::Config;
use percpu_core::cpu::{self, CpuId};
use percpu_core::platform::{Global, Platform};
use percpu_core::{irq, percpu};

percpu! {
    static SUM: PerCpu<u64> = 0;
    static IN_MASKED_PART: PerCpu<bool> = false;
}

const CALLS: u32 = 100;

static RUNNING: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

fn interrupt(cpu: usize) {
    assert_eq!(cpu::this_cpu_raw() as usize, cpu);
    assert!(!IN_MASKED_PART.read(), "an interrupt while interrupts were masked");
    SUM.add(1);
}

#[test]
fn an_operation_is_one_step_for_interrupts_and_masked_parts_are_not_interrupted() {
    boot(3, &Config::default()).unwrap();
    let sums: [AtomicU32; 3] = Default::default();
    let work = |cpu: CpuId| {
        RUNNING.fetch_add(1, SeqCst);
        let mut added = 0;
        while !STOP.load(SeqCst) {
            for _ in 0..100 {
                SUM.add(1);
            }
            let masked = irq::disable();
            IN_MASKED_PART.write(true);
            let before = SUM.read();
            SUM.write(before + 1);
            IN_MASKED_PART.write(false);
            drop(masked);
            added += 101;
        }
        sums[cpu.index()].store(added, SeqCst);
    };
    thread::scope(|scope| {
        scope.spawn(|| on_cpus(1..3, work));
        while RUNNING.load(SeqCst) != 2 {
            thread::yield_now();
        }
        for _ in 0..CALLS {
            (0..3).for_each(|cpu| Global::run_on_cpu(cpu, interrupt, cpu as usize));
        }
        STOP.store(true, SeqCst);
    });
    for (cpu, sum) in sums.iter().enumerate() {
        let right = u64::from(sum.load(SeqCst) + CALLS);
        assert_eq!(SUM.read_on(CpuId::new(cpu).unwrap()), right);
    }
}
