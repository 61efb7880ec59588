//! `percpu_counter` under concurrency and hotplug, through the public API.

#[path = "common/scale.rs"]
mod scale;
#[path = "common/threads.rs"]
mod threads;

use std::cmp::Ordering;
use std::panic::catch_unwind;
use std::sync::atomic::{
    AtomicBool, AtomicI64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use percpu_core::counter::{self, PercpuCounter, v26};
use percpu_core::cpu::{self, CpuId};
use percpu_core::host;
use percpu_core::hotplug::{self, HotplugError};
use percpu_core::view::ListView;
use scale::scaled;
use threads::Done;

const CPUS: usize = 4;

/// Boots, and keeps the other tests of this program away: they change the online mask.
fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    guard
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn on<R: Send>(n: usize, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let run = || {
            let _cpu = host::enter_when_free(cpu(n)).unwrap();
            f()
        };
        scope.spawn(run).join().unwrap()
    })
}

fn local(counter: &PercpuCounter, n: usize) -> i32 {
    // SAFETY: the counter lives, and local parts are only accessed atomically.
    unsafe { counter.locals().read_on(cpu(n)) }
}

#[test]
fn worked_example_the_sum_is_the_initial_value_and_all_local_parts() {
    let _system = system();
    let counter = PercpuCounter::new(1).unwrap();
    on(0, || counter.add(2));
    on(1, || counter.add(3));
    assert_eq!((local(&counter, 0), local(&counter, 1)), (2, 3));
    assert_eq!(counter.read(), 1);
    assert_eq!(counter.sum_positive(), 6);
}

#[test]
fn an_add_folds_when_the_local_part_reaches_the_batch() {
    let _system = system();
    let counter = PercpuCounter::new(0).unwrap();
    let batch = counter::batch();
    assert_eq!(batch, 32);
    on(2, || {
        counter.add(i64::from(batch) - 1);
        assert_eq!((counter.read(), local(&counter, 2)), (0, 31));
        counter.inc();
        assert_eq!((counter.read(), local(&counter, 2)), (32, 0));
        counter.sub(31);
        assert_eq!((counter.read(), local(&counter, 2)), (32, -31));
        counter.dec();
        assert_eq!((counter.read(), local(&counter, 2)), (0, 0));
        counter.add(1_000_000_000_000);
        assert_eq!((counter.read(), local(&counter, 2)), (1_000_000_000_000, 0));
    });
}

#[test]
fn amounts_at_the_edge_of_64_bits_are_not_lost() {
    let _system = system();
    on(0, || {
        let counter = PercpuCounter::new(-5).unwrap();
        counter.add(7);
        counter.add(i64::MAX);
        assert_eq!(counter.sum(), i64::MIN + 1, "-5 + 7 + MAX wraps");
        counter.set(5);
        counter.sub(i64::MIN);
        assert_eq!(counter.sum(), i64::MIN + 5);
    });
}

#[test]
fn local_adds_do_not_fold_until_32_bits_are_full() {
    let _system = system();
    let counter = PercpuCounter::new(0).unwrap();
    on(1, || {
        counter.add_local(1000);
        counter.sub_local(1);
        assert_eq!((counter.read(), local(&counter, 1)), (0, 999));
        counter.add_local(i64::from(i32::MAX) - 1000);
        assert_eq!((counter.read(), local(&counter, 1)), (0, i32::MAX - 1));
        counter.add_local(1);
        assert_eq!((counter.read(), local(&counter, 1)), (i64::from(i32::MAX), 0));
        counter.add_batch(4, 5);
        counter.add_batch(1, 5);
        assert_eq!(local(&counter, 1), 0);
        counter.add_batch(4, 5);
        assert_eq!(local(&counter, 1), 4);
        counter.sync();
        assert_eq!(local(&counter, 1), 0);
        assert_eq!(counter.read(), i64::from(i32::MAX) + 9);
    });
}

