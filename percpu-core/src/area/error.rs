//! Why the per-CPU areas could not be set up.

use core::fmt;

/// The rule that a set-up would have broken. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetupError {
    /// The areas are set up already, or are being set up.
    AlreadySetUp,
    /// There is no possible CPU.
    NoCpu,
    /// The boot CPU is not possible.
    BootCpu(u32),
    /// So many CPUs are possible, and this is an `up` build.
    OneCpu(usize),
    /// The crate is part of a Rust `dylib`, apart from the statics of the program that uses it.
    RustDylib,
    /// The linker has put so many bytes of something else between the per-CPU sections.
    Scattered(usize),
    /// A possible CPU has a number that is too large.
    CpuOutOfRange(u32),
    /// The atom size is not a power of two of whole pages.
    AtomSize(usize),
    /// The sizes add up to more than a unit can have.
    TooLarge,
    /// The unit size is not a multiple of the page size.
    UnitUnaligned(usize),
    /// The unit is smaller than the smallest permitted.
    UnitTooSmall(usize),
    /// The unit does not hold static, reserved and dynamic part together.
    UnitBelowSum {
        /// Bytes of the unit.
        unit_size: usize,
        /// Bytes of the parts.
        size_sum: usize,
    },
    /// The dynamic part is smaller than early boot needs.
    DynamicTooSmall(usize),
    /// The reserved size is not a multiple of the allocation granule.
    ReservedUnaligned(usize),
    /// An allocation of memory is not a multiple of the unit and of the atom, or has too many units.
    AllocSize(usize),
    /// There are more groups than there can be CPUs.
    TooManyGroups(usize),
    /// The groups have more units together than can be needed.
    TooManyUnits(usize),
    /// The group of this number has no unit.
    GroupWithoutUnit(usize),
    /// A possible CPU has no unit.
    CpuWithoutUnit(u32),
    /// A CPU has more than one unit.
    CpuWithTwoUnits(u32),
    /// A unit is that of a CPU that is not possible.
    UnitOfImpossibleCpu(u32),
    /// The groups lie too far apart.
    SpanTooWide {
        /// Bytes from the lowest unit to the end of the highest.
        span: usize,
        /// Bytes that are permitted: 75 % of the mapping space.
        limit: usize,
    },
    /// The platform has no memory or no address space left.
    NoMemory,
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AlreadySetUp => f.write_str("the per-CPU areas are set up already"),
            Self::NoCpu => f.write_str("there is no possible CPU"),
            Self::BootCpu(cpu) => write!(f, "the boot CPU, {cpu}, is not possible"),
            Self::OneCpu(cpus) => {
                write!(
                    f,
                    "{cpus} CPUs are possible, but percpu-core is built with the feature `up`"
                )
            }
            Self::RustDylib => f.write_str(
                "percpu-core is part of a Rust dylib, and cannot reach the per-CPU statics of the \
                 program: link it statically (without `-C prefer-dynamic`, from an rlib), or make the \
                 library a cdylib",
            ),
            Self::Scattered(bytes) => write!(
                f,
                "the linker has put {bytes} bytes between the per-CPU sections: place `percpu*` \
                 together in the linker script"
            ),
            Self::CpuOutOfRange(cpu) => {
                write!(
                    f,
                    "CPU {cpu} cannot be possible: numbers end at {}",
                    crate::cpu::NR_CPUS - 1
                )
            }
            Self::AtomSize(size) => {
                write!(f, "the atom size must be a power of two of at least a page, not {size}")
            }
            Self::TooLarge => f.write_str("a unit of this size would be too large"),
            Self::UnitUnaligned(size) => {
                write!(f, "the unit size must be a multiple of the page size, not {size}")
            }
            Self::UnitTooSmall(size) => {
                write!(f, "the unit size must be at least {}, not {size}", super::MIN_UNIT_SIZE)
            }
            Self::UnitBelowSum { unit_size, size_sum } => {
                write!(f, "a unit of {unit_size} bytes cannot hold {size_sum} bytes")
            }
            Self::DynamicTooSmall(size) => {
                write!(
                    f,
                    "the dynamic part must have at least {} bytes, not {size}",
                    super::MIN_DYN_SIZE
                )
            }
            Self::ReservedUnaligned(size) => {
                write!(f, "the reserved size must be a multiple of 4, not {size}")
            }
            Self::AllocSize(size) => write!(
                f,
                "an allocation must be a multiple of the unit and of the atom, of at most {} units, \
                 not of {size} bytes",
                super::MAX_UNITS
            ),
            Self::TooManyGroups(groups) => {
                write!(f, "there can be {} groups, not {groups}", crate::cpu::NR_CPUS)
            }
            Self::TooManyUnits(units) => {
                write!(f, "groups can have {} units together, not {units}", super::MAX_UNITS)
            }
            Self::GroupWithoutUnit(group) => write!(f, "group {group} has no unit"),
            Self::CpuWithoutUnit(cpu) => write!(f, "possible CPU {cpu} has no unit"),
            Self::CpuWithTwoUnits(cpu) => write!(f, "CPU {cpu} has more than one unit"),
            Self::UnitOfImpossibleCpu(cpu) => {
                write!(f, "a unit belongs to CPU {cpu}, which is not possible")
            }
            Self::SpanTooWide { span, limit } => {
                write!(f, "the groups span {span} bytes, more than the {limit} bytes permitted")
            }
            Self::NoMemory => f.write_str("the platform has no memory left"),
        }
    }
}

impl core::error::Error for SetupError {}
