//! Static per-CPU variables, the `this_cpu` operations and the guards, through the public API.

#[path = "common/scale.rs"]
mod scale;

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use percpu_core::cpu::{self, CpuId};
use percpu_core::var::{DoubleWord, RawPtr};
use percpu_core::{area, host, irq, percpu, preempt};
use scale::scaled;

const CPUS: usize = 4;

fn cpu(n: usize) -> CpuId {
    host::boot(CPUS).unwrap();
    CpuId::new(n).unwrap()
}

#[test]
fn worked_example_one_cpu_changes_only_its_own_copy() {
    percpu! {
        static A: PerCpu<u32> = 1;
        static B: PerCpu<u32> = 1;
    }
    let (zero, one) = (cpu(0), cpu(1));
    {
        let _cpu = host::enter_when_free(one).unwrap();
        A.add(1);
        assert_eq!((A.read(), B.read()), (2, 1));
    }
    {
        let _cpu = host::enter_when_free(zero).unwrap();
        assert_eq!((A.read(), B.read()), (1, 1));
    }
    let by_hand = |address: usize, cpu: CpuId| {
        let at = address.wrapping_add(area::offset(cpu));
        // SAFETY: the copy of a static; nobody writes it now.
        unsafe { std::ptr::with_exposed_provenance::<u32>(at).read() }
    };
    for (cpu, a, b) in [(zero, 1, 1), (one, 2, 1)] {
        assert_eq!((A.read_on(cpu), B.read_on(cpu)), (a, b));
        assert_eq!((by_hand(A.ptr().raw(), cpu), by_hand(B.ptr().raw(), cpu)), (a, b));
    }
}

#[test]
fn every_possible_cpu_starts_with_the_initial_value() {
    percpu! {
        static WORDS: PerCpu<[u32; 3]> = [7, 8, 9];
    }
    for n in 0..CPUS {
        // SAFETY: nobody writes the copy.
        assert_eq!(unsafe { WORDS.on(cpu(n)).read() }, [7, 8, 9]);
    }
}

#[test]
fn a_variable_is_as_aligned_in_each_unit_as_its_kind_says() {
    percpu! {
        static PLAIN: PerCpu<u8> = 1;
        #[shared_aligned]
        static LINE: PerCpu<u8> = 2;
        static AFTER_LINE: PerCpu<u8> = 3;
        /// Documented, and
        #[allow(dead_code)]
        #[page_aligned]
        pub(crate) static PAGE: PerCpu<[u8; 5]> = [4; 5];
    }
    assert_eq!(size_of_val(&LINE), 64);
    assert_eq!(size_of_val(&PAGE), 4096);
    for n in 0..CPUS {
        assert_eq!(LINE.on(cpu(n)).addr() % 64, 0);
        assert_eq!(PAGE.on(cpu(n)).addr() % 4096, 0);
        // SAFETY: nobody writes the copy.
        assert_eq!(unsafe { PAGE.on(cpu(n)).read() }, [4; 5]);
        assert_eq!(
            (PLAIN.read_on(cpu(n)), LINE.read_on(cpu(n)), AFTER_LINE.read_on(cpu(n))),
            (1, 2, 3)
        );
    }
}

/// Checks all operations against plain arithmetic, with neighbours that must not change.
macro_rules! operations {
    ($($name:ident: $ty:ident;)*) => {$(
        #[test]
        fn $name() {
            percpu! { static V: PerCpu<[$ty; 3]> = [0x55; 3]; }
            let _cpu = { cpu(0); host::enter_any().unwrap() };
            let v = percpu_core::var::PerCpuPtr::<$ty>::from_raw(V.ptr().raw() + size_of::<$ty>());
            let (one, three) = (1 as $ty, 3 as $ty);
            // SAFETY: the middle element of a static that nobody lends out.
            unsafe {
                v.write($ty::MAX);
                assert_eq!(v.read(), $ty::MAX);
                v.inc();
                assert_eq!(v.read(), $ty::MIN, "inc wraps");
                v.dec();
                assert_eq!(v.read(), $ty::MAX, "dec wraps");
                v.add(three);
                assert_eq!(v.read(), $ty::MAX.wrapping_add(three));
                v.sub(three);
                assert_eq!(v.read(), $ty::MAX);
                assert_eq!(v.add_return(three), $ty::MAX.wrapping_add(three));
                assert_eq!(v.sub_return(three), $ty::MAX);
                assert_eq!(v.inc_return(), $ty::MIN);
                assert_eq!(v.dec_return(), $ty::MAX);
                v.write(0b1100);
                v.and(0b0101);
                assert_eq!(v.read(), 0b0100);
                v.or(0b0011);
                assert_eq!(v.read(), 0b0111);
                assert_eq!(v.xchg(three), 0b0111);
                assert_eq!(v.cmpxchg(three, one), Ok(three));
                assert_eq!(v.cmpxchg(three, 0), Err(one));
                let mut old = three;
                assert!(!v.try_cmpxchg(&mut old, 0));
                assert_eq!(old, one);
                assert!(v.try_cmpxchg(&mut old, 0));
                assert_eq!(v.read(), 0);
                // SAFETY: as above.
                assert_eq!(V.on(cpu::current()).read(), [0x55, 0, 0x55], "neighbours");
            }
        }
    )*};
}

