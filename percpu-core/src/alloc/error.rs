//! Why an allocation or a free was refused.

use core::fmt;

use crate::platform::NoMemory;

/// Why no area was handed out. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocError {
    /// The per-CPU areas are not set up yet.
    NotSetUp,
    /// The size is 0 or larger than [`MAX_ALLOC_SIZE`](super::MAX_ALLOC_SIZE).
    Size(usize),
    /// The alignment is not a power of two up to [`MAX_ALIGN`](super::MAX_ALIGN).
    Align(usize),
    /// The platform has no memory or no address space left.
    NoMemory,
    /// No populated page has room, and an atomic allocation cannot wait for another.
    NoPopulatedRoom,
    /// The reserved part has no room, or there is none.
    NoReservedRoom,
    /// The group has reached its limit.
    OverLimit,
}

impl From<NoMemory> for AllocError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotSetUp => f.write_str("the per-CPU areas are not set up yet"),
            Self::Size(size) => {
                write!(f, "the size must be from 1 to {}, not {size}", super::MAX_ALLOC_SIZE)
            }
            Self::Align(align) => {
                write!(
                    f,
                    "the alignment must be a power of two up to {}, not {align}",
                    super::MAX_ALIGN
                )
            }
            Self::NoMemory => f.write_str("the platform has no memory left"),
            Self::NoPopulatedRoom => f.write_str("no populated page has room"),
            Self::NoReservedRoom => f.write_str("the reserved part has no room"),
            Self::OverLimit => f.write_str("the group has reached its limit"),
        }
    }
}

impl core::error::Error for AllocError {}

/// Why a pointer was not freed. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FreeError {
    /// The per-CPU areas are not set up yet.
    NotSetUp,
    /// The pointer lies in no chunk, or outside of what the chunk manages.
    Wild(usize),
    /// The pointer is that of a static variable.
    Static(usize),
    /// The pointer lies inside an area, not at its start.
    Interior(usize),
    /// No area is live there: it has been freed already, or never was.
    NotLive(usize),
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotSetUp => f.write_str("the per-CPU areas are not set up yet"),
            Self::Wild(ptr) => write!(f, "{ptr:#x} is no dynamic per-CPU pointer"),
            Self::Static(ptr) => write!(f, "{ptr:#x} is a static per-CPU variable"),
            Self::Interior(ptr) => write!(f, "{ptr:#x} lies inside an area, not at its start"),
            Self::NotLive(ptr) => write!(f, "{ptr:#x} is not allocated: freed twice?"),
        }
    }
}

impl core::error::Error for FreeError {}
