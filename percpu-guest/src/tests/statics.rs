//! Static per-CPU variables.

use percpu_core::cpu::CpuId;
use percpu_core::var::{DoubleWord, RawPtr};
use percpu_core::{area, percpu, preempt};

use percpu_guest::kernel::testing::run_on;

percpu! {
    static A: PerCpu<u32> = 1;
    static B: PerCpu<u32> = 1;
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("a possible CPU")
}

/// The copy of CPU `n`, by the address computed by hand.
fn by_hand(template: usize, n: usize) -> u32 {
    let address = template.wrapping_add(area::offset(cpu(n)));
    // SAFETY: the address is that CPU's copy, by the rule of addressing; nobody writes now.
    unsafe { core::ptr::with_exposed_provenance::<u32>(address).read_volatile() }
}

/// `a` and `b` are 1 everywhere; CPU 1 adds 1 to `a`: CPU 0 has 1 and 1, CPU 1 has 2 and 1.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn worked_example() {
    run_on(1, || A.add(1));
    assert_eq!((A.read_on(cpu(0)), B.read_on(cpu(0))), (1, 1));
    assert_eq!((A.read_on(cpu(1)), B.read_on(cpu(1))), (2, 1));
    assert_eq!((by_hand(A.ptr().raw(), 0), by_hand(B.ptr().raw(), 0)), (1, 1));
    assert_eq!((by_hand(A.ptr().raw(), 1), by_hand(B.ptr().raw(), 1)), (2, 1));
    run_on(0, || assert_eq!((A.read(), B.read()), (1, 1)));
    run_on(1, || assert_eq!((A.read(), B.read()), (2, 1)));
}

#[percpu_guest::test(cpus = 4, possible = 4)]
fn a_guard_keeps_the_thread_on_its_cpu() {
    for _ in 0..200 {
        let pin = preempt::disable();
        let here = pin.cpu();
        for _ in 0..50 {
            assert_eq!(percpu_core::cpu::this_cpu_raw() as usize, here.index());
        }
        drop(pin);
        percpu_guest::kernel::sched::yield_now();
    }
}

percpu! {
    #[hot]
    static HOT: PerCpu<u16> = 7;
    #[page_aligned]
    static PAGE: PerCpu<u8> = 1;
    static POINTER: PerCpu<RawPtr<u32>> = RawPtr::null();
    static PAIR: PerCpu<DoubleWord> = DoubleWord { low: 1, high: 2 };
}

/// Each CPU has its own copy of words of every kind and place.
#[percpu_guest::test(cpus = 2, possible = 2)]
fn words_of_every_kind_have_copies() {
    run_on(1, || {
        HOT.sub(8);
        let pin = preempt::disable();
        PAGE.pinned(&pin).or(6);
        POINTER.write(RawPtr::new(core::ptr::without_provenance_mut(64)));
    });
    run_on(0, || {
        assert_eq!((HOT.read(), PAGE.read()), (7, 1));
        assert!(POINTER.read().is_null());
    });
    assert_eq!((HOT.read_on(cpu(1)), PAGE.read_on(cpu(1))), (u16::MAX, 7));
    assert_eq!(POINTER.read_on(cpu(1)).get().addr(), 64);
}

#[percpu_guest::test(cpus = 2, possible = 2)]
fn two_words_change_as_one() {
    // KVM's emulator does not know the instruction.
    if percpu_guest::kernel::shared::boot().emulated == 0 {
        run_on(1, || {
            let (old, new) = (PAIR.read(), DoubleWord { low: 3, high: 4 });
            assert_eq!(PAIR.cmpxchg(old, new), Ok(old));
            assert_eq!(PAIR.cmpxchg(old, new), Err(new));
        });
        run_on(0, || assert_eq!(PAIR.read(), DoubleWord { low: 1, high: 2 }));
        run_on(1, || assert_eq!(PAIR.read(), DoubleWord { low: 3, high: 4 }));
    }
}
