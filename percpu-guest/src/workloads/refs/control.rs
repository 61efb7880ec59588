//! Who kills the refs, brings them back, and switches their modes: one thread, between the
//! operations that it does like all others.

use core::sync::atomic::Ordering;

use percpu_guest::abi::EventKind;

use super::{ACCOUNTS, REFS, begin, give_back, kept, object, slot, tell, tell_untold};
use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::shared;
use percpu_guest::kernel::workload::Worker;

/// Microseconds between two acts, at least.
const REST_US: u64 = if cfg!(percpu_steps) { 10 } else { 5_000 };
/// One part in so many of the time is for acts: each may interrupt every CPU, and keeps CPUs from
/// coming and going while it does.
const SHARE: u64 = if cfg!(percpu_steps) { 2 } else { 8 };

/// Where a ref stands.
#[derive(Clone, Copy)]
enum Stage {
    Alive,
    /// Killed, while the thread has a reference.
    KilledAndHeld,
    /// Killed, and to be released when the others have given theirs back.
    Killed,
}

/// The refs as they were left.
pub(super) struct Control {
    stages: [Stage; REFS],
    kills: u64,
    next: u64,
}

impl Control {
    pub(super) const fn new() -> Self {
        Self { stages: [Stage::Alive; REFS], kills: 0, next: 0 }
    }

    /// Does something to one of the refs, if it is time.
    pub(super) fn work(&mut self, worker: &mut Worker) {
        let begin = tsc::now();
        if begin < self.next {
            return;
        }
        self.act(worker);
        let end = tsc::now();
        let rest = REST_US * u64::from(shared::boot().tsc_mhz);
        self.next = end + rest.max((SHARE - 1) * (end - begin));
    }

    fn act(&mut self, worker: &mut Worker) {
        let i = worker.rng.below(REFS as u64) as usize;
        self.stages[i] = match self.stages[i] {
            Stage::Alive if worker.rng.one_in(3) => {
                switch(i);
                Stage::Alive
            }
            Stage::Alive => self.kill(worker, i),
            Stage::KilledAndHeld if worker.rng.one_in(2) => resurrect(worker, i),
            Stage::KilledAndHeld => {
                give_back(worker, i, 1);
                Stage::Killed
            }
            Stage::Killed => revive_if_released(worker, i),
        };
    }

    fn kill(&mut self, worker: &mut Worker, i: usize) -> Stage {
        let hold = worker.rng.one_in(2);
        if hold {
            let taken = kept(object(i).get(), 1);
            worker.book(slot(i), taken.into());
        }
        self.kills += 1;
        let kill = self.kills;
        tell(EventKind::LifeEnding, i);
        let killed =
            object(i).kill_and_confirm(|| ACCOUNTS[i].confirmed.store(kill, Ordering::SeqCst));
        assert_eq!(killed, Ok(()), "this thread alone kills");
        tell_untold(i);
        if hold { Stage::KilledAndHeld } else { Stage::Killed }
    }
}

fn switch(i: usize) {
    if object(i).is_percpu() {
        object(i).switch_to_atomic();
    } else {
        object(i).switch_to_percpu();
    }
}

/// Takes a kill back that was not followed by a release, because this thread has a reference.
fn resurrect(worker: &Worker, i: usize) -> Stage {
    ACCOUNTS[i].confirmed.store(0, Ordering::SeqCst);
    assert_eq!(object(i).resurrect(), Ok(()), "this thread alone revives");
    tell(EventKind::LifeResumed, i);
    give_back(worker, i, 1);
    Stage::Alive
}

/// Gives a ref that was released another life.
fn revive_if_released(worker: &mut Worker, i: usize) -> Stage {
    let account = &ACCOUNTS[i];
    if account.releases.load(Ordering::Acquire) == 0 {
        return Stage::Killed;
    }
    account.confirmed.store(0, Ordering::SeqCst);
    account.releases.store(0, Ordering::Relaxed);
    // Before the ref can be killed, and so released, again.
    begin(i);
    let revived = if worker.rng.one_in(2) { object(i).reinit() } else { object(i).resurrect() };
    assert_eq!(revived, Ok(()), "a ref that was released has no references");
    Stage::Alive
}
