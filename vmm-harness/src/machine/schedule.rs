//! Who runs next, and up to which step.

use serde::{Deserialize, Serialize};

use super::random::Random;
use super::scenario::{Scenario, Strategy, Unit};

/// Steps for which a CPU that waits in a loop is let be, from this number on.
const SHORTEST_WAIT: u64 = 256;
/// Orders of magnitude (doublings) of those steps.
const WAITS: u64 = 7;
/// No switch point.
pub(super) const NEVER: u64 = u64::MAX;

/// A CPU's turn, which lasts until the next one or until it cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// The moment from which the CPU runs.
    pub at: u64,
    /// The CPU.
    pub cpu: u32,
    /// The CPU before was made to stop, at a step. Else it gave way by itself, or called the host.
    pub forced: bool,
    /// How often CPUs had called by then at that very moment: they can without a step in between.
    pub calls: u32,
    /// It is interrupted by its timer first: where it stands, and before its time.
    pub interrupted: bool,
}

/// Chooses CPUs and switch points, out of the seed and of what the guest has done so far.
#[derive(Clone, Debug)]
pub(super) struct Scheduler {
    random: Random,
    /// Of its own, so that waits are the same where turns are given.
    waits: Random,
    turns: Turns,
    /// What was chosen.
    chosen: Vec<Turn>,
    /// The moment of the last choice, and how often CPUs have called at it.
    moment: (u64, u32),
}

#[derive(Clone, Debug)]
enum Turns {
    /// While the guest boots: the lowest CPU that can run, until it gives way.
    Boot,
    Pct {
        /// By CPU; the highest runs.
        priorities: Vec<i64>,
        /// The next priority below all others.
        lowest: i64,
        /// When something happens to the CPU that runs, last first.
        changes: Vec<(u64, Change)>,
        unit: Unit,
    },
    /// As they are given; the lowest CPU where the one whose turn it is cannot run.
    Fixed { turns: Vec<Turn>, next: usize },
    Walk {
        turn: u64,
        unit: Unit,
        /// When the turn ends.
        end: u64,
        /// Whose turn it is.
        cpu: Option<u32>,
    },
}

/// What happens to the CPU that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// It gets the lowest priority.
    Demoted,
    /// Its timer interrupts it, so that its thread may go on elsewhere.
    Interrupted,
}

/// One turn in so many of a walk begins with an interrupt.
const INTERRUPTED: u64 = 3;

impl Scheduler {
    /// The scheduler of a guest that boots.
    pub(super) fn boot() -> Self {
        Self::with(0, Turns::Boot)
    }

    fn with(seed: u64, turns: Turns) -> Self {
        Self {
            random: Random::new(seed, 1),
            waits: Random::new(seed, 2),
            moment: (0, 0),
            turns,
            chosen: Vec::new(),
        }
    }

    /// The scheduler of a scenario, which begins at moment `now` and that many points.
    pub(super) fn new(scenario: &Scenario, now: u64, points: u64) -> Self {
        let mut random = Random::new(scenario.seed, 1);
        let cpus = scenario.topology.possible;
        let turns = match &scenario.strategy {
            Strategy::Fixed(turns) => Turns::Fixed { turns: turns.clone(), next: 0 },
            &Strategy::Pct { changes, unit } => {
                let mut priorities: Vec<_> = (0..i64::from(cpus)).collect();
                for i in (1..priorities.len()).rev() {
                    priorities.swap(i, random.below(i as u64 + 1) as usize);
                }
                let (length, now) = match unit {
                    Unit::Steps => (scenario.expected_steps(), now),
                    Unit::Points => (scenario.expected_points(), points),
                };
                let kind = |random: &mut Random| {
                    if random.one_in(2) { Change::Demoted } else { Change::Interrupted }
                };
                let mut changes: Vec<_> = (0..changes)
                    .map(|_| (now + 1 + random.below(length), kind(&mut random)))
                    .collect();
                changes.sort_unstable_by(|a, b| b.cmp(a));
                Turns::Pct { priorities, lowest: -1, changes, unit }
            }
            &Strategy::Walk { turn, unit } => Turns::Walk { turn, unit, end: 0, cpu: None },
        };
        Self { random, ..Self::with(scenario.seed, turns) }
    }

