//! A thread that is no CPU, and the time before set-up. What uses the calling CPU's copy panics with one
//! sentence, before anything has changed; everything else works.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::AtomicU32;

use percpu_core::alloc::{self, AllocFlags, PerCpuBox};
use percpu_core::cpu::{self, CpuId};
use percpu_core::local::{IrqCell, LocalLock, SeqStats};
use percpu_core::platform::Platform;
use percpu_core::var::{DoubleWord, RawPtr};
use percpu_core::{host, irq, percpu};

const CPUS: usize = 3;
const PAIR: DoubleWord = DoubleWord { low: 1, high: 2 };

percpu! {
    static NUMBER: PerCpu<u64> = 5;
    static FLAG: PerCpu<bool> = true;
    static POINTER: PerCpu<RawPtr<u8>> = RawPtr::null();
    static WORDS: PerCpu<DoubleWord> = PAIR;
    static CELL: PerCpu<Cell<u32>> = Cell::new(7);
    static SHARED: PerCpu<AtomicU32> = AtomicU32::new(8);
    static IN_PLACE: PerCpu<IrqCell<u32>> = IrqCell::new(9);
    static LOCK: PerCpu<LocalLock<u32>> = LocalLock::new(10);
    static STATS: PerCpu<SeqStats<2>> = SeqStats::new();
}

/// A function's name, and a call of it.
type Call = (&'static str, fn());

macro_rules! calls {
    ($($call:expr;)*) => { [$((stringify!($call), || _ = $call)),*] };
}

/// What uses this CPU's copy. None of it names a CPU, so it can be called before set-up.
const NEEDS_A_CPU: [Call; 50] = calls! {
    NUMBER.read();
    NUMBER.write(1);
    NUMBER.xchg(1);
    NUMBER.cmpxchg(5, 1);
    NUMBER.try_cmpxchg(&mut 5, 1);
    NUMBER.add(1);
    NUMBER.sub(1);
    NUMBER.inc();
    NUMBER.dec();
    NUMBER.and(1);
    NUMBER.or(2);
    NUMBER.add_return(1);
    NUMBER.sub_return(1);
    NUMBER.inc_return();
    NUMBER.dec_return();
    NUMBER.unguarded().read();
    NUMBER.unguarded().write(1);
    NUMBER.unguarded().xchg(1);
    NUMBER.unguarded().cmpxchg(5, 1);
    NUMBER.unguarded().add(1);
    NUMBER.unguarded().add_return(1);
    NUMBER.pinned(&irq::disable()).inc();
    NUMBER.pinned(&irq::disable()).xchg(1);
    NUMBER.asserted().inc();
    FLAG.read();
    FLAG.write(false);
    FLAG.xchg(false);
    FLAG.cmpxchg(true, false);
    POINTER.read();
    POINTER.write(RawPtr::new(std::ptr::dangling_mut()));
    POINTER.xchg(RawPtr::new(std::ptr::dangling_mut()));
    POINTER.cmpxchg(RawPtr::null(), RawPtr::new(std::ptr::dangling_mut()));
    WORDS.read();
    WORDS.write(DoubleWord::default());
    WORDS.xchg(DoubleWord::default());
    WORDS.cmpxchg(PAIR, DoubleWord::default());
    WORDS.try_cmpxchg(&mut { PAIR }, DoubleWord::default());
    WORDS.unguarded().write(DoubleWord::default());
    NUMBER.ptr().here();
    CELL.with_irq(&irq::disable(), |cell| cell.set(0));
    SHARED.with_irq(&irq::disable(), |shared| shared.load(std::sync::atomic::Ordering::Relaxed));
    IN_PLACE.with_mut_irq(&irq::disable(), |value| *value = 0);
    LOCK.lock();
    LOCK.try_lock();
    LOCK.lock_irqsave();
    LOCK.try_lock_irqsave();
    STATS.update(&irq::disable(), [1, 2]);
    irq::disable().cpu();
    percpu_core::preempt::disable();
    percpu_core::preempt::count();
};

fn panic_of(f: impl FnOnce()) -> Option<String> {
    let payload = catch_unwind(AssertUnwindSafe(f)).err()?;
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    Some(text.unwrap_or_else(|| *payload.downcast::<String>().unwrap()))
}

/// Boots, after a look at what happens before; the first test that comes here.
fn boot() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        all_are_refused();
        before_set_up();
        host::boot(CPUS).unwrap();
        nothing_has_changed();
    });
}

fn all_are_refused() {
    for (name, call) in NEEDS_A_CPU {
        let panic = panic_of(call);
        let text = panic.as_deref().unwrap_or("nothing");
        assert!(text.starts_with("this thread is no CPU: "), "{name}: {text}");
        assert!(!host::Host::is_pinned(), "{name} leaves interrupts masked");
    }
}

