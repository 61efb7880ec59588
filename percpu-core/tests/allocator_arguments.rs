//! Arguments at the ends of their ranges, for every public function of the allocator, of per-CPU pointers
//! and of local values: a typed error, the panic that the documentation names, or the right answer; and a
//! refusal changes nothing.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::fake::{NO_CACHE, use_cache_of};
use common::{Shape, World, no_room};
use percpu_core::alloc::{
    self, Accounting, AllocError, AllocFlags, FreeError, Group, MAX_ALIGN, MAX_ALLOC_SIZE,
    PerCpuBox, Zeroable, size_slot, slot_of,
};
use percpu_core::area::Config;
use percpu_core::cpu::{self, CpuId};
use percpu_core::local::{IrqCell, LocalLock, SeqStats};
use percpu_core::var::PerCpuPtr;
use percpu_core::{host, irq, percpu, preempt};

const PAGE: usize = 4096;

/// Numbers at which something may overflow, be cut off, or be taken for something else.
fn ends() -> Vec<usize> {
    let mut ends = vec![0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 100];
    for around in [PAGE, 2 * PAGE, MAX_ALLOC_SIZE, 1 << 16, 1 << 31, 1 << 32, 1 << 50, 1 << 63] {
        ends.extend([
            around - 4,
            around - 1,
            around,
            around + 1,
            around + 2,
            around + 4,
            around + 8,
        ]);
    }
    ends.extend([usize::MAX - PAGE, usize::MAX - 7, usize::MAX - 3, usize::MAX - 1, usize::MAX]);
    if cfg!(miri) {
        // All of them take minutes.
        ends = vec![0, 1, 6, 7, 8, PAGE, (1 << 32) + 2, 1 << 50, usize::MAX];
    }
    ends
}

fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let payload = catch_unwind(AssertUnwindSafe(|| drop(f()))).unwrap_err();
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.unwrap_or_else(|| *payload.downcast::<String>().unwrap())
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

/// The program's areas; one test at a time looks at what is live.
fn system() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    host::boot(3).unwrap();
    turn
}

struct Sum(AtomicI64);

impl Accounting for Sum {
    fn charge(&self, _: Group, bytes: usize) -> bool {
        self.0.fetch_add(bytes as i64, Relaxed);
        true
    }

