//! What is known of a value from a reading that is off by a bounded amount.

use core::cmp::Ordering;

/// The least and the most that a value can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) least: i64,
    pub(super) most: i64,
}

impl Bounds {
    /// Returns the bounds of a value that is off from `reading` by at most `error`, or `None` if one
    /// of them does not fit 64 bits: the value may lie at the other end of the number line then,
    /// because counters wrap.
    pub(super) fn around(reading: i64, error: u64) -> Option<Self> {
        let least = reading.checked_sub_unsigned(error)?;
        let most = reading.checked_add_unsigned(error)?;
        Some(Self { least, most })
    }

    /// Compares the value with `rhs`. Returns `None` if the bounds do not tell.
    pub(super) fn compare(self, rhs: i64) -> Option<Ordering> {
        let ordering = self.least.cmp(&rhs);
        (ordering == self.most.cmp(&rhs)).then_some(ordering)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_decide_as_numbers_that_do_not_wrap() {
        let ends = [i64::MIN, i64::MIN + 1, -2, -1, 0, 1, 2, i64::MAX - 1, i64::MAX];
        let errors = [0, 1, 2, 1 << 31, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX];
        for reading in ends {
            for error in errors {
                let least = i128::from(reading) - i128::from(error);
                let most = i128::from(reading) + i128::from(error);
                let fit = least >= i64::MIN.into() && most <= i64::MAX.into();
                let bounds = Bounds::around(reading, error);
                assert_eq!(bounds.is_some(), fit, "{reading} ± {error}");
                let Some(bounds) = bounds else { continue };
                for rhs in ends {
                    let wide = i128::from(rhs);
                    let told = (least.cmp(&wide) == most.cmp(&wide)).then(|| least.cmp(&wide));
                    assert_eq!(bounds.compare(rhs), told, "{reading} ± {error}, {rhs}");
                }
            }
        }
    }
}
