//! Who runs next, where the guest's CPUs are contexts of one vCPU.
//!
//! A CPU runs until a step at which the schedule has something to say, or until it gives way by
//! itself. Then [`next_turn`] looks at timers, at the schedule's changes and at who is able to run,
//! and chooses the able CPU of the highest priority; assembly (`steps`) puts its stack and GS base in
//! place. No exit to the host is needed for that, and nothing of the host's has a say in it.
//!
//! The functions below run between two instructions of whatever runs on the CPU. They count steps
//! like all code, which are taken back, and touch nothing but words in shared memory.

use core::arch::asm;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::Ordering::Relaxed;

use crate::abi::{
    ChangeKind, Context, Decision, Doorbell, MOST_STAYS, SITES, SavedRegisters, Standing, StayEnd,
    Turns, VECTOR_COMMAND, VECTOR_TIMER,
};

use super::irq::FIRST_VECTOR;
use super::{doorbell, steps, tables};
use crate::kernel::cpus::CONTROL_CPU;
use crate::kernel::rng::Rng;
use crate::kernel::shared;

/// Steps for which a CPU that waits is let be, from this number on.
const SHORTEST_WAIT: u64 = 256;
/// Orders of magnitude (doublings) of those steps.
const WAITS: u64 = 7;
/// A moment that never comes.
const NEVER: u64 = u64::MAX;
/// How far apart two frames of a stack can be.
const MOST_FRAME: usize = 64 << 10;

/// Answers a doorbell that is about turns; false if it is one for the host.
pub(super) fn take(bell: Doorbell, argument: u64) -> bool {
    let (end, argument) = match bell {
        Doorbell::Yield => (StayEnd::Yield, 0),
        Doorbell::Idle => (StayEnd::Idle, 0),
        Doorbell::Dead => (StayEnd::Dead, 0),
        Doorbell::StartCpu => (StayEnd::Started, argument),
        _ => return false,
    };
    steps::give_way(end as u64, argument);
    true
}

/// Has the schedule looked at as soon as possible: something has changed.
pub(super) fn look_again() {
    shared::header().steps.next.store(0, Relaxed);
}

/// Makes the CPU whose stack pointer is `rsp` stop, which had done `done` steps and `points` points,
/// and chooses who goes on. Called by `steps` with no step due.
pub(super) extern "C" fn next_turn(
    end: u64,
    argument: u64,
    rsp: u64,
    done: u64,
    points: u64,
) -> *const Decision {
    let turns = shared::turns();
    let cpu = turns.state.running.load(Relaxed) as usize;
    let this = &turns.state.contexts[cpu];
    this.rsp.store(rsp, Relaxed);
    this.gs_base.store(gs_base(), Relaxed);
    let turn = Turn { turns, done, points };
    let end = u16::try_from(end).ok().and_then(StayEnd::from_code).unwrap_or(StayEnd::Due);
    match end {
        StayEnd::Due | StayEnd::Interrupted => this.stand(Standing::Ready, 0),
        StayEnd::Yield => this.stand(Standing::Waiting, turn.now() + turn.wait()),
        StayEnd::Idle => this.stand(Standing::Idle, turn.now() + turn.wait()),
        StayEnd::Dead => this.stand(Standing::Off, 0),
        StayEnd::Started => start(&turns.state.contexts[argument as usize], argument as u32),
    }
    let (next, interrupted) = turn.choose();
    if next != cpu || end == StayEnd::Started {
        turn.note(cpu, end, argument, rsp);
    }
    if interrupted {
        let rsp = turns.state.contexts[next].rsp.load(Relaxed);
        turn.note(next, StayEnd::Interrupted, VECTOR_TIMER.into(), rsp);
    }
    turn.decide(next)
}

/// A look at who runs next.
struct Turn {
    turns: &'static Turns,
    /// Steps by now.
    done: u64,
    /// Points by now.
    points: u64,
}