#[test]
fn set_replaces_the_sum_and_leaves_the_local_parts() {
    let _system = system();
    let counter = PercpuCounter::new(0).unwrap();
    host::on_each_cpu(|_| counter.add(9));
    counter.set(-3);
    assert_eq!((counter.sum(), counter.read_positive(), counter.sum_positive()), (-3, 0, 0));
    assert_eq!((counter.read(), local(&counter, 1)), (-3 - 4 * 9, 9));
    for amount in [i64::MIN, i64::MAX, 0] {
        counter.set(amount);
        assert_eq!(counter.sum(), amount);
    }
}

/// An add that is under way when the counter is set is before that or after it: it does not bring
/// back what its CPU had counted before.
#[test]
fn an_add_beside_a_set_comes_before_it_or_after_it() {
    use std::sync::atomic::AtomicUsize;
    /// Adds of a round: 1, 2, 4 and so on, and then all of them less.
    const ADDS: usize = 12;

    let _system = system();
    let sets = if cfg!(miri) { 20 } else { 2_000_000 };
    let counter = PercpuCounter::new(0).unwrap();
    // The round, times 16, and how many of its adds are done.
    let progress = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    let looked = std::thread::scope(|scope| {
        scope.spawn(|| {
            let _cpu = host::enter_when_free(cpu(1)).unwrap();
            let mut round = 0;
            while !done.load(Relaxed) {
                for n in 0..ADDS {
                    counter.add_local(1 << n);
                    progress.store(round * 16 + n + 1, Release);
                }
                counter.add_local(1 - (1 << ADDS));
                round += 1;
                progress.store(round * 16, Release);
            }
        });
        let _done = Done(&done);
        let mut looked = 0;
        for _ in 0..sets {
            let before = progress.load(Acquire);
            counter.set(0);
            let sum = counter.sum();
            let same_round = progress.load(Acquire) / 16 == before / 16;
            if same_round && sum >= 0 {
                let gone = (1 << (before % 16)) - 1;
                assert_eq!(
                    sum & gone,
                    0,
                    "{} adds were done before, and {sum:#b} is there",
                    before % 16
                );
                looked += 1;
            }
        }
        looked
    });
    assert!(looked > 0 || cfg!(miri));
}

#[test]
fn compare_is_exact_near_and_far() {
    let _system = system();
    let counter = PercpuCounter::new(0).unwrap();
    host::on_each_cpu(|_| counter.add(31));
    for (rhs, expected) in [
        (123, Ordering::Greater),
        (124, Ordering::Equal),
        (125, Ordering::Less),
        (1 << 40, Ordering::Less),
        (-(1 << 40), Ordering::Greater),
        (i64::MIN, Ordering::Greater),
    ] {
        assert_eq!(counter.compare(rhs), expected, "{rhs}");
    }
    // Local parts that no batch bounds.
    host::on_each_cpu(|_| counter.add_local(1_000_000));
    assert_eq!(counter.read(), 0);
    assert_eq!(counter.compare(4_000_123), Ordering::Greater);
    assert_eq!(counter.compare(4_000_125), Ordering::Less);
}

#[test]
fn a_serial_caller_never_passes_its_limit() {
    let _system = system();
    for (limit, step) in [(500, 7), (-500, -7), (0, 1), (0, -1), (31, 31)] {
        let counter = PercpuCounter::new(0).unwrap();
        let mut expected = 0;
        for round in 0..80 {
            let added = on(round % CPUS, || counter.limited_add(limit, step));
            let fits = (expected + step).abs() <= i64::abs(limit);
            assert_eq!(added, fits, "limit {limit}, step {step}, at {expected}");
            expected += if fits { step } else { 0 };
            assert_eq!(counter.sum(), expected);
        }
        assert!(on(0, || counter.limited_add(limit, 0)));
    }
    // Local parts that no batch bounds: the shared part alone says that there is room.
    let counter = PercpuCounter::new(0).unwrap();
    on(1, || counter.add_local(1_000_000));
    on(0, || {
        assert!(!counter.limited_add(1_000_000, 1));
        assert!(counter.limited_add(1_000_001, 1));
        assert!(counter.limited_add(0, -1_000_000));
        assert!(!counter.limited_add(0, -2));
    });
    assert_eq!(counter.sum(), 1);
}

