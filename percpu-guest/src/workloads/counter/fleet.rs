//! A thousand counters, each thread's share made and destroyed together, again and again. Where each
//! step counts there are some dozens, whose lives are as short as the run.

use percpu_core::counter::PercpuCounters;
use percpu_guest::abi::{ACCOUNTS, CounterRole, IN_ACCOUNT};

use super::{announce, announce_end, usual_most};
use percpu_guest::kernel::shared;
use percpu_guest::kernel::workload::Worker;

/// Counters of all threads together.
const COUNTERS: u32 = if cfg!(percpu_steps) { 32 } else { 1024 };
/// The same where each instruction takes a microsecond.
const EMULATED_COUNTERS: u32 = if cfg!(percpu_steps) { COUNTERS } else { 64 };
/// Additions of a round.
const ADDITIONS: u32 = if cfg!(percpu_steps) { 2 } else { 4 };
/// One round in so many ends the fleet and makes another one.
const LIFE: u64 = if cfg!(percpu_steps) { 8 } else { 1024 };

/// A thread's share.
pub(super) struct Fleet {
    counters: Option<PercpuCounters>,
    /// The first of its accounts; the others follow.
    first: u32,
    len: usize,
}

impl Fleet {
    pub(super) fn new(worker: &Worker) -> Self {
        let threads = shared::boot().threads.max(1);
        let all = if shared::boot().emulated != 0 { EMULATED_COUNTERS } else { COUNTERS };
        let each = (all / threads).max(1);
        let first = worker.index() * each;
        let len = if (first + each) as usize <= ACCOUNTS { each as usize } else { 0 };
        let mut fleet = Self { counters: None, first, len };
        fleet.launch(worker);
        fleet
    }

    /// Makes the counters, if there is memory.
    fn launch(&mut self, worker: &Worker) {
        let initial = i64::from(self.first) - 100;
        self.counters = PercpuCounters::new(self.len, initial).ok();
        for (account, counter) in (self.first..).zip(self.counters.iter().flat_map(|all| &**all)) {
            worker.book_account(account, -worker.account(account));
            announce(counter, initial, account, IN_ACCOUNT, CounterRole::Plain);
        }
    }

    /// Adds to a few, on whatever CPUs the thread comes by; sometimes all go, and others come.
    pub(super) fn work(&mut self, worker: &mut Worker) {
        if let Some(counters) = self.counters.as_deref().filter(|counters| !counters.is_empty()) {
            let most = usual_most();
            for _ in 0..ADDITIONS {
                let which = worker.rng.below(counters.len() as u64) as usize;
                let amount = worker.rng.below(2 * most) as i64 - most as i64 / 2;
                counters[which].add(amount);
                worker.book_account(self.first + which as u32, amount);
            }
        }
        if worker.rng.one_in(LIFE) {
            self.sink();
            self.launch(worker);
        }
    }

    fn sink(&mut self) {
        let counters = self.counters.take();
        counters.iter().flat_map(|all| &**all).for_each(announce_end);
    }

    pub(super) fn end(mut self) {
        self.sink();
    }
}