/// What a CPU can do at a moment.
#[derive(Clone, Copy, PartialEq)]
enum Ability {
    Able,
    /// Not before this moment.
    From(u64),
    /// Not by itself.
    Unable,
}

impl Turn {
    fn now(&self) -> u64 {
        self.done + shared::header().steps.skipped.load(Relaxed)
    }

    fn cpus(&self) -> impl Iterator<Item = usize> + use<> {
        0..shared::boot().possible as usize
    }

    /// The CPU that runs next, and whether it was interrupted. If none is able to, time passes until
    /// one is.
    fn choose(&self) -> (usize, bool) {
        let state = &self.turns.state;
        let mut interrupted = false;
        loop {
            let now = self.now();
            self.raise_timers(now);
            let command = state.command_due.load(Relaxed);
            if command != 0 && now >= command {
                state.command_due.store(0, Relaxed);
                raise(CONTROL_CPU as usize, VECTOR_COMMAND);
            }
            if now >= state.host_due.load(Relaxed) {
                // It says when it wants to be asked again, and may have raised an interrupt.
                self.ask_host(0);
                continue;
            }
            let Some(cpu) = self.highest(now) else {
                let moment = self.next_moment(now, None);
                if moment == NEVER {
                    self.ask_host(1);
                } else {
                    shared::header().steps.skipped.fetch_add(moment - now, Relaxed);
                }
                continue;
            };
            if let Some(change) = self.due_change(now) {
                interrupted |= self.apply(change, cpu);
                continue;
            }
            // An idle CPU without an interrupt runs because there is work, and is told so.
            let idle = state.contexts[cpu].standing() == Standing::Idle;
            let woken = idle && pending(cpu).is_some_and(|word| word == 0);
            if woken {
                raise_timer(cpu);
            }
            state.contexts[cpu].stand(Standing::Ready, 0);
            return (cpu, interrupted || woken);
        }
    }

    /// Raises the timer interrupts that are due.
    fn raise_timers(&self, now: u64) {
        for cpu in self.cpus() {
            let timer = &shared::control(cpu as u32).timer;
            let due = timer.load(Relaxed);
            let on = self.turns.state.contexts[cpu].standing() != Standing::Off;
            if due != 0 && due <= now && on {
                timer.store(0, Relaxed);
                raise_timer(cpu);
            }
        }
    }

    /// The next change of the schedule, if its time has come.
    fn due_change(&self, now: u64) -> Option<(ChangeKind, usize)> {
        let state = &self.turns.state;
        let next = state.next_change.load(Relaxed);
        let count = if state.at_points.load(Relaxed) != 0 { self.points } else { now };
        if next >= state.changes.load(Relaxed) {
            return None;
        }
        let slot = self.turns.changes.get(next as usize)?;
        if slot.at.load(Relaxed) > count {
            return None;
        }
        state.next_change.store(next + 1, Relaxed);
        let change = ChangeKind::from_code(slot.kind.load(Relaxed))?;
        Some((change, slot.cpu.load(Relaxed) as usize))
    }

    /// Does what the schedule says to `cpu`, which would run; whether that was interrupted.
    fn apply(&self, (change, other): (ChangeKind, usize), cpu: usize) -> bool {
        let state = &self.turns.state;
        match change {
            ChangeKind::Demote => {
                let priority = state.lowest.load(Relaxed) - 1;
                state.lowest.store(priority, Relaxed);
                state.contexts[cpu].priority.store(priority, Relaxed);
            }
            ChangeKind::Promote => {
                let priority = state.highest.load(Relaxed) + 1;
                state.highest.store(priority, Relaxed);
                if let Some(context) = state.contexts.get(other) {
                    context.priority.store(priority, Relaxed);
                }
            }
            ChangeKind::Interrupt => {
                let armed = shared::control(cpu as u32).timer.load(Relaxed) != 0;
                if armed {
                    raise_timer(cpu);
                }
                return armed;
            }
        }
        false
    }