    /// Which of the CPUs in `able` (not empty, ascending) runs from moment `now` and point `point`.
    /// `forced` says that the CPU before was made to stop there.
    pub(super) fn pick(&mut self, able: &[u32], now: u64, point: u64, forced: bool) -> Turn {
        let calls = if self.moment.0 == now { self.moment.1 } else { 0 } + u32::from(!forced);
        self.moment = (now, calls);
        let (cpu, interrupted) = self.choose(able, now, point);
        let turn = Turn { at: now, cpu, forced, calls, interrupted };
        if interrupted || self.chosen.last().is_none_or(|last| last.cpu != cpu) {
            self.chosen.push(turn);
        }
        turn
    }

    /// The turns so far.
    pub(super) fn into_turns(self) -> Vec<Turn> {
        self.chosen
    }

    /// A CPU, and whether it is interrupted.
    fn choose(&mut self, able: &[u32], now: u64, point: u64) -> (u32, bool) {
        let count = |unit: Unit| if unit == Unit::Steps { now } else { point };
        match &mut self.turns {
            Turns::Boot => (able[0], false),
            Turns::Pct { priorities, lowest, changes, unit } => {
                let now = count(*unit);
                let highest = |priorities: &[i64]| {
                    able.iter().copied().max_by_key(|&cpu| priorities[cpu as usize])
                };
                let mut cpu = highest(priorities).expect("some CPU is able to run");
                let mut interrupted = false;
                while let Some((_, change)) = changes.pop_if(|(at, _)| *at <= now) {
                    match change {
                        Change::Interrupted => interrupted = true,
                        Change::Demoted => {
                            priorities[cpu as usize] = *lowest;
                            *lowest -= 1;
                            cpu = highest(priorities).expect("some CPU is able to run");
                        }
                    }
                }
                (cpu, interrupted)
            }
            Turns::Fixed { turns, next } => {
                // More than one if the run is another one than that which the turns are from.
                let before = *next;
                while turns.get(*next).is_some_and(|turn| (turn.at, turn.calls) <= self.moment) {
                    *next += 1;
                }
                let begins = *next > before;
                let turn = next.checked_sub(1).map(|last| turns[last]);
                match turn.filter(|turn| able.contains(&turn.cpu)) {
                    Some(turn) => (turn.cpu, turn.interrupted && begins),
                    None => (able[0], false),
                }
            }
            Turns::Walk { turn, unit, end, cpu } => {
                let now = count(*unit);
                if let Some(cpu) = cpu.filter(|cpu| now < *end && able.contains(cpu)) {
                    return (cpu, false);
                }
                // From none to twice the average.
                *end = now + 1 + self.random.below(2 * *turn);
                let next = able[self.random.below(able.len() as u64) as usize];
                *cpu = Some(next);
                (next, self.random.one_in(INTERRUPTED))
            }
        }
    }

    /// The moment and the point at which [`pick`](Self::pick) is to be asked again, if nothing else
    /// happens.
    pub(super) fn next_switch(&self) -> (u64, u64) {
        let at = |unit: Unit, count| match unit {
            Unit::Steps => (count, NEVER),
            Unit::Points => (NEVER, count),
        };
        match &self.turns {
            Turns::Boot => (NEVER, NEVER),
            Turns::Pct { changes, unit, .. } => {
                at(*unit, changes.last().map_or(NEVER, |(at, _)| *at))
            }
            Turns::Fixed { turns, next } => {
                let forced = turns[*next..].iter().find(|turn| turn.forced);
                (forced.map_or(NEVER, |turn| turn.at), NEVER)
            }
            Turns::Walk { end, unit, .. } => at(*unit, *end),
        }
    }

