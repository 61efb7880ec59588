//! Arguments at the ends of their ranges: each public function of `area` answers, with a result or with
//! an error that says what is wrong.

mod common;

use common::fake::{self, FakeHandle};
use common::two_groups;
use percpu_core::alloc::{Allocator, PerCpuBox};
use percpu_core::area::{self, AllocInfo, Config, CpuSet, FirstChunk, Method, NO_CPU, SetupError};
use percpu_core::cpu::{CpuId, NR_CPUS};
use percpu_core::percpu;
use percpu_core::var::PerCpuPtr;

percpu! {
    static WORD: PerCpu<u64> = 7;
}

/// The ends of the ranges of a `usize` and of the types that it is made into, and what is no power of
/// two or no multiple of a granule or a page.
const SIZES: [usize; 22] = [
    0,
    1,
    2,
    3,
    6,
    4095,
    4096,
    4097,
    6 << 10,
    12 << 10,
    32 << 10,
    (1 << 16) - 1,
    1 << 20,
    1 << 30,
    1 << 31,
    (1 << 32) + 2,
    1 << 50,
    1 << 62,
    1 << 63,
    usize::MAX - 4095,
    usize::MAX - 1,
    usize::MAX,
];

/// What is tried of two numbers at a time.
const PAIRS: [usize; 9] =
    [0, 1, 6, 4096, 32 << 10, (1 << 16) - 1, 1 << 30, (1 << 32) + 2, usize::MAX];

const NUMBERS: [u32; 8] =
    [0, 1, NR_CPUS as u32 - 1, NR_CPUS as u32, 1 << 16, 1 << 31, u32::MAX - 1, u32::MAX];

/// Larger than that is described, but not made.
const MOST_BYTES: usize = 512 << 10;

/// Looks at all of a description, and makes the first chunk of it if it is one. Returns whether it was.
fn use_all(fake: &FakeHandle, info: &AllocInfo, cpus: &CpuSet) -> bool {
    let (sum, upa) = (info.size_sum(), info.units_per_alloc());
    let units: usize = info.groups().map(<[u16]>::len).sum();
    assert!(!format!("{info:?}").is_empty());
    if let Err(error) = info.verify(cpus) {
        assert!(!error.to_string().is_empty());
        return false;
    }
    assert!(sum <= info.unit_size && upa * info.unit_size == info.alloc_size);
    assert!(info.groups().all(|group| !group.is_empty()) && units >= cpus.count());
    if units * info.unit_size.max(info.atom_size) > MOST_BYTES {
        return true;
    }
    let template = vec![5; info.static_size];
    let start = template.as_ptr().expose_provenance();
    // SAFETY: verified above, and the template is borrowed for longer than this call.
    let first = unsafe { FirstChunk::<fake::Fake>::embed(info, start, usize::MAX, cpus) }.unwrap();
    for number in NUMBERS.into_iter().chain(cpus.iter()) {
        let is_possible = cpus.contains(number);
        assert_eq!(first.offset(number).is_some(), is_possible);
        assert_eq!(first.unit(number).is_some(), is_possible);
        assert_eq!(first.has_memory(number), is_possible);
    }
    for address in SIZES {
        assert_eq!(first.static_variable_at(address), None);
    }
    let allocator = Allocator::new();
    allocator.init(first).unwrap();
    drop(allocator);
    let usage = fake.usage();
    assert!(usage.meta.is_empty() && usage.reserved.is_empty() && usage.pages.is_empty());
    true
}

