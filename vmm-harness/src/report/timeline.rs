//! What happened in a run, over time: what each CPU was in, what it worked on, and how much there was
//! of everything.
//!
//! A timeline has a bounded size, however long the run: what is recent is kept in full, what is older
//! in stretches of equal length that grow with the run, and of samples every second one is dropped
//! when there are too many.

use std::collections::VecDeque;

use percpu_guest::abi::CpuState;
use serde::Serialize;

/// Spans of a CPU that are kept in full.
const MOST_SPANS: usize = 480;
/// Stretches in which older ones are summed up.
const MOST_STRETCHES: usize = 240;
/// Samples, at most, and the numbers in all of them together.
const MOST_SAMPLES: usize = 300;
const MOST_NUMBERS: usize = 30_000;
/// Seconds between two samples at first.
const FIRST_INTERVAL: f64 = 0.02;
/// Seconds of a stretch at first.
const FIRST_STRETCH: f64 = 0.05;

/// Seconds that the guest's clock and the host's can be apart; more is no time.
const FARTHEST: f64 = 10.0;

/// What a CPU is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not there, or dead and parked.
    Off,
    /// It was ordered to come up, and others prepare that.
    Preparing,
    /// It runs its STARTING steps.
    Starting,
    /// It is online.
    Online,
    /// It was ordered to go down, and undoes its ONLINE steps; threads may run meanwhile.
    Leaving,
    /// It takes itself down, with interrupts masked.
    Dying,
    /// It is dead, and others clear up behind it.
    Dead,
    /// An order that was not fulfilled: what was done was rolled back.
    Failed,
    /// It crashed.
    Crashed,
}

impl Phase {
    /// All, in the order of a CPU's life.
    pub const ALL: [Self; 9] = [
        Self::Off,
        Self::Preparing,
        Self::Starting,
        Self::Online,
        Self::Leaving,
        Self::Dying,
        Self::Dead,
        Self::Failed,
        Self::Crashed,
    ];

    fn of(state: CpuState) -> Self {
        match state {
            CpuState::Offline => Self::Off,
            CpuState::Starting => Self::Starting,
            CpuState::Online => Self::Online,
            CpuState::Dying => Self::Dying,
            CpuState::Dead => Self::Dead,
            CpuState::Crashed => Self::Crashed,
        }
    }
}

/// A stretch of time that a CPU was in one phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Span {
    /// Its beginning, in seconds.
    pub from: f64,
    /// Its end.
    pub to: f64,
    /// The phase; never [`Phase::Off`], which is what is between spans.
    pub phase: Phase,
    /// Of [`Phase::Failed`]: what failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The sum of what a CPU was in during a stretch of time long ago.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stretch {
    /// Seconds online.
    pub online: f64,
    /// Seconds on the way up or down.
    pub moving: f64,
    /// Times that it came up.
    pub ups: u32,
    /// Orders that failed.
    pub failed: u32,
}

/// A CPU over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuLane {
    /// The CPU.
    pub cpu: u32,
    /// What is long ago, from the beginning on, each [`Timeline::stretch_seconds`] long.
    pub older: Vec<Stretch>,
    /// What came then, in full.
    pub spans: Vec<Span>,
}

/// How much there was of everything at a moment. What is counted is counted from the beginning.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds since the guest had booted.
    pub at: f64,
    /// CPUs online.
    pub online: u32,
    /// Orders fulfilled so far.
    pub plugs: u64,
    /// Those that failed.
    pub failed_plugs: u64,
    /// Objects that the judge held against invariants.
    pub checks: u64,
    /// Quiescent points.
    pub quiets: u64,
    /// Trials.
    pub trials: u64,
    /// Live areas of the allocator.
    pub areas: u64,
    /// Bytes of these, as asked for.
    pub bytes: u64,
    /// The allocator's chunks.
    pub chunks: u64,
    /// Populated pages that nothing is in.
    pub empty_pages: u64,
    /// Page frames behind all chunks, of all CPUs together.
    pub frames: u64,
    /// Atomic allocations that found no populated room, so far.
    pub atomic_failures: u64,
    /// Times that the balance work was done.
    pub balances: u64,
    /// Live counters.
    pub counters: u64,
    /// Conserved sums that are no counters.
    pub sums: u64,
    /// By CPU, operations of each workload of [`Timeline::workloads`] that ended there.
    pub ops: Vec<Vec<u64>>,
}

