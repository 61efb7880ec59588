//! A program whose groups of CPUs lie too far apart to be embedded: its first chunk is made page by
//! page instead.

use percpu_core::alloc;
use percpu_core::area::{self, Config, Method, SetupError};
use percpu_core::cpu::{self, CpuId};
use percpu_core::percpu;
use percpu_core::view::AreasView;

percpu! {
    static FIRST: PerCpu<u64> = 11;
}

#[test]
fn what_cannot_be_embedded_is_made_by_page() {
    // A unit alone is more than is permitted.
    let config = Config {
        atom_size: 1 << 20,
        mapping_space: 1 << 16,
        boot_cpu: Some(3),
        units_on_demand: true,
        ..Config::default()
    };
    let embed = Config { method: Method::Embed, ..config };
    // SAFETY: no CPU runs, and nobody has used a per-CPU variable of this program.
    let refused = unsafe { area::setup_per_cpu_areas(0..4, &embed) };
    assert!(matches!(refused, Err(SetupError::SpanTooWide { limit: 49152, .. })), "{refused:?}");
    // SAFETY: as above.
    unsafe { area::setup_per_cpu_areas(0..4, &config) }.unwrap();

    // SAFETY: the view's address, and nobody changes the areas.
    let view =
        unsafe { std::ptr::with_exposed_provenance::<AreasView>(area::view_address()).read() };
    assert!(view.unit_size < 1 << 20, "units are no larger than they must be");
    assert_eq!(cpu::booted_once().iter().map(CpuId::index).collect::<Vec<_>>(), [3]);
    for cpu in [1, 0, 2].map(|n| CpuId::new(n).unwrap()) {
        area::add_unit(cpu).unwrap();
        assert_eq!(FIRST.read_on(cpu), 11);
        let unit = view.template.wrapping_add(area::offset(cpu) as u64);
        assert_eq!(unit, view.base + cpu.index() as u64 * view.unit_size, "one range for all");
    }
    let area = alloc::alloc_percpu(32 << 10, 8).unwrap();
    for cpu in cpu::possible().iter() {
        // SAFETY: the area is live and this test's own.
        assert_eq!(unsafe { area.on(cpu).add(32767).read() }, 0);
    }
    // SAFETY: not used any more.
    unsafe { alloc::free_percpu(area) }.unwrap();
}
