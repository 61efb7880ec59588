//! What the targets have in common: each is a name in `vmm_harness::hostile::TARGETS`.

pub use libfuzzer_sys;
pub use vmm_harness::hostile;

/// A guest image of a few functions with names and lines (`image/small.rs`); empty where it could not be
/// made.
pub const SMALL_IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/small"));

/// The fuzz target of this name.
#[macro_export]
macro_rules! attack {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::hostile::plant($name, $crate::SMALL_IMAGE),
            |bytes: &[u8]| {
                ($crate::hostile::target($name).run)(bytes);
            }
        );
    };
}