/// A run over time. All times are seconds since the guest had booted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Timeline {
    /// When the run was over.
    pub end: f64,
    /// Seconds of each of [`CpuLane::older`].
    pub stretch_seconds: f64,
    /// Names of the workloads.
    pub workloads: Vec<String>,
    /// By CPU.
    pub cpus: Vec<CpuLane>,
    /// In order.
    pub samples: Vec<Sample>,
    /// When the first violation was seen, or the guest ended early.
    pub moment: Option<f64>,
}

/// A CPU as it is recorded.
#[derive(Clone, Debug)]
struct Record {
    phase: Phase,
    since: f64,
    /// When the order was given that has not been answered yet.
    ordered: Option<f64>,
    older: Vec<Stretch>,
    spans: VecDeque<Span>,
}

/// Records a timeline while the run is under way.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    /// Time stamp of the moment from which time counts, and time stamps a second.
    clock: Option<(u64, f64)>,
    /// By how much the host's clock, which starts when it hears of that moment, is behind at most.
    behind: f64,
    workloads: Vec<String>,
    cpus: Vec<Record>,
    stretch: f64,
    samples: Vec<Sample>,
    interval: f64,
    most_samples: usize,
    moment: Option<f64>,
}

impl Recorder {
    /// Nothing yet, of a guest of so many CPUs.
    pub(crate) fn new(possible: u32, workloads: Vec<String>) -> Self {
        let numbers = (possible as usize * workloads.len()).max(1);
        Self {
            clock: None,
            behind: f64::INFINITY,
            cpus: (0..possible)
                .map(|_| Record {
                    phase: Phase::Off,
                    since: 0.0,
                    ordered: None,
                    older: Vec::new(),
                    spans: VecDeque::new(),
                })
                .collect(),
            stretch: FIRST_STRETCH,
            samples: Vec::new(),
            interval: FIRST_INTERVAL,
            most_samples: (MOST_NUMBERS / numbers).clamp(60, MOST_SAMPLES),
            workloads,
            moment: None,
        }
    }

    /// The guest had booted at this time stamp.
    pub(crate) fn booted(&mut self, tsc: u64, tsc_mhz: u32) {
        self.clock = Some((tsc, f64::from(tsc_mhz.max(1)) * 1e6));
    }

    /// The time of a time stamp of the guest's, of which the host hears at `now` by its own clock.
    fn heard(&mut self, tsc: u64, now: f64) -> f64 {
        let time = self.time(tsc);
        if (now - time).abs() < FARTHEST {
            self.behind = self.behind.min(now - time);
        }
        // A guest may claim anything.
        time.clamp(0.0, self.host(now) + 1.0)
    }

    /// The time of a time stamp.
    fn time(&self, tsc: u64) -> f64 {
        self.clock.map_or(0.0, |(from, rate)| tsc.wrapping_sub(from) as i64 as f64 / rate)
    }

    /// The host's time as the guest's.
    fn host(&self, now: f64) -> f64 {
        if self.behind.is_finite() { (now - self.behind).max(0.0) } else { now }
    }

    /// A CPU has told a new state.
    pub(crate) fn changed(&mut self, tsc: u64, now: f64, cpu: u32, state: CpuState) {
        // What comes before the guest has booted is what time begins with.
        let at = if self.clock.is_some() { self.heard(tsc, now) } else { 0.0 };
        self.set(cpu, Phase::of(state), at);
    }

    /// The host has ordered a CPU in or out.
    pub(crate) fn ordered(&mut self, now: f64, cpu: u32, up: bool) {
        let at = self.host(now);
        let Some(record) = self.cpus.get_mut(cpu as usize) else { return };
        record.ordered = Some(at);
        match (up, record.phase) {
            (true, Phase::Off) => self.set(cpu, Phase::Preparing, at),
            (false, Phase::Online) => self.set(cpu, Phase::Leaving, at),
            // An order that will be refused.
            _ => {}
        }
    }

