//! Looking for a smaller scenario that fails in the same way.
//!
//! A scenario with one thing less seldom fails as it is: an operation that is missing moves all that
//! follows to other steps, and a change of the schedule then strikes somewhere else. So besides
//! [`cuts`] there are searches: a scenario that was cut is run with changes that were moved, and with
//! others altogether. What is small runs in a millisecond, and a short run with few changes has few
//! places for them, so this finds the race again where it is still there.
//!
//! At first nothing is searched, then more and more, until much effort makes nothing smaller.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::cuts;
use super::size::size;
use crate::error::Error;
use crate::machine::{Change, Plug, Random, Scenario, Schedule, Span, Unit, What};

/// Searches of a scenario that was cut, from one round to the next if nothing is found.
const EFFORTS: [u32; 5] = [0, 8, 48, 256, 1024];
/// Changes of a schedule that is made up, at most.
const FEW: u64 = 6;
/// Schedules with few changes that are tried where the first has many.
const AFRESH: u32 = 100;
/// How far apart changes are that belong together: doublings.
const NEAR: u64 = 10;
/// How far a change is moved: doublings.
const FAR: u64 = 14;

/// What is known of a run.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    /// It fails in the way that is looked for.
    pub fails: bool,
    /// The schedule as far as it came.
    pub schedule: Schedule,
    /// How long it took.
    pub length: Span,
}

/// A search under way.
pub(super) struct Search<R> {
    /// Runs a scenario; `None` if there is to be no other run.
    run: R,
    /// The smallest that fails so far.
    best: Scenario,
    length: Span,
    random: Random,
    /// What was tried, by hash.
    tried: HashSet<u64>,
    /// Searches of a scenario that was cut.
    effort: u32,
    over: bool,
}

impl<R: FnMut(&Scenario) -> Result<Option<Ran>, Error>> Search<R> {
    /// Begins with a scenario that fails, whose schedule is given.
    pub(super) fn new(scenario: Scenario, length: Span, run: R) -> Self {
        let random = Random::new(scenario.seed, 5);
        let tried = HashSet::new();
        Self { run, best: scenario, length, random, tried, effort: 0, over: false }
    }

    /// Makes it as small as can be; returns what is left.
    pub(super) fn smallest(mut self) -> Result<Scenario, Error> {
        if self.changes() as u64 > FEW {
            self.make_up_schedules(AFRESH)?;
        }
        // What kinds of changes it takes says where to search.
        self.cut_changes()?;
        let mut round = 0;
        while !self.over && round < EFFORTS.len() {
            self.effort = EFFORTS[round];
            let before = size(&self.best);
            self.round()?;
            // After a little the next is easy again.
            round = if size(&self.best) < before { round.saturating_sub(1) } else { round + 1 };
        }
        Ok(self.best)
    }

    fn round(&mut self) -> Result<(), Error> {
        // The first makes all other runs shorter.
        self.cut_operations()?;
        self.cut_workloads()?;
        self.cut_cpus()?;
        self.cut_plugs()?;
        self.cut_changes()?;
        self.simplify()
    }

    /// Takes `candidate` if it is smaller and fails in the same way; whether it did.
    fn attempt(&mut self, candidate: Scenario) -> Result<bool, Error> {
        if self.over || size(&candidate) >= size(&self.best) || candidate.check().is_err() {
            return Ok(false);
        }
        let mut hash = DefaultHasher::new();
        candidate.hash(&mut hash);
        if !self.tried.insert(hash.finish()) {
            return Ok(false);
        }
        let Some(ran) = (self.run)(&candidate)? else {
            self.over = true;
            return Ok(false);
        };
        if ran.fails {
            self.best = cuts::with_schedule(&candidate, |schedule| *schedule = ran.schedule);
            self.length = ran.length;
        }
        Ok(ran.fails)
    }

