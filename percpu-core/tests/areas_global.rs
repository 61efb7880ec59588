//! The program's own areas, with holes among the possible CPUs: set up once, by this program only.

use std::panic::catch_unwind;
use std::sync::Once;

use percpu_core::alloc::{self, AllocFlags, FreeError};
use percpu_core::area::{self, Config, Method, SetupError};
use percpu_core::cpu::{self, CpuId};
use percpu_core::percpu;
use percpu_core::view::{AreasView, PAGE};

const POSSIBLE: [u32; 4] = [0, 2, 3, 7];

percpu! {
    static FIRST: PerCpu<u64> = 11;
    #[page_aligned]
    static LAST: PerCpu<[u8; 3]> = [1, 2, 3];
}

fn set_up() -> Result<(), SetupError> {
    let config = Config { reserved_size: 512, ..Config::default() };
    // SAFETY: nobody has used a per-CPU variable of this program, and no CPU runs.
    unsafe { area::setup_per_cpu_areas(POSSIBLE.into_iter(), &config) }
}

fn once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        assert!(!area::is_set_up());
        assert!(CpuId::new(0).is_none());
        assert_eq!(area::is_static_percpu_address(area::view_address()), None);
        // A set-up that fails leaves everything as it was.
        let bad = Config { reserved_size: 6, ..Config::default() };
        for (config, possible, error) in [
            (bad, 4, SetupError::ReservedUnaligned(6)),
            (Config::default(), 0, SetupError::NoCpu),
            (
                Config { mapping_space: 1 << 16, method: Method::Embed, ..Config::default() },
                4,
                SetupError::SpanTooWide { span: 0, limit: 49152 },
            ),
            (Config { boot_cpu: Some(4), ..Config::default() }, 4, SetupError::BootCpu(4)),
        ] {
            // SAFETY: as in `set_up`.
            let result = unsafe { area::setup_per_cpu_areas(0..possible, &config) };
            match (result.unwrap_err(), error) {
                (
                    SetupError::SpanTooWide { limit, .. },
                    SetupError::SpanTooWide { limit: l, .. },
                ) => {
                    assert_eq!(limit, l);
                }
                (seen, expected) => assert_eq!(seen, expected),
            }
            assert!(!area::is_set_up() && cpu::possible().is_empty());
        }
        for panicking in [panic_in_distance, panic_in_possible] {
            assert!(catch_unwind(panicking).is_err());
            assert!(!area::is_set_up() && cpu::possible().is_empty());
        }
        let config = Config { distance: set_up_again, reserved_size: 6, ..Config::default() };
        // SAFETY: as in `set_up`.
        let refused = unsafe { area::setup_per_cpu_areas(0..2, &config) };
        assert_eq!(refused, Err(SetupError::ReservedUnaligned(6)));
        set_up().unwrap();
    });
}

fn panic_in_distance() {
    let config = Config { distance: |_, _| panic!("no table yet"), ..Config::default() };
    // SAFETY: as in `set_up`.
    let _ = unsafe { area::setup_per_cpu_areas(0..2, &config) };
}

fn panic_in_possible() {
    let possible = (0..4).inspect(|&cpu| assert!(cpu < 3, "no table yet"));
    // SAFETY: as in `set_up`.
    let _ = unsafe { area::setup_per_cpu_areas(possible, &Config::default()) };
}

/// A distance function that wants the areas before they are there.
fn set_up_again(_: u32, _: u32) -> u32 {
    assert_eq!(set_up(), Err(SetupError::AlreadySetUp));
    10
}

#[test]
fn the_possible_mask_is_frozen_to_what_was_given() {
    once();
    assert_eq!(cpu::nr_cpu_ids(), 8);
    let possible: Vec<usize> = cpu::possible().iter().map(CpuId::index).collect();
    assert_eq!(possible, [0, 2, 3, 7]);
    assert!(CpuId::new(1).is_none() && CpuId::new(8).is_none());
}