    /// Of the CPUs that can run now the one that goes first.
    fn highest(&self, now: u64) -> Option<usize> {
        let mut best: Option<(i64, usize)> = None;
        let work = self.work_waits();
        for cpu in self.cpus() {
            let priority = self.turns.state.contexts[cpu].priority.load(Relaxed);
            if best.is_none_or(|(highest, _)| priority > highest)
                && self.ability(cpu, now, work) == Ability::Able
            {
                best = Some((priority, cpu));
            }
        }
        best.map(|(_, cpu)| cpu)
    }

    /// Whether there are more threads than CPUs at work.
    ///
    /// Idle CPUs look for threads when their timer interrupts them. So that they take turns like the
    /// others they can run earlier if there are threads for them.
    fn work_waits(&self) -> bool {
        let at_work = self.cpus().filter(|&cpu| {
            matches!(self.turns.state.contexts[cpu].standing(), Standing::Ready | Standing::Waiting)
        });
        shared::header().threads.load(Relaxed) as usize > at_work.count()
    }

    fn ability(&self, cpu: usize, now: u64, work_waits: bool) -> Ability {
        let context = &self.turns.state.contexts[cpu];
        let until = context.until.load(Relaxed);
        let from = |until: u64| if until <= now { Ability::Able } else { Ability::From(until) };
        match context.standing() {
            Standing::Off => Ability::Unable,
            Standing::Ready => Ability::Able,
            Standing::Waiting => from(until),
            Standing::Idle if pending(cpu).is_some_and(|word| word != 0) => Ability::Able,
            Standing::Idle if work_waits => from(until),
            Standing::Idle => Ability::Unable,
        }
    }

    /// The next moment at which something else than now may run: if `cpu` runs, of those that go
    /// before it.
    fn next_moment(&self, now: u64, cpu: Option<usize>) -> u64 {
        let state = &self.turns.state;
        let priority = |cpu: usize| state.contexts[cpu].priority.load(Relaxed);
        let mut moment = state.host_due.load(Relaxed);
        let command = state.command_due.load(Relaxed);
        if command != 0 {
            moment = moment.min(command);
        }
        let work = self.work_waits();
        for other in self.cpus() {
            if state.contexts[other].standing() == Standing::Off {
                continue;
            }
            let timer = shared::control(other as u32).timer.load(Relaxed);
            if timer != 0 {
                moment = moment.min(timer);
            }
            if let Ability::From(until) = self.ability(other, now, work)
                && cpu.is_none_or(|cpu| priority(other) > priority(cpu))
            {
                moment = moment.min(until);
            }
        }
        moment
    }

    /// Lets `cpu` run.
    fn decide(&self, cpu: usize) -> *const Decision {
        let state = &self.turns.state;
        let now = self.now();
        let mut moment = self.next_moment(now, Some(cpu));
        let mut point = NEVER;
        let next = state.next_change.load(Relaxed);
        if next < state.changes.load(Relaxed)
            && let Some(slot) = self.turns.changes.get(next as usize)
        {
            let at = slot.at.load(Relaxed);
            if state.at_points.load(Relaxed) != 0 {
                point = at;
            } else {
                moment = moment.min(at);
            }
        }
        let skipped = now - self.done;
        let context = &state.contexts[cpu];
        let decision = &state.decision;
        decision.rsp.store(context.rsp.load(Relaxed), Relaxed);
        decision.gs_base.store(context.gs_base.load(Relaxed), Relaxed);
        decision.next.store(moment.saturating_sub(skipped), Relaxed);
        decision.next_point.store(point, Relaxed);
        state.running.store(cpu as u64, Relaxed);
        decision
    }

    /// How long a CPU that waits is let be: each order of magnitude as often.
    fn wait(&self) -> u64 {
        let waits = &self.turns.state.waits;
        let mut rng = Rng::new(waits.load(Relaxed), self.done);
        waits.store(rng.next_u64(), Relaxed);
        let base = SHORTEST_WAIT << (rng.next_u64() % WAITS);
        base + rng.next_u64() % base
    }

