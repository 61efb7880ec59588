//! The template: the section in which the linker collects all per-CPU statics.
//!
//! The section's name is a C identifier, so the linker defines `__start_percpu` and `__stop_percpu`
//! and no linker script is needed. A block of assembly, which the function that asks for the bounds
//! refers to, keeps the section from being empty and gives it the alignment of a page: a unit is
//! page-aligned, so a variable is as aligned in every unit as it is in the template.

#[cfg(not(miri))]
use core::ops::Range;

#[cfg(not(miri))]
core::arch::global_asm!(
    ".pushsection percpu, \"aw\", @progbits",
    ".balign 4096",
    ".globl __percpu_anchor",
    ".hidden __percpu_anchor",
    "__percpu_anchor:",
    ".zero 64",
    ".popsection",
);

/// Addresses of the template: from a page boundary to the end of the last static. Linux:
/// `__per_cpu_start..__per_cpu_end`.
///
/// The provenance of the whole range is exposed.
#[cfg(not(miri))]
pub fn template() -> Range<usize> {
    unsafe extern "C" {
        static __percpu_anchor: u8;
        static __start_percpu: u8;
        static __stop_percpu: u8;
    }
    let anchor = (&raw const __percpu_anchor).expose_provenance();
    let start = (&raw const __start_percpu).expose_provenance();
    let end = (&raw const __stop_percpu).expose_provenance();
    debug_assert!((start..end).contains(&anchor) && start.is_multiple_of(4096));
    start..end
}

#[cfg(miri)]
pub use super::placement::template;