#[test]
fn a_second_set_up_is_refused_and_changes_nothing() {
    once();
    let offsets = || cpu::possible().iter().map(area::offset).collect::<Vec<_>>();
    let before = offsets();
    assert_eq!(set_up(), Err(SetupError::AlreadySetUp));
    assert_eq!(offsets(), before);
    assert!(area::is_set_up());
}

#[test]
fn the_view_shows_the_areas() {
    once();
    // SAFETY: the view's address, and nobody changes the areas any more.
    let view =
        unsafe { std::ptr::with_exposed_provenance::<AreasView>(area::view_address()).read() };
    assert_eq!(view.template % u64::from(PAGE), 0);
    assert_eq!(view.reserved_size, 512);
    let parts = view.static_size + view.reserved_size + view.dynamic_size;
    assert!(parts.is_multiple_of(4096) && parts <= view.unit_size);
    for cpu in cpu::possible().iter() {
        let at = std::ptr::with_exposed_provenance::<u64>(view.offset as usize);
        // SAFETY: the table has an entry for each CPU below `nr_cpu_ids`.
        let offset = unsafe { at.add(cpu.index()).read() };
        assert_eq!(offset as usize, area::offset(cpu));
        let unit = view.template.wrapping_add(offset);
        assert!(unit >= view.base && (unit - view.base).is_multiple_of(view.unit_size));
    }
}

#[test]
fn static_addresses_are_known_by_cpu_and_offset() {
    once();
    // SAFETY: the view's address, and nobody changes the areas any more.
    let view =
        unsafe { std::ptr::with_exposed_provenance::<AreasView>(area::view_address()).read() };
    for cpu in cpu::possible().iter() {
        for (address, offset) in [
            (FIRST.on(cpu).addr(), FIRST.ptr().raw() - view.template as usize),
            (LAST.on(cpu).addr() + 2, LAST.ptr().raw() + 2 - view.template as usize),
        ] {
            assert_eq!(area::is_static_percpu_address(address), Some((cpu, offset)));
        }
        assert_eq!(FIRST.read_on(cpu), 11);
    }
    assert_eq!(area::is_static_percpu_address(FIRST.ptr().raw()), None, "the template is no copy");
    let dynamic = alloc::alloc_percpu(8, 8).unwrap();
    let cpu = CpuId::new(7).unwrap();
    assert_eq!(area::is_static_percpu_address(dynamic.on(cpu).addr()), None);
    assert_eq!(area::phys_addr(dynamic, cpu), None, "a process is not told");
    // SAFETY: just allocated, and not used.
    unsafe { alloc::free_percpu(dynamic) }.unwrap();
}

#[test]
fn dynamic_memory_is_there_on_every_possible_cpu() {
    once();
    let plain = alloc::alloc_percpu(100, 64).unwrap();
    let module = alloc::global().alloc(64, 8, AllocFlags::RESERVED).unwrap();
    for ptr in [plain, module] {
        for cpu in cpu::possible().iter() {
            let copy = ptr.on(cpu);
            // SAFETY: the area is live and this test's own.
            unsafe {
                assert!((0..64).all(|i| copy.add(i).read() == 0));
                copy.write_bytes(cpu.index() as u8 + 1, 64);
            }
        }
        for cpu in cpu::possible().iter() {
            // SAFETY: as above.
            assert_eq!(unsafe { ptr.on(cpu).add(63).read() }, cpu.index() as u8 + 1);
        }
        // SAFETY: nobody uses the area any more; the second call is to be refused.
        unsafe {
            alloc::free_percpu(ptr).unwrap();
            assert_eq!(alloc::free_percpu(ptr), Err(FreeError::NotLive(ptr.raw())));
        }
    }
    // SAFETY: to be refused: static variables are not the allocator's.
    let refused = unsafe { alloc::free_percpu(FIRST.ptr().cast()) };
    assert_eq!(refused, Err(FreeError::Static(FIRST.ptr().raw())));
}
