//! How far off a read is when the batch has shrunk under what CPUs had counted.

use std::sync::Barrier;

use percpu_core::counter::{self, PercpuCounter};
use percpu_core::cpu::{self, CpuId};
use percpu_core::{host, hotplug};

const CPUS: usize = 40;
/// CPUs that stay up, and are busy all the time.
const BUSY: usize = 10;

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

/// Busy CPUs do not fold what exceeds the new batch: the bound goes by the largest batch there has
/// been.
#[test]
fn a_read_is_off_by_the_bound_and_by_more_than_the_current_batch_allows() {
    host::boot(CPUS).unwrap();
    let counter = PercpuCounter::new(0).unwrap();
    assert_eq!(counter.error_bound(), 79 * CPUS as u64, "the batch is 80");
    let (added, looked) = (Barrier::new(BUSY + 1), Barrier::new(BUSY + 1));
    let seen = std::thread::scope(|scope| {
        for n in 0..BUSY {
            let (counter, added, looked) = (&counter, &added, &looked);
            scope.spawn(move || {
                let _cpu = host::enter_when_free(cpu(n)).unwrap();
                counter.add(79);
                added.wait();
                looked.wait();
            });
        }
        added.wait();
        for n in BUSY..CPUS {
            hotplug::cpu_down(cpu(n)).unwrap();
        }
        let off = counter.read().abs_diff(counter.sum());
        let by_current_batch = counter::batch() as u64 * cpu::online().count() as u64;
        let seen = (off, counter.error_bound(), by_current_batch);
        looked.wait();
        seen
    });
    assert_eq!(seen, (790, 79 * BUSY as u64, 320));
    // A larger batch of an add's own, on this counter alone.
    let other = PercpuCounter::new(0).unwrap();
    let add = |batch| {
        let _cpu = host::enter_when_free(cpu(0)).unwrap();
        other.add_batch(999, batch);
    };
    add(1000);
    assert_eq!((other.read(), other.sum(), other.error_bound()), (0, 999, 999 * BUSY as u64));
    assert_eq!(counter.error_bound(), 790);
}
