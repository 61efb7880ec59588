//! A run: the guest under load, plugs, the judge, the watchdog, and what comes out of it.

mod config;
mod tell;

use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use percpu_guest::abi::{ControlBlock, CpuState, SHARED, SharedHeader, VECTOR_IPI, control_block};

use crate::counts;
use crate::crash;
use crate::diag::{Limits, Sample, Watchdog};
use crate::error::Error;
use crate::host::HostInfo;
use crate::image::Image;
use crate::judge::{Judge, Quiescent, Signal, TrialEnd};
use crate::memory::GuestMem;
use crate::plug::{CpuNow, Given, Injector, Order, Pending, Trials, Walk, Work};
use crate::report::timeline::Recorder;
use crate::report::{self, Cpus, LiveLine, RunReport, Verdict};
use crate::vm::{Vm, VmConfig, VmEventKind};

use config::boot_of_run;
pub use config::{
    GivenWork, Length, RunConfig, boot_mode_name, check_boot, check_cpus, check_length, check_ring,
};
pub(crate) use config::{boot_defaults, boot_params, patience};

/// How long to wait for the guest between two looks at its event rings.
const POLL: Duration = Duration::from_millis(1);
/// The same while no order is on its way, because none can be given yet: that changes soon.
const EAGER_POLL: Duration = Duration::from_micros(100);
/// Time between two looks at what holds at any instant.
const INSTANT_EVERY: Duration = Duration::from_millis(20);
/// Shortest time between two quiescent points.
const QUIET_EVERY: Duration = Duration::from_millis(250);
/// A quiescent point may take this part of the run: one in so many.
const QUIET_SHARE: u32 = 2;
/// How long the guest may take to come to rest.
const QUIET_LIMIT: Duration = Duration::from_secs(4);
/// How long an order may take; longer than the guest waits for a CPU to arrive.
const ORDER_LIMIT: Duration = Duration::from_secs(8);
/// How long the guest may take to boot, by CPU on top of a second.
const BOOT_LIMIT_A_CPU: Duration = Duration::from_secs(2);
/// How long CPUs that have not done all kinds of work yet are waited for at the end.
const LAST_WORK_LIMIT: Duration = Duration::from_secs(10);
/// How long a CPU may stand still.
const LIMITS: Limits =
    Limits { online: Duration::from_secs(3), transition: Duration::from_secs(6) };
const LIVE_EVERY: Duration = Duration::from_millis(100);

/// Runs the guest and reports. What is asked for was checked before: [`check_cpus`],
/// [`check_ring`].
pub fn run(
    image: &Image,
    config: &RunConfig,
    host: &HostInfo,
    interrupted: &AtomicBool,
) -> Result<RunReport, Error> {
    Run::start(image, config, host)?.complete(interrupted)
}

/// A run under way.
struct Run<'a> {
    image: &'a Image,
    config: &'a RunConfig,
    vm: Vm,
    mem: GuestMem,
    judge: Judge,
    plan: Plan,
    injector: Injector,
    trials: Trials,
    /// The trial that has ended, until it is judged.
    trial_end: Option<TrialEnd>,
    watchdog: Watchdog,
    live: Option<LiveLine>,
    report: RunReport,
    /// When the guest's workloads started.
    began: Option<Instant>,
    recorder: Recorder,
    /// Quiescent points so far.
    quiets: u64,
    /// Trials so far.
    trials_done: u64,
    ever_online: Vec<bool>,
    /// How much patience this ring needs.
    patience: u32,
}

/// Where the orders come from.
enum Plan {
    /// Chance; what a CPU has done is asked before it goes.
    Walk(Walk),
    /// Somebody who has written them down.
    Given(Given),
}

/// Why a run is over before its time.
enum End {
    Crashed(report::Crash),
    Hung(report::Crash),
    Broken,
}

impl<'a> Run<'a> {
    fn start(image: &'a Image, config: &'a RunConfig, host: &HostInfo) -> Result<Self, Error> {
        let boot = boot_of_run(image, config, host);
        let vm = Vm::new(
            image,
            VmConfig::new(host.engine, boot, VmConfig::memory_for(config.max_cpus)),
        )?;
        let mem = GuestMem::new(vm.memory().clone());
        let run = Self {
            judge: Judge::new(mem.clone(), config.max_cpus)?.with_checks_of(image),
            plan: match &config.work {
                Some(work) => Plan::Given(Given::new(work.plugs.clone())),
                None => {
                    let number = |name: &String| image.workloads().number(name);
                    let numbers = config.workloads.iter().filter_map(number).collect();
                    Plan::Walk(Walk::new(config.seed, config.max_cpus, numbers))
                }
            },
            injector: Injector::new(mem.clone()),
            trials: Trials::default(),
            trial_end: None,
            watchdog: Watchdog::new(LIMITS, config.max_cpus),
            live: config.live.then(LiveLine::default),
            report: RunReport {
                seed: config.seed,
                engine: host.engine,
                engine_reason: host.why.clone(),
                ring: config.ring,
                boot: boot_mode_name(config.boot).into(),
                cpus: Cpus { possible: config.max_cpus, boot: config.cpus, max_online: 0 },
                replay: config.replay.clone(),
                ..RunReport::default()
            },
            began: None,
            recorder: Recorder::new(config.max_cpus, config.workloads.clone()),
            quiets: 0,
            trials_done: 0,
            ever_online: vec![false; config.max_cpus as usize],
            patience: patience(config.ring, host),
            image,
            config,
            vm,
            mem,
        };
        run.vm.start()?;
        Ok(run)
    }

