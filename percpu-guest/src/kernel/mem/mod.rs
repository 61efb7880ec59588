//! Memory: page frames, the kernel's page tables, a heap for the core's tables.

pub mod frames;
pub mod heap;
pub mod paging;
#[cfg(not(target_os = "none"))]
mod routines;
pub mod shortage;
pub mod space;
pub mod words;

/// Bytes of a page.
pub const PAGE: usize = 4096;
