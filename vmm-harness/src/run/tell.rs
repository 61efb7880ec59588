//! What is told of a run: the line that shows how it goes, the timeline, and the report at its end.

use std::mem::offset_of;
use std::time::Instant;

use percpu_guest::abi::{BootParams, PlugError, Resources, SHARED, SharedHeader, TRACE};

use super::{Length, Run};
use crate::counts;
use crate::diag::Symbols;
use crate::judge::Signal;
use crate::plug::Order;
use crate::report::events::{addresses, telling};
use crate::report::timeline::Recorder;
use crate::report::{Plugs, Progress, Sample, Verdict, WorkloadReport};

impl Run<'_> {
    /// The host's clock: seconds since the guest was seen to have booted.
    fn now(&self) -> f64 {
        self.began.map_or(0.0, |began| began.elapsed().as_secs_f64())
    }

    /// Notes in the timeline what the guest has announced.
    pub(super) fn record(&mut self, tsc: u64, signal: &Signal) {
        let now = self.now();
        match *signal {
            Signal::Booted => {
                let mhz = offset_of!(SharedHeader, boot) + offset_of!(BootParams, tsc_mhz);
                let mhz = self.mem.load_u32(SHARED + mhz as u64).unwrap_or(0);
                self.recorder.booted(tsc, mhz);
            }
            Signal::CpuChanged { cpu, state } => self.recorder.changed(tsc, now, cpu, state),
            Signal::PlugDone { cpu, result, .. } => {
                self.recorder.answered(tsc, now, cpu, true, why(result));
            }
            Signal::UnplugDone { cpu, result, .. } => {
                self.recorder.answered(tsc, now, cpu, false, why(result));
            }
            Signal::TestDone { .. } | Signal::TrialDone(_) => {}
        }
    }

    /// Notes an order that is about to be given.
    pub(super) fn record_order(&mut self, order: Order) {
        let now = self.now();
        match order {
            Order::Plug(cpu) => self.recorder.ordered(now, cpu, true),
            Order::Unplug(cpu) => self.recorder.ordered(now, cpu, false),
            Order::Trial(..) => {}
        }
    }

    /// Takes a sample if it is time for one.
    pub(super) fn sample(&mut self, began: Instant) {
        if self.recorder.is_due(began.elapsed().as_secs_f64()) {
            let sample = self.sample_now();
            self.recorder.sample(sample);
        }
    }

    fn sample_now(&self) -> Sample {
        let census = self.judge.census();
        let balance = counts::balance(&self.mem);
        let frames = offset_of!(SharedHeader, resources) + offset_of!(Resources, frames);
        let ops = |cpu| {
            let ops = self.cpu_now(cpu).ops;
            let number = |name: &String| self.image.workloads().number(name);
            let of = |name| number(name).and_then(|number| ops.get(number).copied());
            self.config.workloads.iter().map(|name| of(name).unwrap_or(0)).collect()
        };
        Sample {
            at: self.now(),
            online: census.online,
            plugs: self.report.plugs.up + self.report.plugs.down,
            failed_plugs: self.report.plugs.failed,
            checks: counts::total(self.judge.checks().values().copied()),
            quiets: self.quiets,
            trials: self.trials_done,
            areas: census.areas,
            bytes: census.bytes,
            chunks: census.chunks,
            empty_pages: census.empty_pages,
            frames: self.mem.load_u64(SHARED + frames as u64).unwrap_or(0),
            atomic_failures: balance.atomic_failures,
            balances: balance.done,
            counters: census.counters,
            sums: census.sums,
            ops: (0..self.config.max_cpus).map(ops).collect(),
        }
    }

    /// Closes the timeline, and tells the events that led to the end of a run that did not hold.
    fn end_timeline(&mut self) {
        let now = self.now();
        if self.began.is_some() {
            let sample = self.sample_now();
            self.recorder.sample(sample);
        }
        if self.report.verdict != Verdict::Held {
            // What was announced just before the CPUs were stopped. What is wrong is known already.
            self.judge.drain();
            let violation = self.report.violations.first();
            let events = self.judge.recent();
            // A crash is noticed at once, so it is where the guest's last words are.
            let last = events.last().map(|event| event.tsc);
            let last = last.filter(|_| self.report.verdict == Verdict::Crashed);
            self.recorder.mark(violation.map(|violation| violation.tsc).or(last), now);
            let seconds = |tsc| self.recorder.seconds(tsc);
            self.report.events = telling(&events, violation, seconds);
        }
        let recorder = std::mem::replace(&mut self.recorder, Recorder::new(0, Vec::new()));
        self.report.timeline = recorder.end(now);
    }

    /// Operations of `workload` by CPU, of those that were ever online.
    fn ops(&self, workload: &str) -> impl Iterator<Item = u64> + '_ {
        let number = self.image.workloads().number(workload);
        (0u32..)
            .zip(&self.ever_online)
            .filter(|(_, ever)| **ever)
            .map(move |(cpu, _)| number.map_or(0, |number| self.cpu_now(cpu).ops[number]))
    }

    pub(super) fn show(&mut self, began: Instant) {
        if self.live.is_none() {
            return;
        }
        let total = match self.config.length {
            Length::Time(time) => Some(time),
            Length::Plugs(_) | Length::Passes(_) => None,
        };
        let progress = Progress {
            elapsed: began.elapsed(),
            total,
            online: self.judge.shadow().online(),
            possible: self.config.max_cpus,
            plugs: self.report.plugs.up + self.report.plugs.down,
            ops: self
                .config
                .workloads
                .iter()
                .map(|w| (w.clone(), counts::total(self.ops(w))))
                .collect(),
            checks: counts::total(self.judge.checks().values().copied()),
            violations: self.judge.violations().len() as u64,
        };
        if let Some(live) = &mut self.live {
            live.update(progress);
        }
    }

    pub(super) fn fill_report(&mut self) {
        let plugs: &mut Plugs = &mut self.report.plugs;
        plugs.per_second = (plugs.up + plugs.down) as f64 / self.report.seconds.max(1e-3);
        self.report.workloads = self
            .config
            .workloads
            .iter()
            .map(|workload| WorkloadReport {
                name: workload.clone(),
                ops: counts::total(self.ops(workload)),
                least_on_a_cpu: self.ops(workload).min().unwrap_or(0),
            })
            .collect();
        self.report.balance = counts::balance(&self.mem);
        if self.config.workloads.iter().any(|name| name == TRACE) {
            self.report.trace = Some(counts::trace(&self.mem));
        }
        let by_guest: Vec<_> = counts::checks(&self.mem, self.config.max_cpus).collect();
        let by_judge = self.judge.checks().iter().map(|(name, n)| (*name, *n));
        for (name, n) in by_judge.chain(by_guest).filter(|(_, n)| *n > 0) {
            let checks = self.report.checks.entry(name.to_owned()).or_default();
            *checks = checks.saturating_add(n);
        }
        self.report.violations = self.judge.violations().to_vec();
        self.report.suppressed = self.judge.suppressed();
        if !self.report.violations.is_empty() {
            let symbols = Symbols::load(self.image.bytes());
            for violation in &mut self.report.violations {
                let mut named = addresses(&violation.object).into_iter();
                violation.symbol = named.find_map(|address| symbols.variable(address));
            }
        }
        self.end_timeline();
    }
}

/// Why an order was not fulfilled.
fn why(result: Result<(), PlugError>) -> Option<String> {
    result.err().map(|error| format!("{error:?}"))
}
