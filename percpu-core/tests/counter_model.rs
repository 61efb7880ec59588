//! Counters against models in numbers that do not wrap: one that knows every part, for a single
//! caller, and one that knows the sum only, for many callers and CPUs that come and go.

#[path = "common/scale.rs"]
mod scale;
#[path = "common/threads.rs"]
mod threads;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use percpu_core::counter::{self, Count, HierarchicalCounter, LazyCounter, PercpuCounter, v26};
use percpu_core::cpu::{self, CpuId};
use percpu_core::{host, hotplug};
use proptest::prelude::*;
use scale::{cases, scaled};
use threads::Done;

const CPUS: usize = 4;

/// Boots, and keeps the other tests of this program away: they change the online mask.
fn system() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(CPUS).unwrap();
    (0..CPUS).filter(|&n| !cpu::online().contains(cpu(n))).for_each(|n| {
        hotplug::cpu_up(cpu(n)).unwrap();
    });
    guard
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn local(counter: &PercpuCounter, n: usize) -> i32 {
    // SAFETY: the counter lives, and local parts are only accessed atomically.
    unsafe { counter.locals().read_on(cpu(n)) }
}

/// What a single caller does.
#[derive(Clone, Copy, Debug)]
enum Op {
    Add(i64),
    AddBatch(i64, i32),
    AddLocal(i64),
    LimitedAdd(i64, i64),
    Compare(i64),
    Set(i64),
    Sync,
    /// Takes the CPU down, or up.
    Plug,
}

fn op() -> impl Strategy<Value = Op> {
    let amount = || prop_oneof![6 => -40_i64..40, 2 => -5000_i64..5000, 1 => any::<i64>()];
    let sane = || -(1_i64 << 40)..1 << 40;
    let near = || prop_oneof![3 => -400_i64..400, 1 => sane()];
    prop_oneof![
        8 => amount().prop_map(Op::Add),
        3 => (amount(), prop_oneof![-5..60, any::<i32>()]).prop_map(|(a, b)| Op::AddBatch(a, b)),
        2 => amount().prop_map(Op::AddLocal),
        5 => (near(), prop_oneof![-50_i64..50, sane()]).prop_map(|(l, a)| Op::LimitedAdd(l, a)),
        3 => near().prop_map(Op::Compare),
        1 => near().prop_map(Op::Set),
        1 => Just(Op::Sync),
        2 => Just(Op::Plug),
    ]
}

/// A counter by the book: what Linux 6.12's does, without concurrency.
#[derive(Debug)]
struct Model {
    count: i64,
    locals: [i64; CPUS],
}

impl Model {
    fn sum(&self) -> i64 {
        self.locals.iter().fold(self.count, |sum, local| sum.wrapping_add(*local))
    }

    fn fold(&mut self, n: usize, amount: i64) {
        self.count = self.count.wrapping_add(self.locals[n]).wrapping_add(amount);
        self.locals[n] = 0;
    }

    fn add(&mut self, n: usize, amount: i64, batch: i32) {
        let new = i128::from(self.locals[n]) + i128::from(amount);
        if new.abs() >= i128::from(batch) {
            self.fold(n, amount);
        } else {
            self.locals[n] = new as i64;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(150)))]

    /// K1, K2, K4, K5: every part is what the model says after every call.
    #[test]
    fn a_single_caller_finds_every_part_as_the_model_has_it(
        initial in -1000_i64..1000, ops in proptest::collection::vec((0..CPUS, op()), 1..scaled(80)),
    ) {
        let _system = system();
        let counter = PercpuCounter::new(initial).unwrap();
        let mut model = Model { count: initial, locals: [0; CPUS] };
        for (n, op) in ops {
            if matches!(op, Op::Plug) {
                match cpu::online().contains(cpu(n)) {
                    true if n == 0 => {}
                    true => {
                        hotplug::cpu_down(cpu(n)).unwrap();
                        model.fold(n, 0);
                    }
                    false => hotplug::cpu_up(cpu(n)).unwrap(),
                }
            }
            // Where the CPU is down, the boot CPU does it.
            let n = if cpu::online().contains(cpu(n)) { n } else { 0 };
            let this = host::enter_when_free(cpu(n)).unwrap();
            match op {
                Op::Add(amount) => {
                    counter.add(amount);
                    model.add(n, amount, counter::batch());
                }
                Op::AddBatch(amount, batch) => {
                    counter.add_batch(amount, batch);
                    model.add(n, amount, batch);
                }
                Op::AddLocal(amount) => {
                    counter.add_local(amount);
                    model.add(n, amount, i32::MAX);
                }
                Op::LimitedAdd(limit, amount) => {
                    let new = i128::from(model.sum()) + i128::from(amount);
                    let fits = match amount {
                        1.. => new <= limit.into(),
                        0 => true,
                        _ => new >= limit.into(),
                    };
                    // Linux and this crate promise it for numbers far from the end of 64 bits.
                    if new.abs() < 1 << 60 && model.count.unsigned_abs() < 1 << 60 {
                        prop_assert_eq!(counter.limited_add(limit, amount), fits, "K4");
                        // It may fold or not; the sum tells whether it added, the parts are taken over.
                        let sum = model.sum().wrapping_add(if fits { amount } else { 0 });
                        prop_assert_eq!(counter.sum(), sum);
                        model.count = counter.read();
                        (0..CPUS).for_each(|n| model.locals[n] = local(&counter, n).into());
                    }
                }
                Op::Compare(rhs) => {
                    if model.count.unsigned_abs() < 1 << 60 {
                        prop_assert_eq!(counter.compare(rhs), model.sum().cmp(&rhs));
                    }
                }
                Op::Set(amount) => {
                    counter.set(amount);
                    model.count = model.count.wrapping_add(amount.wrapping_sub(model.sum()));
                }
                Op::Sync => {
                    counter.sync();
                    model.fold(n, 0);
                }
                Op::Plug => {}
            }
            drop(this);
            let locals: Vec<i64> = (0..CPUS).map(|n| local(&counter, n).into()).collect();
            prop_assert_eq!((counter.read(), &locals[..]), (model.count, &model.locals[..]));
            prop_assert_eq!(counter.sum(), model.sum(), "K1");
        }
    }
}

