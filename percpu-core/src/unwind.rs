//! What is to be done for every item although foreign code may panic at one of them.

/// Calls `f` for every item. If it panics for one, it is called for the items behind that one before
/// the panic goes on; a second panic aborts, as in any destructor.
pub(crate) fn for_each_to_the_end<T>(items: impl Iterator<Item = T>, f: impl FnMut(T)) {
    struct Rest<I: Iterator, F: FnMut(I::Item)> {
        items: I,
        f: F,
    }

    impl<I: Iterator, F: FnMut(I::Item)> Rest<I, F> {
        fn run(&mut self) {
            for item in self.items.by_ref() {
                (self.f)(item);
            }
        }
    }

    impl<I: Iterator, F: FnMut(I::Item)> Drop for Rest<I, F> {
        fn drop(&mut self) {
            self.run();
        }
    }

    // After an ordinary end the iterator is at its end for the drop, too: it is fused.
    Rest { items: items.fuse(), f }.run();
}

/// Calls a function when it is dropped: at the end of a scope, however that is left.
pub(crate) struct AtEnd<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::vec::Vec;

    use super::*;

    #[test]
    fn items_behind_a_panic_are_visited() {
        let mut seen = Vec::new();
        let visit = AssertUnwindSafe(|| {
            for_each_to_the_end(0..5, |n| {
                seen.push(n);
                assert!(n != 2, "two");
            });
        });
        assert!(catch_unwind(visit).is_err());
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }
}
