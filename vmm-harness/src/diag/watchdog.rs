//! The watchdog: sees which CPU stands still for longer than it may.

use std::time::Duration;

use percpu_guest::abi::CpuState;

/// How long a CPU may make no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// While it runs threads: time without a timer interrupt.
    pub online: Duration,
    /// On its way up or down: time in the same state.
    pub transition: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { online: Duration::from_secs(5), transition: Duration::from_secs(10) }
    }
}

/// What one CPU says of itself at one poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its state.
    pub state: CpuState,
    /// Its heartbeat.
    pub heartbeat: u64,
}

/// A CPU that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The CPU.
    pub cpu: u32,
    /// Its state.
    pub state: CpuState,
    /// Since how long.
    pub since: Duration,
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, state, since } = self;
        let what = match state {
            CpuState::Online => "its heartbeat has not moved",
            _ => "it has not left this state",
        };
        write!(f, "CPU {cpu} ({state:?}) stands still: {what} for {:.1} s", since.as_secs_f64())
    }
}

/// Watches all CPUs. It has no clock of its own: the caller says what time it is.
#[derive(Clone, Debug)]
pub struct Watchdog {
    limits: Limits,
    last: Vec<Option<(Sample, Duration)>>,
}

impl Watchdog {
    /// A watchdog over CPUs `0..possible`.
    pub fn new(limits: Limits, possible: u32) -> Self {
        Self { limits, last: vec![None; possible as usize] }
    }

    /// Takes a sample of each CPU at time `now` and returns those that have stood still for too
    /// long.
    pub fn poll(&mut self, now: Duration, samples: &[Sample]) -> Vec<Stuck> {
        let mut stuck = Vec::new();
        for (cpu, (last, sample)) in (0u32..).zip(self.last.iter_mut().zip(samples)) {
            let moved = match last {
                Some((before, _)) => before.state != sample.state || progresses(before, sample),
                None => true,
            };
            if moved {
                *last = Some((*sample, now));
                continue;
            }
            let limit = match sample.state {
                CpuState::Online => self.limits.online,
                CpuState::Starting | CpuState::Dying => self.limits.transition,
                CpuState::Offline | CpuState::Dead | CpuState::Crashed => continue,
            };
            let since = now.saturating_sub(last.map_or(now, |(_, at)| at));
            if since > limit {
                stuck.push(Stuck { cpu, state: sample.state, since });
            }
        }
        stuck
    }
}

/// Whether the heartbeat counts as progress: on the way up or down it does not.
fn progresses(before: &Sample, now: &Sample) -> bool {
    now.state == CpuState::Online && before.heartbeat != now.heartbeat
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn sample(state: CpuState, heartbeat: u64) -> Sample {
        Sample { state, heartbeat }
    }

    #[test]
    fn the_cpu_whose_heartbeat_stands_still_is_named() {
        let mut dog = Watchdog::new(Limits { online: S(2), transition: S(4) }, 2);
        for t in 0..=2 {
            let beat = [sample(CpuState::Online, t), sample(CpuState::Online, 7)];
            assert_eq!(dog.poll(S(t), &beat), []);
        }
        let beat = [sample(CpuState::Online, 3), sample(CpuState::Online, 7)];
        assert_eq!(dog.poll(S(3), &beat), [Stuck { cpu: 1, state: CpuState::Online, since: S(3) }]);
    }

    #[test]
    fn a_heartbeat_is_no_progress_on_the_way_down() {
        let mut dog = Watchdog::new(Limits { online: S(1), transition: S(4) }, 1);
        for t in 0..=4 {
            assert_eq!(dog.poll(S(t), &[sample(CpuState::Dying, t)]), []);
        }
        assert_eq!(dog.poll(S(5), &[sample(CpuState::Dying, 5)]).len(), 1);
    }

    #[test]
    fn cpus_that_are_down_may_rest() {
        let mut dog = Watchdog::new(Limits::default(), 3);
        let down = [CpuState::Offline, CpuState::Dead, CpuState::Crashed].map(|s| sample(s, 0));
        dog.poll(S(0), &down);
        assert_eq!(dog.poll(S(1000), &down), []);
    }

    #[test]
    fn a_new_state_begins_a_new_time() {
        let mut dog = Watchdog::new(Limits { online: S(2), transition: S(2) }, 1);
        dog.poll(S(0), &[sample(CpuState::Starting, 0)]);
        dog.poll(S(2), &[sample(CpuState::Online, 0)]);
        assert_eq!(dog.poll(S(4), &[sample(CpuState::Online, 0)]), []);
        assert_eq!(dog.poll(S(5), &[sample(CpuState::Online, 0)]).len(), 1);
    }
}