/// What one of many callers does, again and again, on whatever CPU it is.
#[derive(Clone, Debug)]
struct Caller {
    counter: usize,
    amount: i64,
    batch: Option<i32>,
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let amount = prop_oneof![3 => 0_i64..40, 1 => 0_i64..10_000, 1 => 0..i64::MAX >> 32];
    let batch = proptest::option::of(1..100);
    let caller = (0..KINDS, amount, batch).prop_map(|(counter, amount, batch)| Caller {
        counter,
        amount,
        batch,
    });
    proptest::collection::vec(caller, 1..12)
}

/// Counters that only grow, one of each kind.
struct Counters {
    percpu: PercpuCounter,
    of_many: [PercpuCounter; 2],
    lazy: LazyCounter,
    hierarchical: HierarchicalCounter,
    old: v26::Counter<CPUS>,
}

const KINDS: usize = 6;
const MAX_ERROR: u64 = 100;

impl Counters {
    fn new(initial: i64) -> Self {
        let old = v26::Counter::new();
        let this = host::enter_any().unwrap();
        old.add(initial);
        drop(this);
        Self {
            percpu: PercpuCounter::new(initial).unwrap(),
            of_many: PercpuCounter::new_many(initial).unwrap(),
            lazy: LazyCounter::new(initial),
            hierarchical: HierarchicalCounter::new(initial, MAX_ERROR).unwrap(),
            old,
        }
    }

    fn all(&self) -> [&dyn Count; KINDS] {
        let [a, b] = &self.of_many;
        [&self.percpu, a, b, &self.lazy, &self.hierarchical, &self.old]
    }

    fn call(&self, caller: &Caller) {
        match (caller.counter, caller.batch) {
            (0, Some(batch)) => self.percpu.add_batch(caller.amount, batch),
            (n, _) => self.all()[n].add(caller.amount),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(25)))]

    /// K1, K3, K5, K6 with many callers, for every kind of counter.
    #[test]
    fn many_callers_and_cpus_that_come_and_go_lose_nothing(
        initial in 0_i64..1000,
        callers in callers(),
        plugs in proptest::collection::vec(1..CPUS, 0..12),
    ) {
        const ROUNDS: usize = scaled(300);

        let _system = system();
        let counters = Counters::new(initial);
        let done = AtomicBool::new(false);
        let rounds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut last = [initial; KINDS];
                while !done.load(Relaxed) {
                    for (n, counter) in counters.all().into_iter().enumerate() {
                        let sum = counter.sum();
                        assert!(sum >= last[n], "K6: counter {n} fell from {} to {sum}", last[n]);
                        last[n] = sum;
                    }
                }
                last
            });
            let adders: Vec<_> = (0..2).map(|_| scope.spawn(|| {
                while rounds.fetch_add(1, Relaxed) < ROUNDS {
                    let _cpu = host::enter_any().unwrap();
                    callers.iter().for_each(|caller| counters.call(caller));
                }
            })).collect();
            let ending = Done(&done);
            for &n in &plugs {
                let down = cpu::online().contains(cpu(n));
                if down { hotplug::cpu_down(cpu(n)) } else { hotplug::cpu_up(cpu(n)) }.unwrap();
                let folded = [&counters.percpu, &counters.of_many[0], &counters.of_many[1]];
                assert!(!down || folded.iter().all(|counter| local(counter, n) == 0), "K5");
            }
            adders.into_iter().for_each(|adder| adder.join().unwrap());
            drop(ending);
            reader.join().unwrap();
        });
        let mut model = [i128::from(initial); KINDS];
        for caller in &callers {
            model[caller.counter] += i128::from(caller.amount) * ROUNDS as i128;
        }
        for (n, counter) in counters.all().into_iter().enumerate() {
            prop_assert_eq!(i128::from(counter.sum()), model[n], "K1: counter {}", n);
            prop_assert_eq!(counter.compare(model[n] as i64), std::cmp::Ordering::Equal);
        }
        // K2.
        let off = counters.percpu.read().abs_diff(counters.percpu.sum());
        let locals = (0..CPUS).map(|n| local(&counters.percpu, n).unsigned_abs());
        let bound = callers.iter().filter_map(|caller| caller.batch).fold(counter::batch(), i32::max);
        prop_assert!(locals.clone().all(|local| local < bound as u32), "K2: {:?}", locals);
        prop_assert!(off <= locals.map(u64::from).sum());
        let read = counters.hierarchical.read();
        prop_assert!(read.abs_diff(counters.hierarchical.sum()) <= MAX_ERROR);
    }
}
