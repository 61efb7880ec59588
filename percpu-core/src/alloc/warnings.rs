//! A log that falls silent: a caller in a loop must not flood the console.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::platform::Platform;

/// Warnings that are printed before the log falls silent. Linux: `warn_limit`.
const LIMIT: u32 = 10;

/// Prints the first ten warnings that it is given.
pub(crate) struct Warnings {
    left: AtomicU32,
}

impl Warnings {
    pub(crate) const fn new() -> Self {
        Self { left: AtomicU32::new(LIMIT) }
    }

    /// Logs one line, unless there were too many. The allocator's locks are not held.
    #[cold]
    pub(crate) fn warn<P: Platform>(&self, line: fmt::Arguments<'_>) {
        let take = |left: u32| left.checked_sub(1);
        let Ok(left) = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) else {
            return;
        };
        P::log(format_args!("percpu: {line}"));
        if left == 1 {
            P::log(format_args!("percpu: limit reached, disable warning"));
        }
    }
}
