//! The operations that every way of reaching a copy has.

/// Values that one instruction reads, writes and exchanges.
///
/// # Safety
///
/// Each operation is one step for interrupts and for migration on the CPU that runs it, acts on the
/// copy at `addr` plus that CPU's offset, and is a compiler barrier for memory. Every value is
/// initialised memory without padding, of 1, 2, 4 or 8 bytes.
pub unsafe trait Word: Copy + PartialEq + 'static {
    /// Reads this CPU's copy.
    ///
    /// # Safety
    ///
    /// For all methods: `addr` is the template address of a live per-CPU variable of this type,
    /// aligned, whose copies are changed by these operations and by atomic accesses only.
    unsafe fn read(addr: usize) -> Self;

    /// Writes this CPU's copy.
    ///
    /// # Safety
    ///
    /// As [`read`](Self::read).
    unsafe fn write(addr: usize, value: Self);

    /// Writes this CPU's copy if it equals `old`. The value before: in `Ok` if it was written.
    ///
    /// # Safety
    ///
    /// As [`read`](Self::read).
    unsafe fn cmpxchg(addr: usize, old: Self, new: Self) -> Result<Self, Self>;

    /// Reads the copy at an absolute address, as one relaxed load.
    ///
    /// # Safety
    ///
    /// `ptr` is valid and aligned, and the copy is changed by these operations and by atomic
    /// accesses only.
    unsafe fn load(ptr: *mut Self) -> Self;

    /// Writes the copy at an absolute address, as one relaxed store.
    ///
    /// # Safety
    ///
    /// As [`load`](Self::load).
    unsafe fn store(ptr: *mut Self, value: Self);
}

/// Words with wrapping arithmetic.
///
/// # Safety
///
/// As [`Word`].
pub unsafe trait Number: Word {
    /// 1.
    const ONE: Self;

    /// Adds.
    ///
    /// # Safety
    ///
    /// As [`Word::read`].
    unsafe fn add(addr: usize, value: Self);

    /// Subtracts.
    ///
    /// # Safety
    ///
    /// As [`Word::read`].
    unsafe fn sub(addr: usize, value: Self);

    /// Adds one.
    ///
    /// # Safety
    ///
    /// As [`Word::read`].
    unsafe fn inc(addr: usize);

    /// Subtracts one.
    ///
    /// # Safety
    ///
    /// As [`Word::read`].
    unsafe fn dec(addr: usize);

    /// Keeps the bits that are set in `value`.
    ///
    /// # Safety
    ///
    /// As [`Word::read`].
    unsafe fn and(addr: usize, value: Self);

    /// Sets the bits that are set in `value`.
    ///
    /// # Safety
    ///
    /// As [`Word::read`].
    unsafe fn or(addr: usize, value: Self);

    /// Adds and returns the sum.
    ///
    /// # Safety
    ///
    /// As [`Word::read`].
    unsafe fn add_return(addr: usize, value: Self) -> Self;
}
