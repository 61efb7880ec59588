//! The table of per-CPU operations.
//!
//! A new operation is a row here, and in `x86_64.rs` the instruction that does it. The row says what
//! the operation is called and what it does to the copy: from the old value and the arguments to
//! the new value, if it writes one, and the result. Everything else is made from that: the traits of
//! the types that have it, the form for machines without assembly, and the methods of per-CPU
//! pointers and variables.

/// Hands the table to the macro `$with`, after `$args`, with `$T` for the type of the copy: the
/// operations on words, and those on integers only.
macro_rules! operations {
    ($T:ident, $with:ident! { $($args:tt)* }) => {
        $with! {
            { $($args)* }
            word {
                /// Reads. Linux: `this_cpu_read`.
                read() -> $T = |old| (None, old);
                /// Writes. Linux: `this_cpu_write`.
                write(value: $T) -> () = |_old| (Some(value), ());
                /// Writes and returns the value before. Linux: `this_cpu_xchg`.
                xchg(value: $T) -> $T = |old| (Some(value), old);
                /// Writes if the copy equals `old`; returns the value before, in `Ok` if it was
                /// written. Linux: `this_cpu_cmpxchg`.
                cmpxchg(old: $T, new: $T) -> Result<$T, $T> = |seen| {
                    if seen == old { (Some(new), Ok(seen)) } else { (None, Err(seen)) }
                };
                /// Writes if the copy equals `old`, else puts its value into `old`; whether it
                /// wrote. Linux: `this_cpu_try_cmpxchg`.
                try_cmpxchg(old: &mut $T, new: $T) -> bool = |seen| {
                    if seen == *old {
                        (Some(new), true)
                    } else {
                        *old = seen;
                        (None, false)
                    }
                };
            }
            number {
                /// Adds. Linux: `this_cpu_add`.
                add(value: $T) -> () = |old| (Some(old.wrapping_add(value)), ());
                /// Subtracts. Linux: `this_cpu_sub`.
                sub(value: $T) -> () = |old| (Some(old.wrapping_sub(value)), ());
                /// Adds one. Linux: `this_cpu_inc`.
                inc() -> () = |old| (Some(old.wrapping_add(1)), ());
                /// Subtracts one. Linux: `this_cpu_dec`.
                dec() -> () = |old| (Some(old.wrapping_sub(1)), ());
                /// Keeps the bits that are set in `value`. Linux: `this_cpu_and`.
                and(value: $T) -> () = |old| (Some(old & value), ());
                /// Sets the bits that are set in `value`. Linux: `this_cpu_or`.
                or(value: $T) -> () = |old| (Some(old | value), ());
                /// Adds and returns the sum. Linux: `this_cpu_add_return`.
                add_return(value: $T) -> $T = |old| {
                    let new = old.wrapping_add(value);
                    (Some(new), new)
                };
                /// Subtracts and returns the difference. Linux: `this_cpu_sub_return`.
                sub_return(value: $T) -> $T = |old| {
                    let new = old.wrapping_sub(value);
                    (Some(new), new)
                };
                /// Adds one and returns the sum. Linux: `this_cpu_inc_return`.
                inc_return() -> $T = |old| {
                    let new = old.wrapping_add(1);
                    (Some(new), new)
                };
                /// Subtracts one and returns the difference. Linux: `this_cpu_dec_return`.
                dec_return() -> $T = |old| {
                    let new = old.wrapping_sub(1);
                    (Some(new), new)
                };
            }
        }
    };
}

pub(crate) use operations;
