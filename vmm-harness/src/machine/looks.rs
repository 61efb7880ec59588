//! Everything that the deterministic machine reads of its guest in a run, without one.

use percpu_guest::abi::{Event, MAX_CPUS, Stay};

use super::contents::Contents;
use super::cpus::{Clock, Cpus};
use super::{Ending, Entry, Outcome, Scenario, Schedule, Span, Trace};
use crate::coverage::Features;
use crate::diag::backtrace;
use crate::error::Error;
use crate::memory::GuestMem;

/// What is copied when a guest has booted, and put back.
pub(crate) struct Booted(Contents);

impl Booted {
    /// Of a guest with so many bytes of memory whose image may write these parts.
    pub(crate) fn look(
        mem: &GuestMem,
        writable: &[std::ops::Range<u64>],
        size: u64,
    ) -> Result<Self, Error> {
        Contents::take(mem, writable, 4, size).map(Self)
    }

    /// Puts back all that the guest does not.
    pub(crate) fn put_back(&self) -> Result<(), Error> {
        let (now, differ) = self.0.tables_that_differ()?;
        assert!(differ.len() <= now.len());
        Ok(self.0.put_back(&now)?)
    }
}

/// How long a scenario may take, in all ways that are asked for.
pub(crate) fn limits(scenario: &Scenario) -> [u64; 3] {
    [scenario.expected_steps(), scenario.expected_points(), scenario.most_steps()]
}

/// What would be made of a run of a scenario that left this in memory.
pub(crate) fn after_run(
    mem: &GuestMem,
    scenario: &Scenario,
    events: Vec<Event>,
    ending: Ending,
) -> Result<(Outcome, Vec<Option<Stay>>), Error> {
    let (cpus, clock) = (Cpus::new(mem.clone()), Clock::new(mem.clone()));
    let mut schedule = Schedule::of(scenario);
    cpus.follow(&schedule, clock.now()?, clock.points()?)?;
    let mut trace = Trace::default();
    let mut stays = Vec::new();
    for event in events {
        cpus.take_stays(&mut stays)?;
        stays.drain(..).for_each(|stay| trace.push(Entry::Stay(stay)));
        trace.push(Entry::Event(event));
    }
    cpus.take_stays(&mut stays)?;
    stays.iter().for_each(|stay| trace.push(Entry::Stay(*stay)));
    let running = cpus.running()?;
    let mut stands = Vec::new();
    for cpu in (0..MAX_CPUS as u32).chain([running]) {
        let Ok(Some(registers)) = cpus.registers(cpu) else { continue };
        let regs = registers.regs;
        stands = backtrace(mem, regs.rip, regs.rbp, regs.rsp).iter().map(|f| f.rip).collect();
    }
    schedule.changes.truncate(cpus.changes_done()? as usize);
    cpus.ask_at(clock.now()?)?;
    cpus.command_at(clock.steps()?)?;
    let mut features = Features::new();
    features.note_stays(trace.stays().map(|stay| (stay.cpu.into(), stay.sites[0])));
    let strikes = trace.stays().map(|stay| Some(*stay)).take(schedule.changes.len()).collect();
    let outcome = Outcome {
        ending,
        steps: clock.steps()?,
        points: clock.points()?,
        last: (running, stands),
        length: Span { steps: clock.now()?, points: clock.points()? },
        bells: 1,
        plugs: 0,
        failed_plugs: 0,
        checks: 0,
        features,
        reset: std::time::Duration::ZERO,
        trace,
        schedule,
    };
    Ok((outcome, strikes))
}