    /// The guest has answered the order; `error` is why it was not fulfilled.
    pub(crate) fn answered(
        &mut self,
        tsc: u64,
        now: f64,
        cpu: u32,
        up: bool,
        error: Option<String>,
    ) {
        let at = self.heard(tsc, now);
        let Some(record) = self.cpus.get_mut(cpu as usize) else { return };
        let ordered = record.ordered.take();
        let reached = if up == error.is_none() { Phase::Online } else { Phase::Off };
        let Some(error) = error else { return self.set(cpu, reached, at) };
        // Of what was tried one span is left.
        let from = ordered.unwrap_or(at).min(at);
        record.spans.retain(|span| span.from < from);
        if let Some(span) = record.spans.back_mut() {
            span.to = span.to.min(from);
        }
        record.spans.push_back(Span { from, to: at, phase: Phase::Failed, why: Some(error) });
        (record.phase, record.since) = (reached, at);
        self.sum_up(cpu);
    }

    fn set(&mut self, cpu: u32, phase: Phase, at: f64) {
        let Some(record) = self.cpus.get_mut(cpu as usize) else { return };
        if record.phase == phase {
            return;
        }
        let at = at.max(record.since);
        record.close(at);
        (record.phase, record.since) = (phase, at);
        self.sum_up(cpu);
    }

    /// Adds spans of a CPU to the sums where there are too many.
    fn sum_up(&mut self, cpu: u32) {
        while let Some(record) = self.cpus.get_mut(cpu as usize)
            && record.spans.len() > MOST_SPANS
            && let Some(oldest) = record.spans.pop_front()
        {
            while oldest.to > self.stretch * MOST_STRETCHES as f64 {
                self.stretch *= 2.0;
                self.cpus.iter_mut().for_each(|record| record.older = halved(&record.older));
            }
            self.cpus[cpu as usize].add_to_older(&oldest, self.stretch);
        }
    }

    /// Whether it is time for a sample.
    pub(crate) fn is_due(&self, now: f64) -> bool {
        self.samples.last().is_none_or(|last| self.host(now) >= last.at + self.interval)
    }

    /// Adds a sample; its time is the host's.
    pub(crate) fn sample(&mut self, mut sample: Sample) {
        sample.at = self.host(sample.at);
        self.samples.push(sample);
        if self.samples.len() > self.most_samples {
            self.interval *= 2.0;
            let mut odd = false;
            self.samples.retain(|_| {
                odd = !odd;
                odd
            });
        }
    }

    /// What the report is about happened at this time stamp, or at this time of the host's.
    pub(crate) fn mark(&mut self, tsc: Option<u64>, now: f64) {
        let now = self.host(now);
        let at = tsc.map_or(now, |tsc| self.time(tsc).clamp(0.0, now + 1.0));
        self.moment.get_or_insert(at);
    }

    /// Seconds of a time stamp, for events that are told.
    pub(crate) fn seconds(&self, tsc: u64) -> Option<f64> {
        self.clock.map(|_| self.time(tsc)).filter(|time| time.abs() < 1e9)
    }

    /// The timeline of a run that is over.
    pub(crate) fn end(mut self, now: f64) -> Timeline {
        let end = self.host(now).max(self.moment.unwrap_or(0.0));
        let lane = |(cpu, record): (u32, &mut Record)| {
            record.close(end.max(record.since));
            let spans = std::mem::take(&mut record.spans).into();
            CpuLane { cpu, older: std::mem::take(&mut record.older), spans }
        };
        let cpus = (0u32..).zip(self.cpus.iter_mut()).map(lane).collect();
        Timeline {
            end,
            stretch_seconds: self.stretch,
            workloads: self.workloads,
            cpus,
            samples: self.samples,
            moment: self.moment,
        }
    }
}

