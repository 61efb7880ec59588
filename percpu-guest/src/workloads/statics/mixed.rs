//! Every kind of operation on one variable, of any width and place.

use percpu_core::preempt;
use percpu_core::var::{Alignment, Integer, PerCpu, RawCpu};

/// Integers that amounts of the ledger are made of.
pub(super) trait Amount: Integer + PartialEq {
    /// The number, cut to this width.
    fn cut(number: u64) -> Self;
    /// As an amount of the ledger. What is cut off does not count: the host sums in this width.
    fn amount(self) -> i64;
    /// The sum, wrapping.
    fn plus(self, other: Self) -> Self;
    /// All bits but these.
    fn inverted(self) -> Self;
}

macro_rules! amount {
    ($($ty:ty),*) => {$(
        impl Amount for $ty {
            fn cut(number: u64) -> Self {
                number as $ty
            }

            fn amount(self) -> i64 {
                self as i64
            }

            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn inverted(self) -> Self {
                !self
            }
        }
    )*};
}
amount!(u8, i16, u32, u64, i64, usize);

/// Defines a function that changes a variable by one of the arithmetic or exchanging operations that
/// all owners of variables have, and returns what was added.
macro_rules! change {
    ($(#[$doc:meta])* $name:ident <T $(, $p:ident: $bound:path)?> $owner:ty) => {
        $(#[$doc])*
        pub(super) fn $name<T: Amount $(, $p: $bound)?>(
            variable: &$owner,
            random: u64,
            amount: u64,
        ) -> i64 {
            let value = T::cut(amount);
            match random % 11 {
                0 => variable.add(value),
                1 => {
                    variable.sub(value);
                    return -value.amount();
                }
                2 => {
                    variable.inc();
                    return 1;
                }
                3 => {
                    variable.dec();
                    return -1;
                }
                4 => drop(variable.add_return(value)),
                5 => {
                    variable.sub_return(value);
                    return -value.amount();
                }
                6 => {
                    variable.inc_return();
                    return 1;
                }
                7 => {
                    variable.dec_return();
                    return -1;
                }
                // Takes what this CPU has and puts it into the ledger.
                8 => return -variable.xchg(T::cut(0)).amount(),
                9 => {
                    let mut before = variable.read();
                    while let Err(seen) = variable.cmpxchg(before, before.plus(value)) {
                        before = seen;
                    }
                }
                _ => {
                    let mut before = variable.read();
                    loop {
                        let new = before.plus(value);
                        if variable.try_cmpxchg(&mut before, new) {
                            break;
                        }
                    }
                }
            }
            value.amount()
        }
    };
}

change! {
    /// From any context, on whatever CPU it is at that moment.
    change<T, A: Alignment> PerCpu<T, A>
}
change! {
    /// As [`change`], for a thread that stays where it is, on a variable that no handler changes.
    change_here<T> RawCpu<'_, T>
}

/// A flag in the lowest bit, for threads; interrupts have the one above. At rest both are clear.
const THREADS: u64 = 1;
const INTERRUPTS: u64 = 2;
/// What the other bits count.
const UNIT: u64 = 4;

/// Sets and clears a flag beside which others count. Returns what was added.
///
/// Interrupts come in between; each leaves the flag of threads alone, as the bits that count.
pub(super) fn flag<T: Amount, A: Alignment>(variable: &PerCpu<T, A>) -> i64 {
    // No other thread of this CPU has the flag meanwhile.
    let pin = preempt::disable();
    variable.or(T::cut(THREADS));
    variable.add(T::cut(UNIT));
    variable.and(T::cut(THREADS).inverted());
    drop(pin);
    UNIT as i64
}

/// As [`flag`], in a handler.
pub(super) fn flag_in_interrupt<T: Amount, A: Alignment>(variable: &PerCpu<T, A>) -> i64 {
    variable.or(T::cut(INTERRUPTS));
    variable.add(T::cut(2 * UNIT));
    variable.and(T::cut(INTERRUPTS).inverted());
    2 * UNIT as i64
}