/// What needs no CPU has a typed error, or nothing to do.
fn before_set_up() {
    let global = alloc::global();
    assert_eq!(alloc::alloc_percpu(8, 8).err(), Some(alloc::AllocError::NotSetUp));
    // SAFETY: refused.
    let freed =
        [0, 8].map(|raw| unsafe { alloc::free_percpu(percpu_core::var::PerCpuPtr::from_raw(raw)) });
    assert_eq!(freed, [Ok(()), Err(alloc::FreeError::NotSetUp)]);
    let group = alloc::Group::new(1).unwrap();
    let accounted = global.alloc_accounted(8, 8, AllocFlags::ATOMIC, group);
    assert_eq!(accounted.err(), Some(alloc::AllocError::NotSetUp));
    assert_eq!(PerCpuBox::try_new_with(|_| 1).err(), Some(alloc::AllocError::NotSetUp));
    assert!(global.first_chunk().is_none() && !global.balance_wanted());
    assert_eq!(global.balance(), Default::default());
    global.drain_caches();
    global.drain_cache_of(0);
    global.for_each_chunk(|_| panic!("there is no chunk"));
    assert!(global.report().to_string().contains("not set up"));
    assert_eq!(global.statistics().live, 0);
    let unit = panic_of(|| _ = global.add_unit(0));
    assert_eq!(unit.unwrap(), "the per-CPU areas are not set up yet");
    // SAFETY: no roots.
    let scan = unsafe { global.leak_tracker().scan([], |_| ()) };
    assert_eq!(scan, Err(alloc::LeakError::NotStarted));
    assert_eq!(global.leak_tracker().sites(|_| ()), Err(alloc::LeakError::NotStarted));
    global.leak_tracker().log_early();
    global.leak_tracker().stop();
    global.leak_tracker().start().unwrap();
    global.leak_tracker().stop();
    assert_eq!(STATS.sum(), [0, 0]);
    drop(irq::disable());
    assert_eq!(CpuId::new(0), None);
}

/// Nothing that was refused has left a trace in any copy.
fn nothing_has_changed() {
    for cpu in cpu::possible().iter() {
        assert_eq!((NUMBER.read_on(cpu), FLAG.read_on(cpu)), (5, true));
        assert!(POINTER.read_on(cpu).is_null());
        assert_eq!(SHARED.remote(cpu).load(std::sync::atomic::Ordering::Relaxed), 8);
        assert_eq!(STATS.snapshot(cpu), [0, 0]);
        let _cpu = host::enter_when_free(cpu).unwrap();
        assert_eq!((WORDS.read(), percpu_core::preempt::count()), (PAIR, 0));
        assert_eq!(CELL.with_irq(&irq::disable(), Cell::get), 7);
        assert_eq!(IN_PLACE.with_mut_irq(&irq::disable(), |value| *value), Ok(9));
        assert_eq!(*LOCK.lock(), 10);
    }
}

#[test]
fn what_uses_this_cpus_copy_is_refused() {
    boot();
    all_are_refused();
    nothing_has_changed();
    // The same when it has been a CPU, also while it masks interrupts.
    drop(host::enter_any().unwrap());
    all_are_refused();
    let guard = irq::disable();
    assert!(panic_of(|| STATS.update(&guard, [1, 2])).is_some());
    assert!(panic_of(|| _ = IN_PLACE.with_mut_irq(&guard, |value| *value = 0)).is_some());
    assert!(host::Host::is_pinned());
    drop(guard);
    assert!(!host::Host::is_pinned());
    nothing_has_changed();
}

#[test]
fn everything_else_works() {
    boot();
    let global = alloc::global();
    let before = global.statistics().live;
    let mut boxed = PerCpuBox::<u64>::try_new_zeroed().unwrap();
    let made = PerCpuBox::try_new_with(|cpu| vec![cpu.index()]).unwrap();
    let locks = PerCpuBox::try_new_with(|_| LocalLock::new(vec![1])).unwrap();
    let stats = PerCpuBox::<SeqStats<1>>::try_new_zeroed().unwrap();
    for cpu in cpu::possible().iter() {
        *boxed.get_mut(cpu) += 1;
        boxed.write_on(cpu, boxed.read_on(cpu) + 1);
        assert_eq!(boxed.read_on(cpu), 2);
        assert_eq!(
            (stats.try_snapshot(cpu), stats.snapshot(cpu), stats.sum()),
            (Some([0]), [0], [0])
        );
        assert!(boxed.ptr().try_on(cpu).is_some_and(|copy| copy.cast_const() == boxed.on(cpu)));
    }
    for refused in [
        panic_of(|| boxed.inc()),
        panic_of(|| _ = boxed.read()),
        panic_of(|| _ = boxed.unguarded().xchg(4)),
        panic_of(|| drop(locks.lock())),
        panic_of(|| drop(locks.lock_irqsave())),
        panic_of(|| drop(locks.try_lock())),
        panic_of(|| stats.update(&irq::disable(), [1])),
    ] {
        let text = refused.unwrap();
        assert!(text.starts_with("this thread is no CPU: "), "{text}");
        assert!(!host::Host::is_pinned());
    }
    assert!(
        cpu::possible().iter().all(|cpu| boxed.read_on(cpu) == 2 && stats.snapshot(cpu) == [0])
    );
    let group = alloc::Group::new(3).unwrap();
    for flags in [AllocFlags::NONE, AllocFlags::ATOMIC] {
        let ptrs = [global.alloc(16, 8, flags), global.alloc_accounted(16, 8, flags, group)];
        for ptr in ptrs {
            // SAFETY: nobody has it.
            unsafe { global.free(ptr.unwrap()) }.unwrap();
        }
    }
    let tracker = global.leak_tracker();
    tracker.start().unwrap();
    tracker.sites(|_| ()).unwrap();
    tracker.stop();
    global.balance();
    global.drain_caches();
    global.drain_cache_of(2);
    global.for_each_chunk(|_| ());
    assert!(!global.report().to_string().is_empty());
    global.add_unit(1).unwrap();
    alloc::register_hotplug_steps().unwrap();
    drop((boxed, made, locks, stats));
    assert_eq!(global.statistics().live, before);
}
