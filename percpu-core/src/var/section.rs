//! The template: the sections in which the linker collects all per-CPU statics, one for each kind of
//! placement.
//!
//! A section's name is a C identifier, so the linker defines `__start_` and `__stop_` symbols for it
//! and no linker script is needed: sections that a script does not name are put one after the other
//! where they are of one sort. A kernel's script may place them itself, in Linux's order or any
//! other; they have to lie together, since a unit is a copy of all that lies between the first and the
//! last. A byte of assembly in each, which the function that asks for the bounds refers to, keeps
//! them from being empty.
//!
//! Template and units begin on a page: a variable is as aligned in every unit as in the template.

use core::ops::Range;

#[cfg(not(any(miri, feature = "up")))]
use crate::view::PAGE;

#[cfg(all(miri, not(feature = "up")))]
pub use super::placement::template;

/// Addresses of the template: empty, since with one CPU there is nothing to be copied.
#[cfg(feature = "up")]
pub fn template() -> Range<usize> {
    0..0
}

/// How many sections there are.
pub(crate) const SECTIONS: usize = 5;

/// There is one piece.
#[cfg(any(miri, feature = "up"))]
pub(crate) fn sections() -> [Range<usize>; SECTIONS] {
    let Range { start, end } = template();
    core::array::from_fn(|i| if i == 0 { start..end } else { end..end })
}

#[cfg(not(any(miri, feature = "up")))]
macro_rules! sections {
    ($($name:literal: $anchor:ident, $start:ident, $stop:ident;)*) => {
        $(
            core::arch::global_asm!(
                concat!(".pushsection ", $name, ", \"aw\", @progbits"),
                concat!(".globl ", stringify!($anchor)),
                concat!(".hidden ", stringify!($anchor)),
                concat!(stringify!($anchor), ":"),
                ".byte 0",
                ".popsection",
            );
        )*

        /// The sections, as the linker has placed them. Their provenance is exposed.
        pub(crate) fn sections() -> [Range<usize>; SECTIONS] {
            unsafe extern "C" {
                $(
                    static $anchor: u8;
                    static $start: u8;
                    static $stop: u8;
                )*
            }
            [$({
                let anchor = (&raw const $anchor).expose_provenance();
                let section =
                    (&raw const $start).expose_provenance()..(&raw const $stop).expose_provenance();
                // In every build: without this reference the linker drops the byte, and with it the
                // bounds of a section that has nothing else.
                assert!(section.contains(&anchor), "{} lies elsewhere", $name);
                section
            }),*]
        }
    };
}

#[cfg(not(any(miri, feature = "up")))]
sections! {
    "percpu_page_aligned":
        __percpu_page_aligned_anchor, __start_percpu_page_aligned, __stop_percpu_page_aligned;
    "percpu_hot": __percpu_hot_anchor, __start_percpu_hot, __stop_percpu_hot;
    "percpu_read_mostly":
        __percpu_read_mostly_anchor, __start_percpu_read_mostly, __stop_percpu_read_mostly;
    "percpu": __percpu_anchor, __start_percpu, __stop_percpu;
    "percpu_shared_aligned":
        __percpu_shared_aligned_anchor, __start_percpu_shared_aligned, __stop_percpu_shared_aligned;
}

/// Addresses of the template: from the page on which the first section begins to the end of the
/// last. Linux: `__per_cpu_start..__per_cpu_end`.
///
/// The provenance of the sections is exposed.
#[cfg(not(any(miri, feature = "up")))]
pub fn template() -> Range<usize> {
    let (start, end) = sections().iter().fold((usize::MAX, 0), |(start, end), section| {
        (start.min(section.start), end.max(section.end))
    });
    start & !(PAGE as usize - 1)..end
}

/// Bytes of the template that belong to no per-CPU section: what the linker has put between them,
/// and what lies before the first on its page.
#[cfg(not(any(miri, feature = "up")))]
pub(crate) fn foreign_bytes() -> usize {
    template().len() - sections().iter().map(|section| section.len()).sum::<usize>()
}
#[cfg(any(miri, feature = "up"))]
pub(crate) fn foreign_bytes() -> usize {
    0
}
