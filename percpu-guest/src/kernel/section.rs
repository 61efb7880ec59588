//! Tables that the linker collects from all over an image: entries that attributes have declared, in
//! sections of their own, whose bounds the linker defines.

/// Declares a function that returns the table of a section, which may be empty.
macro_rules! table {
    ($(#[$doc:meta])* fn $table:ident() -> &'static [$entry:ty] = $name:literal, $start:ident, $stop:ident, $anchor:ident) => {
        core::arch::global_asm!(
            concat!(".pushsection ", $name, ", \"aw\", @progbits"),
            ".balign 8",
            concat!(".globl ", stringify!($anchor)),
            concat!(stringify!($anchor), ":"),
            ".popsection",
        );

        $(#[$doc])*
        fn $table() -> &'static [$entry] {
            unsafe extern "C" {
                static $anchor: u8;
                static $start: u8;
                static $stop: u8;
            }
            // Without this reference there is no section where nothing is declared.
            core::hint::black_box(&raw const $anchor);
            let start = &raw const $start;
            let bytes = (&raw const $stop).addr() - start.addr();
            // SAFETY: the section holds entries of this type only, which only the attribute makes and
            // nobody writes, one after the other: their size is a multiple of their alignment.
            unsafe { core::slice::from_raw_parts(start.cast(), bytes / size_of::<$entry>()) }
        }
    };
}
pub(crate) use table;