#[test]
fn the_end_of_the_number_line_is_a_limit_like_any_other() {
    let _system = system();
    on(0, || {
        let counter = PercpuCounter::new(i64::MAX - 2).unwrap();
        assert!(counter.limited_add(i64::MAX, 2));
        assert_eq!(counter.sum(), i64::MAX);
        counter.set(i64::MIN + 1);
        assert!(counter.limited_add(i64::MIN, -1));
    });
}

#[test]
fn nothing_is_lost_while_cpus_go_up_and_down() {
    let _system = system();
    let rounds = scaled(60);
    let counters: Vec<_> = (0..3).map(|n| PercpuCounter::new(n * 1000).unwrap()).collect();
    let added: Vec<_> = (0..3).map(|_| AtomicI64::new(0)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 1..4_u64 {
            let (counters, added, done) = (&counters, &added, &done);
            scope.spawn(move || {
                let mut random = seed;
                while !done.load(Relaxed) {
                    let Ok(_cpu) = host::enter_any() else { continue };
                    for _ in 0..100 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(99);
                        let which = (random >> 33) as usize % 3;
                        let amount = (random >> 40) as i64 % 41 - 20;
                        match random >> 62 {
                            0 => counters[which].add_batch(amount, 3),
                            1 => counters[which].add_local(amount),
                            _ => counters[which].add(amount),
                        }
                        added[which].fetch_add(amount, Relaxed);
                    }
                }
            });
        }
        let _done = Done(&done);
        for round in 0..rounds {
            let victim = cpu(1 + round % (CPUS - 1));
            hotplug::cpu_down(victim).unwrap();
            for counter in &counters {
                assert_eq!(local(counter, victim.index()), 0, "K5: folded in every counter");
            }
            assert!(!cpu::dying().contains(victim), "the dying bit does not stay");
            hotplug::cpu_up(victim).unwrap();
        }
    });
    for (n, (counter, added)) in counters.iter().zip(&added).enumerate() {
        assert_eq!(counter.sum(), n as i64 * 1000 + added.load(Relaxed), "K1");
    }
}

#[test]
fn a_sum_counts_a_cpu_that_is_going_down_exactly_once() {
    let _system = system();
    let rounds = scaled(60);
    let counter = PercpuCounter::new(0).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut sums, mut last) = (0, 0);
            // One sum at least, also if this thread runs first when all is over.
            loop {
                let ended = done.load(Relaxed);
                let sum = counter.sum();
                assert_eq!(sum % 17, 0, "K6: a fold was seen half-way");
                assert!(sum >= last, "K6: a CPU was missed, or counted twice before");
                last = sum;
                sums += 1;
                if sums % 64 == 0 {
                    // Do not keep the counter's lock from the one that folds.
                    std::thread::sleep(std::time::Duration::from_micros(10));
                }
                if ended {
                    break sums;
                }
            }
        });
        let ending = Done(&done);
        for round in 0..rounds {
            let victim = 1 + round % (CPUS - 1);
            on(victim, || counter.add(17));
            hotplug::cpu_down(cpu(victim)).unwrap();
            hotplug::cpu_up(cpu(victim)).unwrap();
            assert_eq!(counter.sum(), 17 * (round as i64 + 1));
        }
        drop(ending);
        assert!(reader.join().unwrap() > 0);
    });
}