    /// Calls the host, at a moment at which it sees no steps of the scheduler.
    fn ask_host(&self, argument: u64) {
        let steps = &shared::header().steps;
        steps.done.store(self.done, Relaxed);
        steps.points.store(self.points, Relaxed);
        doorbell::call(Doorbell::Switch, argument);
    }

    /// Notes for the host what `cpu` did, and where it stands by its stack pointer.
    fn note(&self, cpu: usize, end: StayEnd, argument: u64, rsp: u64) {
        let state = &self.turns.state;
        let n = state.noted.load(Relaxed);
        if n - state.read.load(Relaxed) >= MOST_STAYS as u64 {
            self.ask_host(0);
        }
        let slot = &self.turns.stays[(n % MOST_STAYS as u64) as usize];
        slot[0].store(self.done, Relaxed);
        slot[1].store(cpu as u64 | (end as u64) << 16 | argument << 32, Relaxed);
        for (i, site) in sites(rsp as usize).into_iter().enumerate() {
            slot[2 + i].store(site, Relaxed);
        }
        slot[7].store(self.now(), Relaxed);
        state.noted.store(n + 1, Relaxed);
    }
}

/// Where the CPU stands on whose stack [`SavedRegisters`] lie at `rsp`: return addresses.
fn sites(rsp: usize) -> [u64; SITES] {
    let mut sites = [0; SITES];
    let mut low = rsp + size_of::<SavedRegisters>();
    // SAFETY: the CPU has stopped, or is about to, and these are its registers.
    let saved = unsafe { with_exposed_provenance_mut::<SavedRegisters>(rsp).read() };
    let mut frame = saved.rbp as usize;
    for site in &mut sites {
        if frame < low || frame - low > MOST_FRAME || !frame.is_multiple_of(8) {
            break;
        }
        // SAFETY: a little above the stack pointer, so in memory that is mapped one to one, whatever
        // it holds. Reading there changes nothing.
        let [next, ret] = unsafe { with_exposed_provenance_mut::<[u64; 2]>(frame).read_volatile() };
        *site = ret;
        low = frame + 16;
        frame = next as usize;
    }
    sites
}

/// What is pending on `cpu`, which says where that is noted when it comes up.
fn pending(cpu: usize) -> Option<u64> {
    pending_word(cpu).map(|word| {
        // SAFETY: the word is the CPU's copy of a live variable, and nobody else runs.
        unsafe { word.read_volatile() }
    })
}

fn raise_timer(cpu: usize) {
    raise(cpu, VECTOR_TIMER);
}

fn raise(cpu: usize, vector: u8) {
    if let Some(word) = pending_word(cpu) {
        let bit = 1u64 << (u32::from(vector) - FIRST_VECTOR);
        // SAFETY: as in `pending`.
        unsafe { word.write_volatile(word.read_volatile() | bit) };
    }
}

fn pending_word(cpu: usize) -> Option<*mut u64> {
    let address = shared::control(cpu as u32).pending.load(Relaxed) as usize;
    (address != 0).then(|| with_exposed_provenance_mut(address))
}

/// Puts a CPU at its beginning, as its tables say it.
fn start(context: &Context, cpu: u32) {
    let (stack, gs_base) = tables::start_of(cpu);
    let at = (stack as usize & !15) - size_of::<SavedRegisters>();
    let first =
        SavedRegisters { r12: cpu.into(), rip: steps::first_instruction(), ..Default::default() };
    // SAFETY: the stack is the CPU's own, and it does not run.
    unsafe { with_exposed_provenance_mut::<SavedRegisters>(at).write(first) };
    context.rsp.store(at as u64, Relaxed);
    context.gs_base.store(gs_base, Relaxed);
    context.stand(Standing::Ready, 0);
}

fn gs_base() -> u64 {
    let base;
    // SAFETY: reads a register; CR4.FSGSBASE is set.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}