    /// Whether `other` is to run before `cpu` as soon as it is able to.
    pub(super) fn precedes(&self, other: u32, cpu: u32) -> bool {
        match &self.turns {
            Turns::Pct { priorities, .. } => priorities[other as usize] > priorities[cpu as usize],
            _ => false,
        }
    }

    /// For how many steps a CPU that waits for another one in a loop is let be. It is asked for by
    /// every turn of such a loop.
    pub(super) fn wait(&mut self) -> u64 {
        match self.turns {
            Turns::Boot => SHORTEST_WAIT << WAITS,
            _ => self.waits.magnitude(SHORTEST_WAIT, WAITS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(strategy: Strategy) -> Scenario {
        Scenario { strategy, ..Scenario::from_seed(1) }
    }

    #[test]
    fn pct_runs_one_cpu_until_a_change_and_no_longer() {
        let all = [0, 1, 2, 3];
        let (mut demoted, mut interrupted) = (0, 0);
        for seed in 0..50 {
            let mut scenario = scenario(Strategy::Pct { changes: 2, unit: Unit::Steps });
            scenario.topology.possible = 4;
            scenario.seed = seed;
            let mut scheduler = Scheduler::new(&scenario, 100, 0);
            let mut turn = scheduler.pick(&all, 100, 0, true);
            let mut change = scheduler.next_switch().0;
            for _ in 0..2 {
                assert!(change > 100 && change != NEVER);
                assert_eq!(scheduler.pick(&all, change - 1, 0, true).cpu, turn.cpu);
                let next = scheduler.pick(&all, change, 0, true);
                let again = scheduler.next_switch().0;
                if again != change {
                    // Either it goes on, interrupted, or another one does.
                    assert_eq!(next.interrupted, next.cpu == turn.cpu);
                    demoted += u32::from(!next.interrupted);
                    interrupted += u32::from(next.interrupted);
                }
                (turn, change) = (next, again);
            }
            assert_eq!(scheduler.next_switch().0, NEVER);
            // Whoever is able to run runs, wherever it stands.
            assert_eq!(scheduler.pick(&[2], u64::MAX - 1, 0, true).cpu, 2);
        }
        assert!(demoted > 20 && interrupted > 20, "{demoted} and {interrupted}");
    }

    #[test]
    fn a_walk_gives_every_cpu_turns_that_end() {
        let mut scheduler =
            Scheduler::new(&scenario(Strategy::Walk { turn: 50, unit: Unit::Points }), 0, 0);
        let (mut now, mut turns) = (0, [0; 3]);
        for _ in 0..300 {
            turns[scheduler.pick(&[0, 1, 2], 7, now, true).cpu as usize] += 1;
            let (never, end) = scheduler.next_switch();
            assert_eq!(never, NEVER);
            assert!(end > now && end <= now + 100);
            now = end;
        }
        assert!(turns.iter().all(|&turns| turns > 50), "{turns:?}");
    }

    #[test]
    fn turns_that_were_chosen_can_be_given() {
        let mut scheduler =
            Scheduler::new(&scenario(Strategy::Walk { turn: 50, unit: Unit::Points }), 0, 0);
        // Each moment comes twice, and other CPUs are able to run then.
        let picks = |scheduler: &mut Scheduler| -> Vec<_> {
            let pick = |i: u64| {
                let able: &[u32] = if i.is_multiple_of(7) { &[1] } else { &[0, 2] };
                scheduler.pick(able, i / 2 * 60, i / 2 * 20, false)
            };
            (0..200).map(pick).collect()
        };
        let chosen = picks(&mut scheduler);
        let given = Strategy::Fixed(scheduler.into_turns());
        let again = picks(&mut Scheduler::new(&scenario(given), 0, 0));
        assert_eq!(chosen, again);
    }
}