    /// As [`attempt`](Self::attempt), and if that fails searches for a like scenario that does.
    fn cut(&mut self, candidate: Option<Scenario>) -> Result<bool, Error> {
        let Some(candidate) = candidate else { return Ok(false) };
        if self.attempt(candidate.clone())? {
            return Ok(true);
        }
        for _ in 0..self.effort {
            if self.over {
                break;
            }
            let varied = match self.random.below(3) {
                0 => self.moved(&candidate),
                _ => self.made_up(&candidate, FEW),
            };
            if self.attempt(varied)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn cut_workloads(&mut self) -> Result<(), Error> {
        for i in (0..self.best.workloads.len()).rev() {
            if self.best.workloads.len() > 1 {
                let mut fewer = self.best.clone();
                fewer.workloads.remove(i);
                self.cut(Some(fewer))?;
            }
        }
        while self.best.threads > 1 {
            let threads = self.best.threads - 1;
            if !self.cut(Some(Scenario { threads, ..self.best.clone() }))? {
                break;
            }
        }
        Ok(())
    }

    fn cut_cpus(&mut self) -> Result<(), Error> {
        for cpu in (1..self.best.topology.possible).rev() {
            self.cut(cuts::without_cpu(&self.best, cpu))?;
        }
        for with_plug in [true, false] {
            self.cut(cuts::without_boot_cpu(&self.best, with_plug))?;
        }
        Ok(())
    }

    fn cut_plugs(&mut self) -> Result<(), Error> {
        self.cut(cuts::without_first_plug_in(&self.best))?;
        for i in (0..self.best.plugs.len()).rev() {
            // Others may have gone with one.
            if i < self.best.plugs.len() && !self.cut(cuts::without_two_plugs(&self.best, i))? {
                self.cut(Some(cuts::without_plug(&self.best, i)))?;
            }
        }
        for i in 0..self.best.plugs.len() {
            let mut other = self.best.clone();
            if other.plugs[i].fail.take().is_some() {
                self.cut(Some(other))?;
            }
        }
        Ok(())
    }

    /// In ever smaller steps.
    fn cut_operations(&mut self) -> Result<(), Error> {
        let mut step = self.best.operations.saturating_sub(1);
        while step > 0 {
            let operations = self.best.operations.saturating_sub(step);
            let fewer = Scenario { operations, ..self.best.clone() };
            if operations == 0 || !self.cut(Some(fewer))? {
                step /= 2;
            }
        }
        Ok(())
    }

    /// Delta debugging (Zeller, Hildebrandt, 2002) on the schedule: runs of changes, of ever smaller
    /// length. Then others, fewer than these.
    fn cut_changes(&mut self) -> Result<(), Error> {
        let mut length = self.changes();
        while length > 0 {
            let mut start = 0;
            while start < self.changes() {
                if !self.attempt(cuts::without_changes(&self.best, start, length))? {
                    start += length;
                }
            }
            length /= 2;
        }
        self.make_up_schedules(self.effort)
    }

    /// Tries schedules with fewer changes than there are.
    fn make_up_schedules(&mut self, n: u32) -> Result<(), Error> {
        for _ in 0..n {
            let fewer = self.changes().saturating_sub(1) as u64;
            if self.over || self.changes() == 0 {
                break;
            }
            let candidate = match self.random.below(4) {
                // One of those there are is left out, and the others are moved.
                0 => {
                    let left_out = self.random.below(fewer + 1) as usize;
                    self.moved(&cuts::without_changes(&self.best, left_out, 1))
                }
                _ => self.made_up(&self.best.clone(), fewer.min(FEW)),
            };
            self.attempt(candidate)?;
        }
        Ok(())
    }

    /// Makes plain what can be plain.
    fn simplify(&mut self) -> Result<(), Error> {
        for tick_us in [Scenario::LONGEST_TICK_US, 100_000, 10_000, 1000] {
            self.attempt(Scenario { tick_us, ..self.best.clone() })?;
        }
        for i in 0..self.best.plugs.len() {
            // From nothing upwards, in doublings, with what follows as much earlier.
            for after in [0].into_iter().chain((6..27).map(|bits| 1 << bits)) {
                let now = self.best.plugs[i].after;
                if after >= now {
                    break;
                }
                let mut sooner = self.best.clone();
                sooner.plugs[i].after = after;
                if self.attempt(cuts::earlier(&sooner, now - after))? || self.attempt(sooner)? {
                    break;
                }
            }
        }
        let in_order = |schedule: &mut Schedule| schedule.order.sort_unstable();
        self.attempt(cuts::with_schedule(&self.best, in_order))?;
        if self.changes() == 0 {
            let of_nothing = |schedule: &mut Schedule| schedule.unit = Unit::Points;
            self.attempt(cuts::with_schedule(&self.best, of_nothing))?;
        }
        self.attempt(cuts::with_schedule(&self.best, |schedule| schedule.waits = 0))?;
        for i in 0..self.changes() {
            let demote = |schedule: &mut Schedule| schedule.changes[i].what = What::Demote;
            self.attempt(cuts::with_schedule(&self.best, demote))?;
        }
        Ok(())
    }

    fn changes(&self) -> usize {
        cuts::schedule(&self.best).changes.len()
    }

    /// The same with its changes and plugs a little earlier or later: all by as much, or some.
    fn moved(&mut self, scenario: &Scenario) -> Scenario {
        let random = &mut self.random;
        let together = random.one_in(2).then(|| (random.one_in(4), random.magnitude(1, FAR)));
        let mut moved = cuts::with_schedule(scenario, |schedule| {
            for change in &mut schedule.changes {
                if together.is_none() && random.one_in(2) {
                    continue;
                }
                let (later, by) =
                    together.unwrap_or_else(|| (random.one_in(2), random.magnitude(1, FAR)));
                change.at = match later {
                    true => change.at.saturating_add(by),
                    false => change.at.saturating_sub(by),
                };
            }
            schedule.changes.sort_by_key(|change| change.at);
        });
        self.move_plugs(&mut moved);
        moved
    }

    /// The same with a schedule of `most` changes or fewer anywhere, and perhaps with another seed.
    fn made_up(&mut self, scenario: &Scenario, most: u64) -> Scenario {
        let random = &mut self.random;
        let unit = if random.one_in(4) { Unit::Steps } else { Unit::Points };
        // Those that it took so far are likely to be what it takes.
        let known: Vec<_> = cuts::schedule(scenario).changes.iter().map(|c| c.what).collect();
        let known = Some(known).filter(|known| !known.is_empty() && random.one_in(2));
        let (cpus, length) = (scenario.topology.possible, self.length.of(unit).max(1));
        let mut at = 0;
        let mut changes: Vec<_> = (0..random.between(0, most))
            .map(|_| {
                // Near the one before, often: changes that matter are about one thing.
                at = match at != 0 && random.one_in(2) {
                    true => at + random.magnitude(1, NEAR),
                    false => 1 + random.below(length + length / 8 + 1),
                };
                let what = match (&known, random.below(4)) {
                    (Some(known), _) => known[random.below(known.len() as u64) as usize],
                    (None, 0) => What::Interrupt,
                    (None, 1) => What::Promote(random.below(cpus.into()) as u32),
                    (None, _) => What::Demote,
                };
                Change { at, what }
            })
            .collect();
        changes.sort_by_key(|change| change.at);
        let other_seed = random.one_in(3).then(|| random.below(1 << 32));
        let mut made_up = cuts::with_schedule(scenario, |schedule| {
            (schedule.unit, schedule.changes) = (unit, changes);
            schedule.order.sort_unstable();
            if random.one_in(2) {
                for i in (1..schedule.order.len()).rev() {
                    schedule.order.swap(i, random.below(i as u64 + 1) as usize);
                }
            }
            if random.one_in(2) {
                schedule.waits = 0;
            }
        });
        made_up.seed = other_seed.unwrap_or(scenario.seed);
        self.move_plugs(&mut made_up);
        made_up
    }

    /// Half the time gives plugs at other moments.
    fn move_plugs(&mut self, scenario: &mut Scenario) {
        if self.random.one_in(2) {
            return;
        }
        for Plug { after, .. } in &mut scenario.plugs {
            *after = match self.random.below(4) {
                0 => *after,
                1 => 0,
                2 => self.random.magnitude(1, FAR),
                _ => self.random.below(self.length.steps + 1),
            };
        }
    }
}