impl Record {
    /// Ends the phase that the CPU is in.
    fn close(&mut self, at: f64) {
        if self.phase != Phase::Off && at > self.since {
            let (from, phase) = (self.since, self.phase);
            self.spans.push_back(Span { from, to: at, phase, why: None });
        }
    }

    /// Adds a span to the sums.
    fn add_to_older(&mut self, span: &Span, length: f64) {
        let last = (span.to / length).ceil() as usize;
        if self.older.len() < last {
            self.older.resize(last, Stretch::default());
        }
        let first = (span.from / length) as usize;
        for (n, stretch) in self.older.iter_mut().enumerate().take(last).skip(first) {
            let (from, to) = (n as f64 * length, (n + 1) as f64 * length);
            let seconds = (span.to.min(to) - span.from.max(from)).max(0.0);
            match span.phase {
                Phase::Online => stretch.online += seconds,
                _ => stretch.moving += seconds,
            }
        }
        if let Some(stretch) = self.older.get_mut(first) {
            stretch.ups += u32::from(span.phase == Phase::Online);
            stretch.failed += u32::from(span.phase == Phase::Failed);
        }
    }
}

/// Stretches of twice the length.
fn halved(older: &[Stretch]) -> Vec<Stretch> {
    let sum = |pair: &[Stretch]| {
        pair.iter().fold(Stretch::default(), |sum, one| Stretch {
            online: sum.online + one.online,
            moving: sum.moving + one.moving,
            ups: sum.ups + one.ups,
            failed: sum.failed + one.failed,
        })
    };
    older.chunks(2).map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A microsecond.
    const MHZ: u32 = 1;
    const fn us(seconds: f64) -> u64 {
        1_000_000 + (seconds * 1e6) as u64
    }

    fn recorder(cpus: u32) -> Recorder {
        let mut recorder = Recorder::new(cpus, vec!["statics".into(), "alloc".into()]);
        recorder.changed(5, 0.0, 0, CpuState::Online);
        recorder.booted(us(0.0), MHZ);
        recorder
    }

    fn phases(lane: &CpuLane) -> Vec<(Phase, f64, f64)> {
        let round = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
        lane.spans.iter().map(|span| (span.phase, round(span.from), round(span.to))).collect()
    }

    #[test]
    fn a_cpu_goes_through_its_phases_with_their_lengths() {
        let mut recorder = recorder(2);
        recorder.ordered(1.0, 1, true);
        recorder.changed(us(1.01), 1.01, 1, CpuState::Starting);
        recorder.changed(us(1.03), 1.03, 1, CpuState::Online);
        recorder.answered(us(1.04), 1.04, 1, true, None);
        recorder.ordered(2.0, 1, false);
        recorder.changed(us(2.1), 2.1, 1, CpuState::Dying);
        recorder.changed(us(2.2), 2.2, 1, CpuState::Dead);
        recorder.answered(us(2.3), 2.3, 1, false, None);
        let timeline = recorder.end(3.0);
        assert_eq!(phases(&timeline.cpus[0]), [(Phase::Online, 0.0, 3.0)]);
        let expected = [
            (Phase::Preparing, 1.0, 1.01),
            (Phase::Starting, 1.01, 1.03),
            (Phase::Online, 1.03, 2.0),
            (Phase::Leaving, 2.0, 2.1),
            (Phase::Dying, 2.1, 2.2),
            (Phase::Dead, 2.2, 2.3),
        ];
        assert_eq!(phases(&timeline.cpus[1]), expected);
    }

    #[test]
    fn an_order_that_fails_is_one_span_and_the_cpu_is_as_before() {
        let mut recorder = recorder(3);
        recorder.ordered(1.0, 1, true);
        recorder.changed(us(1.1), 1.1, 1, CpuState::Starting);
        recorder.answered(us(1.2), 1.2, 1, true, Some("StepFailed".into()));
        recorder.changed(us(1.0), 1.0, 2, CpuState::Online);
        recorder.ordered(2.0, 2, false);
        recorder.changed(us(2.1), 2.1, 2, CpuState::Online);
        recorder.answered(us(2.2), 2.2, 2, false, Some("StepFailed".into()));
        let timeline = recorder.end(3.0);
        assert_eq!(phases(&timeline.cpus[1]), [(Phase::Failed, 1.0, 1.2)]);
        assert_eq!(timeline.cpus[1].spans[0].why.as_deref(), Some("StepFailed"));
        let expected =
            [(Phase::Online, 1.0, 2.0), (Phase::Failed, 2.0, 2.2), (Phase::Online, 2.2, 3.0)];
        assert_eq!(phases(&timeline.cpus[2]), expected);
    }

    #[test]
    fn an_hour_of_plugs_takes_no_more_room_than_a_minute_of_them() {
        let mut recorder = recorder(2);
        let sample = Sample { ops: vec![vec![0; 2]; 2], ..Sample::default() };
        let mut online = 0.0;
        for i in 0..100_000u32 {
            let at = f64::from(i) * 0.036;
            recorder.ordered(at, 1, true);
            recorder.changed(us(at + 0.001), at + 0.001, 1, CpuState::Online);
            recorder.answered(us(at + 0.002), at + 0.002, 1, true, None);
            recorder.ordered(at + 0.020, 1, false);
            recorder.changed(us(at + 0.021), at + 0.021, 1, CpuState::Dead);
            recorder.answered(us(at + 0.022), at + 0.022, 1, false, None);
            online += 0.019;
            if recorder.is_due(at) {
                recorder.sample(Sample { at, ..sample.clone() });
            }
        }
        let timeline = recorder.end(3600.0);
        let lane = &timeline.cpus[1];
        assert!(lane.spans.len() <= MOST_SPANS + 1, "{}", lane.spans.len());
        assert!((MOST_STRETCHES / 2 - 2..=MOST_STRETCHES).contains(&lane.older.len()));
        assert!((MOST_SAMPLES / 2 - 2..=MOST_SAMPLES).contains(&timeline.samples.len()));
        let of = |lane: &CpuLane| -> f64 {
            let spans = lane.spans.iter().filter(|span| span.phase == Phase::Online);
            lane.older.iter().map(|stretch| stretch.online).sum::<f64>()
                + spans.map(|span| span.to - span.from).sum::<f64>()
        };
        assert!((of(lane) - online).abs() < 1.0, "{} of {online}", of(lane));
        let text = crate::report::file::to_json(&timeline);
        assert!(text.len() < 400_000, "{}", text.len());
        // What is summed up ends where what is told in full begins.
        let end = lane.older.len() as f64 * timeline.stretch_seconds;
        assert!((end - lane.spans[0].from).abs() < timeline.stretch_seconds + 1.0);
    }

    #[test]
    fn time_stamps_that_make_no_sense_stay_in_the_run() {
        let mut recorder = recorder(2);
        recorder.changed(u64::MAX, 1.0, 1, CpuState::Online);
        recorder.changed(0, 2.0, 1, CpuState::Dead);
        recorder.changed(us(2.5), 2.5, 77, CpuState::Online);
        recorder.answered(1 << 63, 3.0, 1, false, None);
        recorder.mark(Some(1 << 62), 3.0);
        let timeline = recorder.end(3.0);
        let mut last = 0.0;
        for span in timeline.cpus.iter().flat_map(|lane| &lane.spans) {
            assert!(span.from <= span.to && span.to < 1e7, "{span:?}");
            last = f64::max(last, span.to);
        }
        assert!(timeline.end.is_finite() && last.is_finite());
    }

    #[test]
    fn the_hosts_clock_is_brought_in_line_with_the_guests() {
        let mut recorder = recorder(2);
        // The host heard of the boot 5 ms late, and of this at once.
        recorder.changed(us(1.0), 0.995, 1, CpuState::Online);
        recorder.ordered(1.995, 1, false);
        recorder.changed(us(2.5), 2.6, 1, CpuState::Dying);
        let timeline = recorder.end(3.0);
        assert_eq!(phases(&timeline.cpus[1])[1], (Phase::Leaving, 2.0, 2.5));
    }
}