operations! {
    operations_on_u8: u8;
    operations_on_i8: i8;
    operations_on_u16: u16;
    operations_on_i16: i16;
    operations_on_u32: u32;
    operations_on_i32: i32;
    operations_on_u64: u64;
    operations_on_i64: i64;
    operations_on_usize: usize;
    operations_on_isize: isize;
}

#[test]
fn operations_on_bool() {
    percpu! { static FLAG: PerCpu<bool> = true; }
    cpu(0);
    let _cpu = host::enter_any().unwrap();
    assert!(FLAG.read());
    FLAG.write(false);
    assert!(!FLAG.xchg(true));
    assert_eq!(FLAG.cmpxchg(false, false), Err(true));
    assert_eq!(FLAG.cmpxchg(true, false), Ok(true));
    assert!(!FLAG.read_on(cpu::current()));
}

#[test]
fn operations_on_pointers() {
    percpu! { static CURRENT: PerCpu<RawPtr<u32>> = RawPtr::null(); }
    cpu(0);
    let _cpu = host::enter_any().unwrap();
    let (mut a, mut b) = (1, 2);
    let [a, b] = [&raw mut a, &raw mut b].map(RawPtr::new);
    assert!(CURRENT.read().is_null());
    CURRENT.write(a);
    assert_eq!(CURRENT.xchg(b), a);
    assert_eq!(CURRENT.cmpxchg(a, b), Err(b));
    assert_eq!(CURRENT.cmpxchg(b, a), Ok(b));
    assert_eq!(CURRENT.read_on(cpu::current()), a);
    // SAFETY: the number is alive.
    assert_eq!(unsafe { CURRENT.read().get().read() }, 1, "it can still be followed");
}

#[test]
fn operations_on_two_words() {
    const INITIAL: DoubleWord = DoubleWord { low: 1, high: u64::MAX };
    percpu! {
        static BEFORE: PerCpu<u64> = 0x55;
        static HEAD: PerCpu<[DoubleWord; 2]> = [INITIAL, INITIAL];
    }
    cpu(0);
    let _cpu = host::enter_any().unwrap();
    let head = percpu_core::var::PerCpuPtr::<DoubleWord>::from_raw(HEAD.ptr().raw());
    let new = DoubleWord { low: 2, high: 3 };
    // SAFETY: the first element of a static that nobody lends out.
    unsafe {
        assert_eq!(head.read(), INITIAL);
        // One word equal is not enough.
        for half in [DoubleWord { low: 1, high: 0 }, DoubleWord { low: 0, high: u64::MAX }] {
            assert_eq!(head.cmpxchg(half, new), Err(INITIAL));
        }
        assert_eq!(head.cmpxchg(INITIAL, new), Ok(INITIAL));
        let mut seen = INITIAL;
        assert!(!head.try_cmpxchg(&mut seen, INITIAL));
        assert_eq!(seen, new);
        assert!(head.try_cmpxchg(&mut seen, DoubleWord { low: 4, ..new }));
        assert_eq!(head.xchg(INITIAL), DoubleWord { low: 4, high: 3 });
        head.write(new);
        assert_eq!(HEAD.on(cpu::current()).read(), [new, INITIAL], "the other one stays");
    }
    assert_eq!(BEFORE.read(), 0x55);
}