    fn complete(mut self, interrupted: &AtomicBool) -> Result<RunReport, Error> {
        let end = self.drive(interrupted)?;
        self.live = None;
        self.report.seconds = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.report.interrupted = interrupted.load(Ordering::Relaxed);
        self.report.verdict = match end {
            Some(End::Crashed(crash)) => {
                self.report.crash = Some(crash);
                Verdict::Crashed
            }
            Some(End::Hung(crash)) => {
                self.report.crash = Some(crash);
                Verdict::Hung
            }
            Some(End::Broken) => {
                self.report.broken_at = crash::cpus(&self.scene());
                Verdict::Broken
            }
            None => Verdict::Held,
        };
        self.vm.park_all();
        self.fill_report();
        Ok(self.report)
    }

    /// The main loop; returns why the run ended early, if it did.
    fn drive(&mut self, interrupted: &AtomicBool) -> Result<Option<End>, Error> {
        let started = Instant::now();
        let boot_limit =
            (Duration::from_secs(1) + BOOT_LIMIT_A_CPU * self.config.cpus) * self.patience;
        let mut next_instant = started;
        let mut next_quiet = started + QUIET_EVERY;
        let mut next_live = started;
        loop {
            let now = Instant::now();
            let ordered = self.began.is_none() || self.injector.pending().is_some();
            let wait = if ordered { POLL } else { EAGER_POLL };
            if let Some(end) = self.follow(now + wait)? {
                return Ok(Some(end));
            }
            if let Some(Pending { order: Order::Unplug(_), .. }) = self.injector.pending() {
                self.judge.during_unplug();
            }
            let stop = interrupted.load(Ordering::Relaxed);
            let Some(began) = self.began else {
                if stop {
                    return Ok(None);
                }
                if started.elapsed() > boot_limit {
                    return Ok(Some(self.hung("the guest does not finish booting", &[])));
                }
                continue;
            };
            if let Some(end) = self.watch(began)? {
                return Ok(Some(end));
            }
            if now >= next_instant {
                self.judge.check_instant();
                next_instant = Instant::now() + INSTANT_EVERY;
            }
            let late = self.is_late(began);
            if late && self.config.work.is_some() && !self.work_is_over() {
                return Ok(Some(self.hung("the work that was given does not end", &[])));
            }
            let over = stop || late || self.work_is_over();
            if self.injector.pending().is_none() {
                if over {
                    return self.finish();
                }
                if now >= next_quiet {
                    let before = Instant::now();
                    if let Some(end) = self.quiet_point()? {
                        return Ok(Some(end));
                    }
                    next_quiet = Instant::now() + QUIET_EVERY.max(before.elapsed() * QUIET_SHARE);
                }
                self.give_order()?;
            }
            if !self.judge.violations().is_empty() {
                return Ok(Some(End::Broken));
            }
            self.sample(began);
            if now >= next_live {
                self.show(began);
                next_live = now + LIVE_EVERY;
            }
        }
    }

    /// Waits for the guest until `deadline` and follows what it says.
    fn follow(&mut self, deadline: Instant) -> Result<Option<End>, Error> {
        let mut deadline = deadline;
        while let Some(event) = self.vm.next_event(deadline) {
            match event.kind {
                VmEventKind::Hello => {
                    let start = event.at.duration_since(self.config.process_start);
                    self.report.start_ms = start.as_secs_f64() * 1e3;
                }
                VmEventKind::Event | VmEventKind::Parked => {}
                VmEventKind::Exit => {
                    return Ok(Some(self.hung("the guest stopped by itself", &[])));
                }
                VmEventKind::Crashed(crash) => {
                    let report = crash::report(&self.scene(), event.cpu, &crash)?;
                    return Ok(Some(End::Crashed(report)));
                }
            }
            // Whatever else is there, but no waiting: there is something to look at.
            deadline = Instant::now();
        }
        for (tsc, signal) in self.judge.drain_timed() {
            self.record(tsc, &signal);
            self.take(signal);
        }
        Ok(None)
    }

    fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Booted => self.began = Some(Instant::now()),
            Signal::PlugDone { cpu, result, command } => {
                self.judge.after_plug(cpu, result);
                self.answered(command, result.is_ok());
                if result.is_ok() {
                    self.report.plugs.up += 1;
                    let now = self.cpu_now(cpu);
                    if let Plan::Walk(walk) = &mut self.plan {
                        walk.came_up(cpu, now);
                    }
                }
            }
            Signal::UnplugDone { cpu, result, command } => {
                self.judge.after_unplug(cpu, result);
                self.answered(command, result.is_ok());
                self.report.plugs.down += u64::from(result.is_ok());
            }
            Signal::CpuChanged { cpu, state: CpuState::Online } => {
                if let Some(ever) = self.ever_online.get_mut(cpu as usize) {
                    *ever = true;
                }
                let online = self.judge.shadow().online();
                self.report.cpus.max_online = self.report.cpus.max_online.max(online);
            }
            Signal::TrialDone(end) => {
                self.answered(end.command, true);
                self.trial_end = Some(end);
            }
            Signal::CpuChanged { .. } | Signal::TestDone { .. } => {}
        }
    }

    fn answered(&mut self, command: u64, fulfilled: bool) {
        let Some(answered) = self.injector.answered(command) else { return };
        self.report.plugs.failed += u64::from(!fulfilled);
        let done = self.work().done;
        if let Plan::Given(given) = &mut self.plan
            && !matches!(answered.order, Order::Trial(..))
        {
            given.answered(done);
        }
    }

    /// How much of the work that was given is done.
    fn work(&self) -> Work {
        let at = |offset: usize| SHARED + offset as u64;
        let done = self.mem.load_u64(at(offset_of!(SharedHeader, operations_done))).unwrap_or(0);
        let threads = self.mem.load_u32(at(offset_of!(SharedHeader, threads)));
        let operations = self.config.work.as_ref().map_or(u64::MAX, |work| work.operations);
        // Before the first operation there may be no thread yet.
        Work { done, is_over: done >= operations && threads == Ok(0) }
    }

    /// Whether all work that was given is done, the plugs included.
    fn work_is_over(&self) -> bool {
        match &self.plan {
            Plan::Walk(_) => false,
            Plan::Given(given) => {
                given.is_over() && self.injector.pending().is_none() && self.work().is_over
            }
        }
    }

    /// Whether it is time to end.
    fn is_late(&self, began: Instant) -> bool {
        match self.config.length {
            Length::Time(time) => began.elapsed() >= time,
            Length::Plugs(plugs) => self.report.plugs.up + self.report.plugs.down >= plugs,
            Length::Passes(passes) => counts::trace(&self.mem).passes >= passes,
        }
    }

    fn give_order(&mut self) -> Result<(), Error> {
        let work = self.work();
        let now = |cpu| cpu_now(&self.mem, cpu);
        let next = match &mut self.plan {
            Plan::Walk(walk) => walk.next(now).map(|order| (order, None)),
            Plan::Given(given) => given.next(work, now),
        };
        let Some((order, fail)) = next else { return Ok(()) };
        self.judge.before_plug();
        if let (Some(step), Order::Plug(cpu) | Order::Unplug(cpu)) = (fail, order) {
            self.injector.fail_step(cpu, step)?;
        }
        self.record_order(order);
        self.injector.send(&self.vm, order)
    }

    /// Brings the guest to rest and judges all of it.
    fn quiet_point(&mut self) -> Result<Option<End>, Error> {
        let quiesce = SHARED + offset_of!(SharedHeader, quiesce) as u64;
        self.mem.store_u32(quiesce, 1)?;
        let since = Instant::now();
        let end = loop {
            match self.judge.check_quiescent() {
                Quiescent::Checked => {
                    self.quiets += 1;
                    break self.go_through_trials()?;
                }
                Quiescent::NotYet(why) if since.elapsed() > QUIET_LIMIT * self.patience => {
                    let text = format!("the guest does not come to rest: {why}");
                    break Some(self.hung(&text, &[]));
                }
                Quiescent::NotYet(_) => {}
            }
            if let Some(end) = self.follow(Instant::now() + POLL)? {
                break Some(end);
            }
            if let Some(began) = self.began
                && let Some(end) = self.watch(began)?
            {
                break Some(end);
            }
        };
        self.mem.store_u32(quiesce, 0)?;
        self.wake_all()?;
        Ok(end)
    }

    /// Lets the guest do on purpose what must change nothing, and judges each.
    fn go_through_trials(&mut self) -> Result<Option<End>, Error> {
        let mut last = None;
        // One that left the allocator in disorder is not followed by another.
        while self.judge.violations().is_empty()
            && let Some(order) = self.trials.next(last.as_ref())
        {
            if let Order::Trial(trial, _) = order {
                self.judge.before_trial(trial);
            }
            self.injector.send(&self.vm, order)?;
            while self.trial_end.is_none() {
                if let Some(end) = self.follow(Instant::now() + POLL)? {
                    return Ok(Some(end));
                }
                if let Some(began) = self.began
                    && let Some(end) = self.watch(began)?
                {
                    return Ok(Some(end));
                }
            }
            last = self.trial_end.take();
            self.trials_done += 1;
            if let Some(end) = &last {
                self.judge.after_trial(end);
            }
        }
        Ok(None)
    }

    /// Wakes the CPUs that rest, which else would sleep until their next timer interrupt.
    fn wake_all(&self) -> Result<(), Error> {
        (0..self.config.max_cpus)
            .filter(|&cpu| self.cpu_now(cpu).state == Some(CpuState::Online))
            .try_for_each(|cpu| self.vm.interrupt(cpu, VECTOR_IPI))
    }

    /// Lets every CPU that is up do some of each kind of work, then judges once more.
    fn finish(&mut self) -> Result<Option<End>, Error> {
        let since = Instant::now();
        let idle = |run: &Self| {
            // Given work is over when it is over, whoever has done it.
            let Plan::Walk(walk) = &run.plan else { return false };
            (0..run.config.max_cpus).any(|cpu| {
                let now = run.cpu_now(cpu);
                now.state == Some(CpuState::Online) && !walk.has_worked(cpu, &now)
            })
        };
        while idle(self) && since.elapsed() < LAST_WORK_LIMIT * self.patience {
            if let Some(end) = self.follow(Instant::now() + POLL)? {
                return Ok(Some(end));
            }
            if let Some(began) = self.began
                && let Some(end) = self.watch(began)?
            {
                return Ok(Some(end));
            }
        }
        if let Some(end) = self.quiet_point()? {
            return Ok(Some(end));
        }
        self.judge.check_instant();
        Ok((!self.judge.violations().is_empty()).then_some(End::Broken))
    }

    /// Lets the watchdog look.
    fn watch(&mut self, began: Instant) -> Result<Option<End>, Error> {
        let samples: Vec<_> = (0..self.config.max_cpus)
            .map(|cpu| Sample {
                state: self.cpu_now(cpu).state.unwrap_or(CpuState::Offline),
                heartbeat: self.heartbeat(cpu),
            })
            .collect();
        let stuck = self.watchdog.poll(began.elapsed(), &samples);
        if let Some(first) = stuck.first() {
            let cpus: Vec<_> = stuck.iter().map(|stuck| stuck.cpu).collect();
            return Ok(Some(self.hung(&first.to_string(), &cpus)));
        }
        if let Some(pending) = self.injector.pending()
            && pending.since.elapsed() > ORDER_LIMIT * self.patience
        {
            let (what, cpu) = match pending.order {
                Order::Plug(cpu) => (format!("CPU {cpu} was to be plugged in"), cpu),
                Order::Unplug(cpu) => (format!("CPU {cpu} was to be unplugged"), cpu),
                Order::Trial(trial, _) => (format!("the trial {trial:?} was ordered"), 0),
            };
            let text = format!("{what}, and the guest does not answer");
            return Ok(Some(self.hung(&text, &[cpu])));
        }
        Ok(None)
    }

    fn hung(&self, text: &str, cpus: &[u32]) -> End {
        End::Hung(crash::hang(&self.scene(), text, cpus))
    }

    fn scene(&self) -> crash::Scene<'_> {
        crash::Scene {
            vm: &self.vm,
            mem: &self.mem,
            image: self.image,
            judge: Some(&self.judge),
            possible: self.config.max_cpus,
        }
    }

    fn cpu_now(&self, cpu: u32) -> CpuNow {
        cpu_now(&self.mem, cpu)
    }

    fn heartbeat(&self, cpu: u32) -> u64 {
        let at = control_block(cpu) + offset_of!(ControlBlock, heartbeat) as u64;
        self.mem.load_u64(at).unwrap_or(0)
    }
}

pub(crate) fn cpu_now(mem: &GuestMem, cpu: u32) -> CpuNow {
    let block = control_block(cpu);
    let state = mem.load_u32(block + offset_of!(ControlBlock, state) as u64).ok();
    let ops = block + offset_of!(ControlBlock, ops) as u64;
    CpuNow {
        state: state.and_then(CpuState::from_code),
        ops: std::array::from_fn(|i| mem.load_u64(ops + 8 * i as u64).unwrap_or(0)),
    }
}
