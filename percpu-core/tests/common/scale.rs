//! How often a test does something: all tests that do it again and again ask here.

// Each test program uses a part of this.
#![allow(dead_code)]

/// Whether Miri interprets the test.
pub const INTERPRETED: bool = cfg!(miri);

/// `full`; under Miri, which takes some hundred times as long for everything, the square root of it.
pub const fn scaled(full: usize) -> usize {
    if INTERPRETED { full.isqrt() } else { full }
}

/// As [`scaled`], for random cases, each of which is a test by itself: under Miri twice the square root.
pub const fn cases(full: usize) -> u32 {
    scaled(scaled(full)) as u32
}