#[test]
fn operations_of_the_other_strengths_do_the_same() {
    percpu! {
        static COUNT: PerCpu<u32> = 5;
        static HEAD: PerCpu<DoubleWord> = DoubleWord { low: 0, high: 0 };
    }
    cpu(0);
    let _cpu = host::enter_any().unwrap();
    let pin = preempt::disable();
    COUNT.pinned(&pin).add(1);
    assert_eq!(COUNT.pinned(&pin).xchg(9), 6);
    COUNT.asserted().inc();
    drop(pin);
    let irq = irq::disable();
    assert_eq!(COUNT.pinned(&irq).add_return(5), 15);
    COUNT.asserted().dec();
    drop(irq);
    assert_eq!(COUNT.unguarded().cmpxchg(14, 1), Ok(14));
    COUNT.unguarded().or(6);
    assert_eq!((COUNT.unguarded().read(), COUNT.read()), (7, 7));
    HEAD.unguarded().write(DoubleWord { low: 1, high: 2 });
    assert_eq!(HEAD.read(), DoubleWord { low: 1, high: 2 });
}

#[cfg(debug_assertions)]
#[test]
fn asserted_finds_a_thread_that_may_be_moved() {
    percpu! { static COUNT: PerCpu<u32> = 0; }
    cpu(0);
    let panic = std::thread::spawn(|| {
        let _cpu = host::enter_any().unwrap();
        COUNT.asserted().inc();
    });
    let panic = panic.join().unwrap_err();
    let message = panic.downcast_ref::<&str>().unwrap();
    assert!(message.contains("may be moved to another CPU"), "{message}");
}

/// Statics of a kind lie next to each other, whatever was declared in between.
#[cfg(not(any(miri, feature = "up")))]
#[test]
fn hot_and_read_mostly_variables_lie_together() {
    percpu! {
        #[hot]
        static HOT_1: PerCpu<u64> = 1;
        #[read_mostly]
        static SELDOM_1: PerCpu<u64> = 2;
        static PLAIN_1: PerCpu<[u64; 100]> = [3; 100];
        /// Documented, too.
        #[hot]
        pub(crate) static HOT_2: PerCpu<u64> = 4;
        #[read_mostly]
        static SELDOM_2: PerCpu<u64> = 5;
    }
    let near = |a: usize, b: usize| a.abs_diff(b) <= 64;
    assert!(near(HOT_1.ptr().raw(), HOT_2.ptr().raw()));
    assert!(near(SELDOM_1.ptr().raw(), SELDOM_2.ptr().raw()));
    assert!(!near(HOT_1.ptr().raw(), PLAIN_1.ptr().raw()));
    let template = percpu_core::var::template();
    for n in 0..CPUS {
        let cpu = cpu(n);
        let values = [&HOT_1, &HOT_2].map(|hot| hot.read_on(cpu));
        assert_eq!(values, [1, 4]);
        assert_eq!([SELDOM_1.read_on(cpu), SELDOM_2.read_on(cpu)], [2, 5]);
        for raw in [HOT_1.ptr().raw(), SELDOM_2.ptr().raw(), PLAIN_1.ptr().raw()] {
            assert!(template.contains(&raw));
        }
    }
}

/// What another part of the program defines is used by its symbol.
#[cfg(not(miri))]
#[test]
fn a_variable_is_declared_by_its_symbol() {
    mod elsewhere {
        percpu_core::percpu! {
            #[unsafe(export_name = "percpu_test_ticks")]
            pub static DEFINED: PerCpu<u64> = 3;
        }
    }
    percpu! {
        // SAFETY: the symbol is that of the variable above.
        unsafe extern "C" {
            /// Documented.
            #[link_name = "percpu_test_ticks"]
            pub(crate) static TICKS: PerCpu<u64>;
        }
        static AFTER: PerCpu<u64> = 1;
    }
    cpu(0);
    let _cpu = host::enter_any().unwrap();
    TICKS.inc();
    assert_eq!((elsewhere::DEFINED.read(), AFTER.read()), (4, 1));
    assert_eq!(elsewhere::DEFINED.ptr(), TICKS.ptr());
}

#[test]
fn concurrent_cpus_do_not_disturb_each_other() {
    percpu! { static COUNT: PerCpu<u64> = 0; }
    let rounds = scaled(200_000) as u64;
    cpu(0);
    host::on_each_cpu(|_| (0..rounds).for_each(|_| COUNT.inc()));
    for n in 0..CPUS {
        assert_eq!(COUNT.read_on(cpu(n)), rounds);
    }
}

