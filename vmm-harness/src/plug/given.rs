//! A plan that somebody else has made: plugs one after the other, each after so much work.

use percpu_guest::abi::CpuState;

use super::{CpuNow, Order};

/// A plug or an unplug, whichever the CPU's state allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenPlug {
    /// Operations of all CPUs after the one before was answered.
    pub after: u64,
    /// The CPU.
    pub cpu: u32,
    /// Number of the hotplug step that fails.
    pub fail: Option<u64>,
}

/// How much the guest has done of what it was told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Operations that are done.
    pub done: u64,
    /// No more will come: every thread has ended.
    pub is_over: bool,
}

/// Gives the plugs in their order.
///
/// They are due by work and not by time, so that they fall into the same parts of the work on a
/// fast host and on a slow one.
#[derive(Debug)]
pub struct Given {
    left: std::vec::IntoIter<GivenPlug>,
    /// The next one, and the operations from which on it is due.
    next: Option<(GivenPlug, u64)>,
}

impl Given {
    /// A plan of `plugs`.
    pub fn new(plugs: Vec<GivenPlug>) -> Self {
        let mut given = Self { left: plugs.into_iter(), next: None };
        given.answered(0);
        given
    }

    /// The next order if it is due, and the hotplug step of it that is to fail. Where no work is
    /// left to wait for, all are due.
    pub fn next(
        &mut self,
        work: Work,
        cpu: impl Fn(u32) -> CpuNow,
    ) -> Option<(Order, Option<u64>)> {
        let (plug, _) = self.next.take_if(|(_, due)| work.is_over || work.done >= *due)?;
        let order = match cpu(plug.cpu).state {
            Some(CpuState::Online) => Order::Unplug(plug.cpu),
            _ => Order::Plug(plug.cpu),
        };
        Some((order, plug.fail))
    }

    /// Notes that the last order was answered when so many operations were done.
    pub fn answered(&mut self, done: u64) {
        self.next = self.left.next().map(|plug| (plug, done.saturating_add(plug.after)));
    }

    /// Whether every order was given.
    pub fn is_over(&self) -> bool {
        self.next.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(done: u64) -> Work {
        Work { done, is_over: false }
    }

    fn plug(after: u64, cpu: u32) -> GivenPlug {
        GivenPlug { after, cpu, fail: None }
    }

    #[test]
    fn each_is_due_when_so_much_was_done_since_the_one_before() {
        let mut given = Given::new(vec![plug(10, 1), GivenPlug { fail: Some(3), ..plug(5, 2) }]);
        let online = |_| CpuNow { state: Some(CpuState::Online), ..CpuNow::default() };
        assert_eq!(given.next(at(9), online), None);
        assert_eq!(given.next(at(10), online), Some((Order::Unplug(1), None)));
        // One at a time.
        assert_eq!(given.next(at(1000), online), None);
        given.answered(100);
        assert!(!given.is_over());
        assert_eq!(given.next(at(104), online), None);
        assert_eq!(given.next(at(105), |_| CpuNow::default()), Some((Order::Plug(2), Some(3))));
        given.answered(110);
        assert!(given.is_over());
    }

    #[test]
    fn none_waits_for_work_that_will_not_come() {
        let mut given = Given::new(vec![plug(u64::MAX, 1)]);
        assert_eq!(given.next(at(u64::MAX - 1), |_| CpuNow::default()), None);
        let over = Work { done: 7, is_over: true };
        assert_eq!(given.next(over, |_| CpuNow::default()), Some((Order::Plug(1), None)));
    }
}