#[test]
fn a_sum_is_right_at_every_step_of_a_cpus_way_down_and_up() {
    static COUNTER: Mutex<Option<PercpuCounter>> = Mutex::new(None);
    static SEEN: Mutex<Vec<(&str, i64)>> = Mutex::new(Vec::new());
    fn look(name: &'static str) {
        let sum = COUNTER.lock().unwrap().as_ref().unwrap().sum();
        SEEN.lock().unwrap().push((name, sum));
    }

    let _system = system();
    let counter = PercpuCounter::new(100).unwrap();
    on(3, || counter.add(21));
    *COUNTER.lock().unwrap() = Some(counter);
    use hotplug::Section::{Online, Prepare, Starting};
    let ids = [
        hotplug::register(Prepare, "prepare", None, Some(|_| look("dead"))),
        hotplug::register(Starting, "starting", None, Some(|_| look("dying"))),
        hotplug::register(Online, "online", None, Some(|_| look("online"))),
    ];
    hotplug::cpu_down(cpu(3)).unwrap();
    look("down");
    // A second life and death: what was folded is not folded again.
    hotplug::cpu_up(cpu(3)).unwrap();
    look("up");
    hotplug::cpu_down(cpu(3)).unwrap();
    look("down again");
    hotplug::cpu_up(cpu(3)).unwrap();
    for id in ids {
        hotplug::unregister(id.unwrap());
    }
    let seen = std::mem::take(&mut *SEEN.lock().unwrap());
    let names: Vec<_> = seen.iter().map(|s| s.0).collect();
    assert_eq!(
        names[..9],
        ["online", "dying", "dead", "down", "up", "online", "dying", "dead", "down again"]
    );
    assert!(seen.iter().all(|s| s.1 == 121), "{seen:?}");
    *COUNTER.lock().unwrap() = None;
}

#[test]
fn what_a_failed_bring_up_counted_is_folded() {
    static COUNTER: Mutex<Option<PercpuCounter>> = Mutex::new(None);
    let _system = system();
    *COUNTER.lock().unwrap() = Some(PercpuCounter::new(0).unwrap());
    let sum = || COUNTER.lock().unwrap().as_ref().unwrap().sum();
    let count = |_| {
        let counter = COUNTER.lock().unwrap();
        let counter = counter.as_ref().unwrap();
        let before = counter.sum();
        counter.add(5);
        assert_eq!(counter.sum(), before + 5, "a CPU that is starting counts");
        Ok(())
    };
    hotplug::cpu_down(cpu(2)).unwrap();
    let adds = hotplug::register(hotplug::Section::Starting, "adds", Some(count), None).unwrap();
    let fails = hotplug::register(hotplug::Section::Starting, "fails", None, None).unwrap();
    let before = sum();
    assert_eq!(before, 5 * (CPUS as i64 - 1), "registering ran it on the CPUs that are up");
    hotplug::inject_failure(fails, cpu(2));
    let error = hotplug::cpu_up(cpu(2)).unwrap_err();
    assert!(matches!(error, HotplugError::Step { name: "fails", .. }), "{error}");
    assert_eq!(sum(), before + 5);
    hotplug::unregister(fails);
    hotplug::unregister(adds);
    hotplug::cpu_up(cpu(2)).unwrap();
    *COUNTER.lock().unwrap() = None;
}

/// `cpu_dead` is safe: whenever it is called, it folds what a CPU that is down has counted or panics.
#[test]
fn a_cpu_that_may_execute_is_not_folded_from_outside() {
    let _system = system();
    let counter = PercpuCounter::new(0).unwrap();
    let refused = |n| {
        let said = catch_unwind(|| counter::cpu_dead(cpu(n))).unwrap_err();
        let said = said.downcast_ref::<String>().unwrap();
        assert!(said.starts_with(&format!("CPU {n} may be executing")), "{said}");
    };
    host::on_each_cpu(|_| counter.add(9));
    (0..CPUS).for_each(refused);
    assert_eq!((counter.read(), counter.sum()), (0, 9 * CPUS as i64));
    // One that went down is folded already, however often it is asked for.
    hotplug::cpu_down(cpu(1)).unwrap();
    (0..2).for_each(|_| counter::cpu_dead(cpu(1)));
    assert_eq!((counter.read(), counter.sum()), (9, 9 * CPUS as i64));
    hotplug::cpu_up(cpu(1)).unwrap();
    refused(1);
    on(1, || counter.add(2));
    assert_eq!(counter.sum(), 9 * CPUS as i64 + 2);
}