type Field<T> = (&'static str, fn(&mut T, usize));

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_description_with_any_fields_is_made_or_refused() {
    let fields: [Field<AllocInfo>; 10] = [
        ("static_size", |info, n| info.static_size = n),
        ("reserved_size", |info, n| info.reserved_size = n),
        ("dyn_size", |info, n| info.dyn_size = n),
        ("unit_size", |info, n| info.unit_size = n),
        ("atom_size", |info, n| info.atom_size = n),
        ("alloc_size", |info, n| info.alloc_size = n),
        ("nr_groups", |info, n| info.nr_groups = n),
        ("group_units[0]", |info, n| info.group_units[0] = n as u16),
        ("group_units[1]", |info, n| info.group_units[1] = n as u16),
        ("cpu_map[1]", |info, n| info.cpu_map[1] = n as u16),
    ];
    let fake = fake::install();
    let cpus = CpuSet::new(0..4).unwrap();
    let config = Config { distance: two_groups, ..Config::default() };
    let good = AllocInfo::build(1000, &config, &cpus).unwrap();
    assert!(use_all(&fake, &good, &cpus));
    let mut made = 0;
    for (_, change) in &fields {
        for size in SIZES {
            let mut info = good.clone();
            change(&mut info, size);
            made += u32::from(use_all(&fake, &info, &cpus));
        }
    }
    for (n, (_, first)) in fields.iter().enumerate() {
        for (_, second) in &fields[n + 1..] {
            for (a, b) in PAIRS.iter().flat_map(|&a| PAIRS.map(|b| (a, b))) {
                let mut info = good.clone();
                first(&mut info, a);
                second(&mut info, b);
                made += u32::from(use_all(&fake, &info, &cpus));
            }
        }
    }
    assert!(made > 50, "{made} are descriptions");
    let full = AllocInfo { group_units: [u16::MAX; NR_CPUS], nr_groups: NR_CPUS, ..good.clone() };
    assert!(!use_all(&fake, &full, &cpus));
    assert!(!use_all(&fake, &good, &CpuSet::new([]).unwrap()));
    assert!(!use_all(&fake, &good, &CpuSet::new(0..NR_CPUS as u32).unwrap()));
}

/// A change to a description, the rule that it breaks, and the units of an allocation then.
type Row = (fn(&mut AllocInfo), SetupError, usize);

#[test]
fn a_description_out_of_range_is_named() {
    let cpus = CpuSet::new(0..4).unwrap();
    let good = AllocInfo::build(1000, &Config::default(), &cpus).unwrap();
    let unit = good.unit_size;
    let with = |change: fn(&mut AllocInfo)| {
        let mut info = good.clone();
        change(&mut info);
        (info.verify(&cpus).unwrap_err(), info.units_per_alloc())
    };
    let sum = SetupError::UnitBelowSum { unit_size: unit, size_sum: usize::MAX };
    let rows: [Row; 13] = [
        (|i| i.nr_groups = 5000, SetupError::TooManyGroups(5000), 1),
        (|i| i.nr_groups = usize::MAX, SetupError::TooManyGroups(usize::MAX), 1),
        (|i| i.nr_groups = 0, SetupError::CpuWithoutUnit(0), 1),
        (|i| i.nr_groups = 2, SetupError::GroupWithoutUnit(1), 1),
        (|i| i.group_units[0] = 65535, SetupError::TooManyUnits(65535), 1),
        (|i| i.group_units[0] = 0, SetupError::GroupWithoutUnit(0), 1),
        (|i| i.alloc_size = 0, SetupError::AllocSize(0), 0),
        (|i| i.alloc_size = 1, SetupError::AllocSize(1), 0),
        (|i| i.alloc_size += 4096, SetupError::AllocSize(36 << 10), 1),
        (|i| i.alloc_size <<= 20, SetupError::AllocSize(32 << 30), 1 << 20),
        (|i| i.atom_size = 1 << 30, SetupError::AllocSize(32 << 10), 1),
        (|i| i.unit_size = 0, SetupError::UnitTooSmall(0), 0),
        (|i| i.static_size = usize::MAX, sum, 1),
    ];
    for (n, (change, error, upa)) in rows.into_iter().enumerate() {
        assert_eq!(with(change), (error, upa), "row {n}");
    }
    // What may be larger: an allocation of more units than there are CPUs.
    let mut info = good.clone();
    info.alloc_size = 8 * unit;
    assert_eq!(info.verify(&cpus), Ok(()));
}

/// The fields of a configuration that are numbers.
const CONFIG: [Field<Config>; 5] = [
    ("reserved_size", |config, n| config.reserved_size = n),
    ("dyn_size", |config, n| config.dyn_size = n),
    ("atom_size", |config, n| config.atom_size = n),
    ("mapping_space", |config, n| config.mapping_space = n),
    ("boot_cpu", |config, n| config.boot_cpu = Some(n as u32)),
];

fn describe(fake: &FakeHandle, config: &Config, cpus: &CpuSet) {
    let with_unit = config.units_at_set_up(cpus);
    assert_eq!(with_unit.is_ok(), cpus.contains(config.boot_cpu.unwrap_or(0)));
    assert!(config.span_limit() <= config.mapping_space);
    for config in [*config, config.by_page()] {
        if let Ok(info) = AllocInfo::build(1000, &config, cpus) {
            let right =
                config.atom_size.is_power_of_two() && config.reserved_size.is_multiple_of(4);
            assert_eq!(use_all(fake, &info, cpus), right, "{config:?}: {:?}", info.verify(cpus));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_configuration_with_any_numbers_is_described_or_refused() {
    let fake = fake::install();
    let sets = [0..1, 0..7].map(|cpus| CpuSet::new(cpus).unwrap());
    for (n, (_, first)) in CONFIG.iter().enumerate() {
        for (_, second) in &CONFIG[n..] {
            for (a, b) in PAIRS.iter().flat_map(|&a| PAIRS.map(|b| (a, b))) {
                let mut config = Config { distance: two_groups, ..Config::default() };
                first(&mut config, a);
                second(&mut config, b);
                sets.iter().for_each(|cpus| describe(&fake, &config, cpus));
            }
        }
        for size in SIZES {
            let mut config = Config { distance: two_groups, ..Config::default() };
            first(&mut config, size);
            sets.iter().for_each(|cpus| describe(&fake, &config, cpus));
        }
    }
    for size in SIZES {
        let built = AllocInfo::build(size, &Config::default(), &sets[1]);
        assert_eq!(built.is_ok(), size < 1 << 30, "{size:#x}");
        built.into_iter().for_each(|info| assert!(use_all(&fake, &info, &sets[1])));
    }
}

#[test]
fn a_set_of_cpus_has_what_is_in_range() {
    for n in NUMBERS {
        let set = CpuSet::new([0, n]);
        match set {
            Ok(set) => {
                assert!(n < NR_CPUS as u32 && set.contains(n));
                assert_eq!(set.iter().last(), Some(n));
                assert!(NUMBERS.iter().all(|&m| set.contains(m) == (m == 0 || m == n)));
            }
            Err(error) => {
                assert_eq!(error, SetupError::CpuOutOfRange(n));
                assert!(n >= NR_CPUS as u32);
            }
        }
    }
    assert_eq!(CpuSet::new(0..u32::MAX).unwrap_err(), SetupError::CpuOutOfRange(NR_CPUS as u32));
    assert!(u32::from(NO_CPU) >= NR_CPUS as u32);
}

#[test]
fn the_programs_areas_answer_for_any_address() {
    let set_up = |possible: std::ops::Range<u32>, config: &Config| {
        // SAFETY: this test alone sets areas up, and no CPU runs and no per-CPU variable was used.
        unsafe { area::setup_per_cpu_areas(possible, config) }
    };
    for (name, change) in CONFIG {
        for size in SIZES {
            let mut config = Config { method: Method::Embed, ..Config::default() };
            change(&mut config, size);
            // One that is refused, whatever the field: CPU 3 has been asked for and is not possible.
            config.boot_cpu = config.boot_cpu.filter(|&cpu| cpu >= 3).or(Some(3));
            let refused = set_up(0..3, &config);
            assert_eq!(refused, Err(SetupError::BootCpu(config.boot_cpu.unwrap())), "{name}");
            config.boot_cpu = Some(0);
            config.mapping_space = config.mapping_space.min(1 << 16);
            assert!(set_up(0..3, &config).is_err(), "{name} = {size:#x}");
        }
    }
    assert_eq!(set_up(0..u32::MAX, &Config::default()), Err(SetupError::CpuOutOfRange(1024)));
    assert_eq!(set_up(0..0, &Config::default()), Err(SetupError::NoCpu));
    assert!(!area::is_set_up());

    let config = Config {
        units_on_demand: true,
        mapping_space: usize::MAX,
        boot_cpu: Some(NR_CPUS as u32 - 1),
        ..Config::default()
    };
    set_up(0..NR_CPUS as u32, &config).unwrap();
    let (boot, other) = (CpuId::new(NR_CPUS - 1).unwrap(), CpuId::new(0).unwrap());
    for n in SIZES {
        assert_eq!(CpuId::new(n).is_some(), n < NR_CPUS);
        assert_eq!(area::is_static_percpu_address(n), None);
        let pointer = PerCpuPtr::<u64>::from_raw(n);
        assert_eq!(area::phys_addr(pointer, boot), None, "a process is not told");
        assert_eq!((area::phys_addr(pointer, other), pointer.try_on(other)), (None, None));
    }
    let at = WORD.on(boot).addr();
    assert_eq!(area::is_static_percpu_address(at).unwrap().0, boot);
    assert_eq!(area::try_offset(other), None);
    area::add_unit(other).unwrap();
    area::add_unit(other).unwrap();
    assert_eq!(area::try_offset(other), Some(area::offset(other)));
    assert_eq!(WORD.read_on(other), 7);
    let hits = PerCpuBox::<u64>::try_new_zeroed().unwrap();
    assert_eq!(hits.read_on(other), 0);
}