#[test]
fn a_thread_that_is_no_cpu_cannot_use_per_cpu_data() {
    percpu! { static X: PerCpu<u32> = 0; }
    cpu(0);
    let panic = std::thread::spawn(|| X.inc()).join().unwrap_err();
    let message = panic.downcast_ref::<&str>().unwrap();
    assert!(message.contains("this thread is no CPU"), "{message}");
    assert_eq!(X.read_on(cpu(0)), 0);
    // A child inherits its parent's GS base, but is no CPU for that.
    let _cpu = host::enter_any().unwrap();
    assert!(std::thread::spawn(|| X.inc()).join().is_err());
    assert_eq!(X.read(), 0);
}

#[test]
fn with_lends_this_cpus_copy() {
    percpu! { static HITS: PerCpu<AtomicU64> = AtomicU64::new(5); }
    cpu(0);
    let numbers = host::on_each_cpu(|cpu| {
        let pin = preempt::disable();
        assert_eq!(pin.cpu(), cpu);
        HITS.with(&pin, |hits| hits.fetch_add(cpu.index() as u64, Relaxed));
        cpu.index()
    });
    assert_eq!(numbers, [0, 1, 2, 3]);
    for n in 0..CPUS {
        assert_eq!(HITS.remote(cpu(n)).load(Relaxed), 5 + n as u64);
    }
}

#[test]
fn with_irq_lends_what_is_not_sync() {
    percpu! {
        static CELL: PerCpu<Cell<u32>> = Cell::new(1);
        static LIST: PerCpu<RefCell<[u32; 2]>> = RefCell::new([0; 2]);
    }
    cpu(0);
    let _cpu = host::enter_any().unwrap();
    let irq = irq::disable();
    CELL.with_irq(&irq, |cell| cell.set(cell.get() + 1));
    assert_eq!(CELL.with_irq(&irq, Cell::get), 2);
    LIST.with_irq(&irq, |list| {
        let _first = list.borrow_mut();
        // Nesting gives a second shared reference, never a second exclusive one.
        LIST.with_irq(&irq, |again| assert!(again.try_borrow_mut().is_err()));
    });
}

#[test]
fn the_last_guard_reschedules_if_that_is_wanted() {
    cpu(0);
    let _cpu = host::enter_any().unwrap();
    assert_eq!((preempt::count(), preempt::need_resched()), (0, false));
    let outer = preempt::disable();
    let inner = preempt::disable();
    assert_eq!(preempt::count(), 2);
    preempt::set_need_resched();
    assert_eq!((preempt::count(), preempt::need_resched()), (2, true));
    drop(inner);
    assert!(preempt::need_resched(), "one guard is left");
    drop(outer);
    assert_eq!((preempt::count(), preempt::need_resched()), (0, false), "the platform rescheduled");

    let guard = preempt::disable();
    preempt::set_need_resched();
    preempt::clear_need_resched();
    preempt::set_need_resched();
    guard.release_no_resched();
    assert_eq!((preempt::count(), preempt::need_resched()), (0, true), "left to the caller");
    preempt::clear_need_resched();

    let irq = irq::disable();
    let guard = preempt::disable();
    preempt::set_need_resched();
    drop(guard);
    assert!(preempt::need_resched(), "not with interrupts masked");
    drop(irq);
    drop(preempt::disable());
    assert!(!preempt::need_resched());
}

#[test]
fn a_forgotten_guard_can_be_adopted() {
    cpu(0);
    let _cpu = host::enter_any().unwrap();
    std::mem::forget(preempt::disable());
    assert_eq!(preempt::count(), 1);
    // SAFETY: of the guard just forgotten.
    drop(unsafe { preempt::PreemptGuard::adopt() });
    assert_eq!(preempt::count(), 0);
}

#[test]
fn irq_guards_may_be_dropped_in_any_order() {
    percpu! { static DEPTH: PerCpu<AtomicU32> = AtomicU32::new(0); }
    cpu(0);
    let entered = host::enter_any().unwrap();
    let (first, second) = (irq::disable(), irq::disable());
    drop(first);
    DEPTH.remote(second.cpu()).fetch_add(1, Relaxed);
    assert_eq!(second.cpu(), entered.cpu());
    drop(second);
    // Leaving checks that nothing is masked.
    drop(entered);
}
