//! Counters that are made together, and counters that are used after their end.

#[path = "common/scale.rs"]
mod scale;

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use percpu_core::alloc::{AllocError, global};
use percpu_core::counter::{PercpuCounter, PercpuCounters};
use percpu_core::cpu::CpuId;
use percpu_core::view::{COUNTER_LIVE, CounterView, ListView};
use percpu_core::{counter, host, hotplug};
use scale::scaled;

const CPUS: usize = 3;

/// Boots, and keeps the other tests of this program away: they make counters and count areas.
fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    guard
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn live_areas() -> u64 {
    global().statistics().live
}

/// Addresses of all counters, in the order of the list.
fn listed() -> Vec<usize> {
    let head = percpu_core::view::roots().counters as usize;
    // SAFETY: nobody makes or drops counters meanwhile, so the list stands still.
    let read = |at: usize| unsafe { std::ptr::with_exposed_provenance::<ListView>(at).read() };
    let (mut at, mut found) = (read(head).next as usize, Vec::new());
    while at != head {
        assert_eq!(read(read(at).next as usize).prev as usize, at);
        found.push(at);
        at = read(at).next as usize;
    }
    found
}

fn view(counter: &PercpuCounter) -> CounterView {
    let view = std::ptr::with_exposed_provenance::<CounterView>(counter.address());
    // SAFETY: the counter lives, and nobody changes it now.
    unsafe { view.read() }
}

#[test]
fn counters_made_together_share_one_area_and_count_for_themselves() {
    let _system = system();
    let (before, areas) = (listed(), live_areas());
    let many = PercpuCounter::new_many::<5>(100).unwrap();
    assert_eq!(live_areas(), areas + 1, "one area for all");
    let addresses = many.each_ref().map(PercpuCounter::address);
    assert_eq!(listed(), [&before[..], &addresses].concat());
    for (n, counter) in many.iter().enumerate() {
        assert_eq!(counter.locals().raw(), many[0].locals().raw() + 4 * n);
        assert_eq!((view(counter).first, view(counter).magic), (addresses[0] as u64, COUNTER_LIVE));
    }
    host::on_each_cpu(|cpu| {
        for (n, counter) in many.iter().enumerate() {
            counter.add(n as i64 * 10 + cpu.index() as i64);
        }
    });
    let sums = many.each_ref().map(PercpuCounter::sum);
    assert_eq!(sums, [103, 133, 163, 193, 223]);
    // K5 for each of them.
    hotplug::cpu_down(cpu(2)).unwrap();
    assert_eq!(many.each_ref().map(PercpuCounter::read), [102, 112, 122, 132, 223]);
    assert_eq!(many.each_ref().map(PercpuCounter::sum), sums);
    hotplug::cpu_up(cpu(2)).unwrap();
    PercpuCounter::destroy_many(many);
    assert_eq!((listed(), live_areas()), (before, areas));
}

#[test]
fn counters_made_together_can_be_dropped_one_by_one_in_any_order() {
    let _system = system();
    let (before, areas) = (listed(), live_areas());
    let mut many = PercpuCounter::new_many::<4>(7).unwrap().map(Some);
    let apart = PercpuCounter::new(8).unwrap();
    // The first one has the memory of all.
    for (round, n) in [0, 2, 3].into_iter().enumerate() {
        many[n] = None;
        assert_eq!(live_areas(), areas + 2);
        let left: Vec<_> = many.iter().flatten().chain([&apart]).map(|c| c.address()).collect();
        assert_eq!(listed(), [&before[..], &left].concat());
        host::on_each_cpu(|_| many[1].as_ref().unwrap().inc());
        assert_eq!(many[1].as_ref().unwrap().sum(), 7 + (CPUS * (round + 1)) as i64);
    }
    many[1] = None;
    assert_eq!(live_areas(), areas + 1);
    // Counters of different memory may go together.
    let [a, b] = PercpuCounter::new_many(0).unwrap();
    PercpuCounter::destroy_many([b, apart, a]);
    assert_eq!((listed(), live_areas()), (before, areas));
}

