//! One CPU: its unit is the variables themselves, and there is nothing to add.

/// The offset of the one CPU.
#[inline(always)]
#[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "instructions have no prefix"))]
pub(crate) fn offset() -> usize {
    0
}

/// There is one offset, and it is installed.
///
/// # Safety
///
/// Always: the signature is that of a kernel for many CPUs.
#[inline]
pub unsafe fn set_offset(offset: usize) {
    debug_assert!(offset == 0, "an `up` build has one CPU, at offset 0");
}