/// A CPU that did not arrive in time may execute something yet.
#[test]
fn a_cpu_that_was_given_up_stays_counted() {
    let _system = system();
    let counter = PercpuCounter::new(0).unwrap();
    on(2, || counter.add(9));
    hotplug::cpu_down(cpu(2)).unwrap();
    assert!(!cpu::counted().any(|it| it == cpu(2)), "folded");
    host::set_arrival_timeout(std::time::Duration::from_millis(1));
    host::inject_start_fault(cpu(2), host::StartFault::Lost);
    assert_eq!(hotplug::cpu_up(cpu(2)), Err(HotplugError::TimedOut));
    host::set_arrival_timeout(std::time::Duration::from_secs(10));
    assert!(cpu::counted().any(|it| it == cpu(2)));
    assert!(catch_unwind(|| counter::cpu_dead(cpu(2))).is_err());
    assert_eq!(counter.sum(), 9);
    hotplug::cpu_up(cpu(2)).unwrap();
    on(2, || counter.add(1));
    hotplug::cpu_down(cpu(2)).unwrap();
    assert_eq!((counter.read(), counter.sum()), (10, 10));
    hotplug::cpu_up(cpu(2)).unwrap();
}

/// Calls of `cpu_dead` at any time, while CPUs go and come and count as soon as they are there.
#[test]
fn a_fold_from_outside_beside_hotplug_loses_nothing() {
    static COUNTER: Mutex<Option<Arc<PercpuCounter>>> = Mutex::new(None);

    let _system = system();
    let rounds = if cfg!(miri) { 2 } else { 200 };
    let counter = Arc::new(PercpuCounter::new(0).unwrap());
    *COUNTER.lock().unwrap() = Some(counter.clone());
    let count = |_: CpuId| {
        let counter = COUNTER.lock().unwrap().clone().unwrap();
        (0..100).for_each(|_| counter.add_local(1));
        Ok(())
    };
    let step = hotplug::register(hotplug::Section::Starting, "counts", Some(count), None).unwrap();
    let before = counter.sum();
    let done = AtomicBool::new(false);
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let _ = catch_unwind(|| counter::cpu_dead(cpu(3)));
            }
        });
        for round in 1..=rounds {
            hotplug::cpu_down(cpu(3)).unwrap();
            hotplug::cpu_up(cpu(3)).unwrap();
            assert_eq!(counter.sum(), before + 100 * round);
        }
    });
    let _ = std::panic::take_hook();
    hotplug::unregister(step);
    *COUNTER.lock().unwrap() = None;
}

#[test]
fn the_list_holds_every_counter_once() {
    let _system = system();
    let walk = || {
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
    };
    let before = walk();
    let (a, b, c) = (PercpuCounter::new(1), PercpuCounter::new(2), PercpuCounter::new(3));
    let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
    assert_eq!(walk()[before.len()..], [a.address(), b.address(), c.address()]);
    drop(b);
    assert_eq!(walk()[before.len()..], [a.address(), c.address()]);
    drop((a, c));
    assert_eq!(walk(), before);
}

#[test]
fn the_counter_of_2_6_agrees() {
    static OLD: v26::Counter<CPUS> = v26::Counter::new();
    let _system = system();
    assert_eq!(v26::Counter::<4>::BATCH, 16);
    assert_eq!(v26::Counter::<16>::BATCH, 32);
    host::on_each_cpu(|cpu| {
        (0..1000).for_each(|n| OLD.add(n % 7 - 3));
        OLD.add(cpu.index() as i64 - 9);
    });
    // 1000 = 142 x 7 + 6: the whole weeks cancel out, the rest is -3-2-1+0+1+2.
    assert_eq!(OLD.sum(), 4 * -3 + (-9 - 8 - 7 - 6));
    assert!((OLD.read() - OLD.sum()).abs() < 4 * 16);
    let sum = OLD.sum();
    on(0, || (0..100).for_each(|_| OLD.add(-1)));
    assert_eq!(OLD.sum(), sum - 100);
    assert_eq!(OLD.read_positive(), OLD.read().max(0));
}