    fn uncharge(&self, _: Group, bytes: usize) {
        self.0.fetch_sub(bytes as i64, Relaxed);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn sizes_and_alignments() {
    let kinds = [
        AllocFlags::default(),
        AllocFlags::ATOMIC,
        AllocFlags::RESERVED,
        AllocFlags::RESERVED | AllocFlags::ATOMIC,
    ];
    let config = Config { reserved_size: 1024, ..Config::default() };
    let world = World::new(&Shape { config, ..Shape::default() });
    let sum: &Sum = Box::leak(Box::new(Sum(AtomicI64::new(0))));
    world.allocator.set_accounting(sum);
    world.allocator.leak_tracker().start().unwrap();
    for tracked in [true, false] {
        for (size, align) in
            ends().into_iter().flat_map(|size| ends().into_iter().map(move |a| (size, a)))
        {
            for flags in kinds {
                let expected = if size == 0 || size > MAX_ALLOC_SIZE {
                    Some(AllocError::Size(size))
                } else if !align.is_power_of_two() || align > MAX_ALIGN {
                    Some(AllocError::Align(align))
                } else {
                    None
                };
                let group = Group::new(u32::MAX).unwrap();
                let allocator = &world.allocator;
                let plain = allocator.alloc(size, align, flags);
                let accounted = allocator.alloc_accounted(size, align, flags, group);
                for result in [plain, accounted] {
                    match (result, expected) {
                        (Ok(ptr), None) => {
                            assert!(ptr.raw().is_multiple_of(align), "{size} at {align}");
                            world.free_raw(ptr.raw()).unwrap();
                        }
                        (Err(error), None) => {
                            assert_eq!(error, no_room(flags), "{size} at {align}")
                        }
                        (result, Some(error)) => {
                            assert_eq!(result, Err(error), "{size} at {align}")
                        }
                    }
                }
                assert_eq!((sum.0.load(Relaxed), live(&world)), (0, 0), "{size} at {align}");
            }
        }
        if tracked {
            let of = world.allocator.leak_tracker().statistics();
            assert_eq!((of.areas, of.bytes, of.missed), (0, 0, 0));
            world.allocator.leak_tracker().stop();
        }
    }
    world.check();
}

fn live(world: &World) -> u64 {
    world.allocator.statistics().live
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn pointers_that_are_none() {
    let config = Config { reserved_size: 1024, ..Config::default() };
    for cache in [NO_CACHE, 1] {
        use_cache_of(cache);
        let world = World::new(&Shape { config, ..Shape::default() });
        world.allocator.leak_tracker().start().unwrap();
        let alloc = |size, flags| world.allocator.alloc(size, 4, flags).unwrap().raw();
        let areas = [
            (alloc(1, AllocFlags::NONE), 4),
            (alloc(24, AllocFlags::NONE), 24),
            (alloc(60, AllocFlags::RESERVED), 60),
            (alloc(MAX_ALLOC_SIZE, AllocFlags::NONE), MAX_ALLOC_SIZE),
            (alloc(3 * PAGE, AllocFlags::NONE), 3 * PAGE),
        ];
        let first = world.allocator.first_chunk().unwrap();
        let mut wild = ends();
        for (start, size) in areas {
            // Inside, at either edge, one past the end; and the addresses of the copies.
            for at in [1, 2, 3, 4, size / 2, size - 4, size - 1, size, size + 1, size + PAGE] {
                wild.extend([start.wrapping_add(at), start.wrapping_sub(at)]);
            }
            wild.extend([0, 1, 2].map(|cpu| start.wrapping_add(first.offset(cpu).unwrap())));
            wild.extend([1 << 31, 1 << 32, 1 << 50, 1 << 63].map(|far| start.wrapping_add(far)));
        }
        wild.extend((0..200).map(|at| world.first_static() + at));
        wild.extend([first.base() - 1, first.base(), first.base() + 4]);
        let is_area = |ptr: usize| ptr == 0 || areas.iter().any(|&(start, _)| start == ptr);
        wild.retain(|&ptr| !is_area(ptr));

        let state = || {
            let statistics = world.allocator.statistics();
            (statistics, world.allocator.leak_tracker().statistics(), world.fake.usage())
        };
        let before = state();
        for &ptr in &wild {
            let error = world.free_raw(ptr).unwrap_err();
            let named = match error {
                FreeError::Wild(named) | FreeError::Static(named) => named,
                FreeError::Interior(named) | FreeError::NotLive(named) => named,
                error => panic!("{error}"),
            };
            assert_eq!(named, ptr);
            let in_area = |&(start, size)| ptr > start && ptr < start + size;
            let is_inside = areas.iter().any(in_area);
            assert_eq!(is_inside, matches!(error, FreeError::Interior(_)), "{error}");
            assert!(!world.allocator.leak_tracker().not_leak(PerCpuPtr::<u8>::from_raw(ptr)));
        }
        assert_eq!(state(), before);
        for (start, _) in areas {
            assert!(world.allocator.leak_tracker().not_leak(PerCpuPtr::<u64>::from_raw(start)));
            world.free_raw(start).unwrap();
            assert_eq!(world.free_raw(start), Err(FreeError::NotLive(start)));
        }
        assert_eq!(world.free_raw(0), Ok(()));
        world.allocator.drain_caches();
        world.check();
        use_cache_of(NO_CACHE);
    }
}

#[test]
fn numbers_of_cpus() {
    let config = Config { units_on_demand: true, boot_cpu: Some(1), ..Config::default() };
    let mut world = World::new(&Shape { cpus: vec![1, 4], config, ..Shape::default() });
    let numbers = ends().into_iter().map(|n| n as u32).chain([1023, 1024, 1025, u32::MAX]);
    for n in numbers {
        world.allocator.drain_cache_of(n);
        if [1, 4].contains(&n) {
            world.add_unit(n).unwrap();
        } else {
            let panic = panic_of(|| world.allocator.add_unit(n));
            assert_eq!(panic, "a unit is for a possible CPU", "CPU {n}");
        }
        // The growth lock is open.
        world.allocator.balance();
        use_cache_of(n);
        let ptr = world.allocator.alloc(8, 8, AllocFlags::NONE).unwrap().raw();
        world.free_raw(ptr).unwrap();
        use_cache_of(NO_CACHE);
    }
    let first = world.allocator.first_chunk().unwrap();
    assert_eq!([0, 5, u32::MAX].map(|n| first.offset(n)), [None; 3]);
    world.allocator.drain_caches();
    world.check();
}

#[test]
fn slots_of_any_length() {
    for bytes in ends() {
        // One more for each doubling, counted without logarithms.
        let doublings = (0..usize::BITS).filter(|n| bytes >> n != 0).count() as u32;
        let slot = doublings.saturating_sub(3).max(1);
        assert_eq!(size_slot(bytes), slot, "{bytes}");
        for unit in ends() {
            let expected = match bytes {
                0 => 0,
                _ if bytes == unit => slot + 2,
                _ => slot,
            };
            assert_eq!(slot_of(bytes, unit), expected, "{bytes} of {unit}");
        }
    }
}

#[test]
fn groups_and_flags() {
    assert_eq!(Group::new(0), None);
    for n in [1, 2, 1 << 31, u32::MAX - 1, u32::MAX] {
        let group = Group::new(n).unwrap();
        assert_eq!((group.number(), group.to_string()), (n, n.to_string()));
    }
    let (atomic, reserved) = (AllocFlags::ATOMIC, AllocFlags::RESERVED);
    assert_eq!(AllocFlags::default(), AllocFlags::NONE);
    assert!((atomic | reserved).contains(atomic | reserved) && atomic.contains(AllocFlags::NONE));
    assert!(!atomic.contains(reserved) && !AllocFlags::NONE.contains(atomic));
}

#[test]
fn numbers_of_per_cpu_pointers() {
    let _system = system();
    for raw in ends() {
        let ptr = PerCpuPtr::<u64>::from_raw(raw);
        assert_eq!((ptr.raw(), ptr.cast::<[u8; 3]>().raw()), (raw, raw));
        assert_eq!(format!("{ptr:?}"), format!("percpu:{raw:#x}"));
        for cpu in cpu::possible().iter() {
            let expected = raw.wrapping_add(percpu_core::area::offset(cpu));
            assert_eq!((ptr.on(cpu).addr(), ptr.try_on(cpu).unwrap().addr()), (expected, expected));
        }
        let _cpu = host::enter_when_free(cpu(1)).unwrap();
        assert_eq!(ptr.here(), ptr.on(cpu(1)));
        assert!(!alloc::global().leak_tracker().not_leak(ptr));
    }
}

#[test]
fn indices_of_elements() {
    let _system = system();
    let words = PerCpuBox::<[u64; 7]>::try_new_zeroed().unwrap();
    let empty = PerCpuBox::<[u64; 0]>::try_new_zeroed().unwrap();
    let units = PerCpuBox::<[(); 7]>::try_new_zeroed().unwrap();
    for n in ends() {
        if n < 7 {
            assert_eq!(words.element(n).raw(), words.ptr().raw() + 8 * n);
            assert_eq!(units.element(n).raw(), units.ptr().raw());
        } else {
            assert_eq!(panic_of(|| words.element(n)), format!("element {n} of 7"));
            assert_eq!(panic_of(|| units.element(n)), format!("element {n} of 7"));
        }
        assert_eq!(panic_of(|| empty.element(n)), format!("element {n} of 0"));
    }
}

/// Asks for a page of alignment, and has no bytes.
#[repr(align(4096))]
struct Nothing;

// SAFETY: no bytes.
unsafe impl Zeroable for Nothing {}

#[test]
fn layouts_of_boxes() {
    fn zeroed<T: Zeroable + Send>() -> Result<(), AllocError> {
        let boxed = PerCpuBox::<T>::try_new_zeroed()?;
        assert!(boxed.ptr().raw().is_multiple_of(align_of::<T>()));
        for cpu in cpu::possible().iter() {
            assert!(boxed.on(cpu).is_aligned());
        }
        Ok(())
    }
    let _system = system();
    let live = || alloc::global().statistics().live;
    let before = live();
    assert_eq!(zeroed::<()>(), Ok(()));
    assert_eq!(zeroed::<Nothing>(), Ok(()));
    assert_eq!(zeroed::<[u128; 0]>(), Ok(()));
    assert_eq!(zeroed::<u8>(), Ok(()));
    assert_eq!(zeroed::<[u8; MAX_ALLOC_SIZE]>(), Ok(()));
    assert_eq!(zeroed::<[u8; MAX_ALLOC_SIZE + 1]>(), Err(AllocError::Size(MAX_ALLOC_SIZE + 1)));
    assert_eq!(zeroed::<[u8; 1 << 32]>(), Err(AllocError::Size(1 << 32)));
    assert_eq!(zeroed::<[u8; (1 << 32) + 8]>(), Err(AllocError::Size((1 << 32) + 8)));
    assert_eq!(zeroed::<[u64; 1 << 47]>(), Err(AllocError::Size(1 << 50)));
    assert_eq!(PerCpuBox::<[u8; 1 << 50]>::try_new_uninit().err(), Some(AllocError::Size(1 << 50)));
    // An initialiser is not called for what there is no room for.
    let called = PerCpuBox::try_new_with(|_| -> [u64; 1 << 13] { panic!("called") });
    assert_eq!(called.err(), Some(AllocError::Size(1 << 16)));
    let mut units = PerCpuBox::try_new_with(|_| Nothing).unwrap();
    assert!(std::ptr::from_mut(units.get_mut(cpu(2))).is_aligned());
    drop(units);
    assert_eq!(live(), before);
}

percpu! {
    static NOTHING: PerCpu<[u64; 0]> = [];
    #[page_aligned]
    static UNIT: PerCpu<[(); 4]> = [(); 4];
    static EMPTY_CELL: PerCpu<IrqCell<()>> = IrqCell::new(());
    static EMPTY_LOCK: PerCpu<LocalLock<[u64; 0]>> = LocalLock::new([]);
    static NO_NUMBERS: PerCpu<SeqStats<0>> = SeqStats::new();
    static AFTER: PerCpu<u64> = 0x5a5a;
}

/// A value that fills pages, on a page of its own.
#[repr(align(4096))]
struct Pages([u64; 1024]);

#[test]
fn values_without_bytes_and_values_of_pages() {
    let _system = system();
    let large =
        PerCpuBox::try_new_with(|cpu| IrqCell::new(Pages([cpu.index() as u64; 1024]))).unwrap();
    let locked = PerCpuBox::try_new_with(|_| LocalLock::new(Pages([7; 1024]))).unwrap();
    for n in 0..3 {
        let _cpu = host::enter_when_free(cpu(n)).unwrap();
        let pin = preempt::disable();
        assert!(std::ptr::eq(NOTHING.remote(cpu(n)), NOTHING.on(cpu(n))));
        NOTHING.with(&pin, |nothing| assert!(nothing.is_empty()));
        UNIT.with(&pin, |units| assert!(std::ptr::from_ref(units).addr().is_multiple_of(PAGE)));
        let again = EMPTY_CELL.with_mut(&pin, |()| EMPTY_CELL.with_mut(&pin, |()| ()).is_err());
        assert_eq!(again, Ok(true), "a value without bytes is in use, too");
        let guard = EMPTY_LOCK.lock();
        assert!(guard.is_empty() && EMPTY_LOCK.try_lock().is_none());
        drop(guard);
        NO_NUMBERS.update_pinned(&pin, []);
        assert_eq!((NO_NUMBERS.snapshot(cpu(n)), NO_NUMBERS.sum()), ([], []));
        assert_eq!(AFTER.read_on(cpu(n)), 0x5a5a);
        let sum = large.with_mut(&pin, |pages| {
            assert!(std::ptr::from_mut(pages).is_aligned());
            pages.0.iter().sum::<u64>()
        });
        assert_eq!(sum, Ok(1024 * n as u64));
        assert_eq!(locked.lock().0[1023], 7);
    }
}

#[test]
fn amounts_of_statistics() {
    let _system = system();
    let stats = PerCpuBox::<SeqStats<4>>::try_new_zeroed().unwrap();
    for n in 0..3 {
        let _cpu = host::enter_when_free(cpu(n)).unwrap();
        stats.update(&irq::disable(), [u64::MAX, 1 << 63, 1, 0]);
        stats.update_pinned(&preempt::disable(), [2, 1 << 63, u64::MAX, u64::MAX]);
        assert_eq!(stats.snapshot(cpu(n)), [1, 0, 0, u64::MAX]);
    }
    assert_eq!(stats.sum(), [3, 0, 0, 3_u64.wrapping_neg()]);
}

#[test]
fn ranges_of_roots_without_a_word() {
    let world = World::new(&Shape::default());
    world.allocator.leak_tracker().start().unwrap();
    let ptr = world.allocator.alloc(8, 8, AllocFlags::NONE).unwrap().raw();
    let max = usize::MAX;
    #[expect(clippy::reversed_empty_ranges, reason = "of no words")]
    let ranges = [0..0, 1..7, 5..3, 9..8, max..max, max - 3..max, max - 8..max, max..0, 8..0];
    for range in ranges {
        let visited = AtomicU64::new(0);
        let visit = |_: &_| _ = visited.fetch_add(1, Relaxed);
        // SAFETY: no aligned word lies in the range.
        let scan = unsafe { world.allocator.leak_tracker().scan([range.clone()], visit) }.unwrap();
        assert_eq!((scan.areas, visited.load(Relaxed)), (1, 1), "{range:?}");
    }
    world.free_raw(ptr).unwrap();
}