#[test]
fn a_number_of_counters_known_at_run_time_is_a_slice() {
    let _system = system();
    let (before, areas) = (listed(), live_areas());
    for count in [0, 1, scaled(1000)] {
        let many = PercpuCounters::new(count, -1).unwrap();
        assert_eq!((many.len(), live_areas()), (count, areas + (count > 0) as u64));
        let addresses: Vec<_> = many.iter().map(PercpuCounter::address).collect();
        assert_eq!(listed(), [&before[..], &addresses].concat());
        host::on_each_cpu(|_| (0..count).for_each(|n| many[n].add(n as i64)));
        for (n, counter) in many.iter().enumerate() {
            assert_eq!(counter.sum(), (n * CPUS) as i64 - 1);
        }
        drop(many);
        assert_eq!((listed(), live_areas()), (before.clone(), areas));
    }
    let none: [PercpuCounter; 0] = PercpuCounter::new_many(1).unwrap();
    PercpuCounter::destroy_many(none);
}

#[test]
fn more_counters_than_fit_an_area_are_refused() {
    let _system = system();
    let (before, areas) = (listed(), live_areas());
    let fit = PercpuCounters::new(8192, 0).unwrap();
    fit[8191].set(5);
    assert_eq!(fit[8191].sum(), 5);
    drop(fit);
    assert_eq!(PercpuCounters::new(8193, 0).unwrap_err(), AllocError::Size(4 * 8193));
    assert!(matches!(PercpuCounters::new(usize::MAX, 0), Err(AllocError::Size(_))));
    assert_eq!((listed(), live_areas()), (before, areas));
}

/// A second handle of a counter, as only `unsafe` code can make one.
fn stale(counter: &PercpuCounter) -> ManuallyDrop<PercpuCounter> {
    // SAFETY: not dropped but on purpose, and used only while the memory is there: another counter
    // that was made with this one lives.
    ManuallyDrop::new(unsafe { std::ptr::read(counter) })
}

fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(f)) else { return "no panic".to_owned() };
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "another panic".to_owned())
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only builds with debug assertions look")]
fn a_counter_that_was_destroyed_is_found_out_on_every_slow_way() {
    let _system = system();
    let [a, other] = PercpuCounter::new_many(0).unwrap();
    let address = a.address();
    let gone = stale(&a);
    drop(a);
    let _cpu = host::enter_any().unwrap();
    let ways: [fn(&PercpuCounter); 6] = [
        |gone| gone.add(1000),
        |gone| gone.sync(),
        |gone| gone.set(1),
        |gone| _ = gone.sum(),
        |gone| _ = gone.compare(3),
        |gone| _ = gone.limited_add(10, 1000),
    ];
    for way in ways {
        let said = panic_of(|| way(&gone));
        assert_eq!(
            said,
            format!("the percpu counter at {address:#x} is used, but it was destroyed")
        );
    }
    // Destroyed twice: nothing is touched, least of all the list or the other counter's memory.
    let said = panic_of(|| drop(ManuallyDrop::into_inner(gone)));
    assert_eq!(said, format!("the percpu counter at {address:#x} is used, but it was destroyed"));
    other.add(3);
    assert_eq!(other.sum(), 3);
    let links = view_links(address);
    assert_eq!(links, [0xdead_0000_0000_0100; 2], "its link leads nowhere");
}

/// Both links of a counter that was destroyed, and whose memory is there.
fn view_links(address: usize) -> [u64; 2] {
    // SAFETY: by the caller's word.
    let link = unsafe { std::ptr::with_exposed_provenance::<ListView>(address).read() };
    [link.next, link.prev]
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only builds with debug assertions look")]
fn a_counter_that_was_overwritten_is_found_out_when_a_cpu_dies() {
    let _system = system();
    hotplug::cpu_down(cpu(1)).unwrap();
    let counter = PercpuCounter::new(0).unwrap();
    let magic = counter.address() + std::mem::offset_of!(CounterView, magic);
    let magic = std::ptr::with_exposed_provenance_mut::<u32>(magic);
    // SAFETY: the counter lives, and nobody else uses it now. So says the test, which is the bug.
    unsafe { magic.write(0x2a) };
    let said = panic_of(|| counter::cpu_dead(cpu(1)));
    // SAFETY: as above.
    unsafe { magic.write(COUNTER_LIVE) };
    hotplug::cpu_up(cpu(1)).unwrap();
    let address = counter.address();
    assert_eq!(
        said,
        format!(
            "the percpu counter at {address:#x} is used, but it is none: something else was written \
             over it"
        )
    );
}
