//! `plug`: how long a CPU takes to come and to go, from the order to the answer, and by steps.
//!
//! A machine of n possible CPUs brings all of them up, which is each one's first time: its vCPU and
//! its unit of memory are made. Then one after the other goes and comes again, while all others are
//! online. The host takes the time from before the order is written to when the vCPU that answers has
//! left the guest. What the guest says of its time stamp counter divides that into steps.

use std::time::{Duration, Instant};

use percpu_guest::abi::{BootMode, BootParams, CpuState, EventKind};

use super::guest::{Guest, Seen, Stop};
use super::row::{Counts, Row, Unit, Values};
use super::{Bench, Subject};
use crate::plug::{Injector, Order};
use crate::run::{boot_mode_name, boot_params};

/// CPUs that can be, of an idle guest.
const IDLE: [u32; 6] = [2, 4, 8, 16, 32, 64];
/// The same under load, where many CPUs that share few of the host's measure those.
const LOADED: [u32; 3] = [2, 4, 8];
/// How long the guest may take to boot, or for an order.
const LIMIT: Duration = Duration::from_secs(20);
/// Microseconds between timer interrupts of an idle guest: a hundred a second, as kernels have it.
pub(super) const TICK_US: u32 = 10_000;

/// What a plug and an unplug are made of: name, and the states between which it lies. `None` is the
/// moment at which the guest took the order, or answered it.
type Part = (&'static str, Option<CpuState>, Option<CpuState>);
const UP: [Part; 3] = [
    ("plug, PREPARE", None, Some(CpuState::Starting)),
    ("plug, STARTING", Some(CpuState::Starting), Some(CpuState::Online)),
    ("plug, ONLINE", Some(CpuState::Online), None),
];
const DOWN: [Part; 3] = [
    ("unplug, ONLINE", None, Some(CpuState::Dying)),
    ("unplug, STARTING", Some(CpuState::Dying), Some(CpuState::Dead)),
    ("unplug, PREPARE", Some(CpuState::Dead), None),
];

/// What the guest does meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    Idle,
    All,
}

/// Measures plugs in both boot modes.
pub(super) fn measure(bench: &mut Bench<'_>) -> Result<(), Stop> {
    for (load, sizes) in [(Load::Idle, &IDLE[..]), (Load::All, &LOADED[..])] {
        for mode in [BootMode::Direct, BootMode::Sipi] {
            for &possible in sizes {
                if possible <= bench.host.max_vcpus && possible <= bench.most_cpus {
                    of_machine(bench, load, mode, possible)?;
                }
            }
        }
    }
    Ok(())
}

/// Measures one machine.
fn of_machine(
    bench: &mut Bench<'_>,
    load: Load,
    mode: BootMode,
    possible: u32,
) -> Result<(), Stop> {
    let family = match load {
        Load::Idle => format!("{}, idle", boot_mode_name(mode)),
        Load::All => format!("{}, under load", boot_mode_name(mode)),
    };
    bench.live.step(&format!("{family}, {possible} CPUs"));
    let usual = boot_params(bench.ring, bench.host);
    let boot = BootParams {
        possible,
        boot_mode: mode as u32,
        tick_us: if load == Load::Idle { usual.tick_us.max(TICK_US) } else { usual.tick_us },
        workloads: match load {
            Load::Idle => 0,
            Load::All => {
                let names: Vec<_> = bench.image.workloads().names().map(str::to_owned).collect();
                bench.image.workloads().bits(&names)
            }
        },
        threads: if load == Load::Idle { 0 } else { possible.max(2) },
        ..usual
    };
    let mut guest = Guest::start(bench.image, boot, bench.interrupted)?;
    let limit = LIMIT * bench.patience;
    guest.until(limit, "the guest boots", |seen, _| {
        matches!(seen, Seen::Event(_, EventKind::Booted)).then_some(())
    })?;
    let mut driver = Driver {
        injector: Injector::new(guest.mem.clone()),
        tsc_mhz: guest.tsc_mhz()?,
        limit,
        parts: Parts::default(),
        failed: 0,
        guest,
    };

    // The first times.
    let mut first = Vec::new();
    for cpu in 1..possible {
        first.extend(driver.give(Order::Plug(cpu))?);
    }
    driver.parts = Parts::default();

    let began = Instant::now();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let (mut rates, mut since) = (Vec::new(), began);
    for cpu in (1..possible).cycle().take(bench.effort.plugs) {
        down.extend(driver.give(Order::Unplug(cpu))?);
        up.extend(driver.give(Order::Plug(cpu))?);
        rates.push(2.0 / since.elapsed().as_secs_f64());
        since = Instant::now();
        if began.elapsed() > bench.effort.plug_time {
            break;
        }
    }
    let row = |name: &str, unit, values| Row {
        group: Subject::Plug.name().into(),
        family: family.clone(),
        name: name.into(),
        axis: "CPUs".into(),
        x: Some(possible),
        unit,
        values,
        beside: Vec::new(),
        target: None,
    };
    let ns = |name: &str, samples: &[f64]| {
        row(name, Unit::Nanoseconds, Values::of(samples, Counts::Median))
    };
    let Driver { guest, parts, failed, .. } = driver;
    bench.report.rows.extend([ns("plug", &up), ns("unplug", &down), ns("first plug", &first)]);
    bench.report.rows.push(row(
        "plugs and unplugs",
        Unit::PerSecond,
        Values::of(&rates, Counts::Median),
    ));
    bench.report.rows.extend(parts.rows.iter().map(|(name, samples)| ns(name, samples)));
    if failed > 0 {
        let note =
            format!("plug: {family}, {possible} CPUs: {failed} orders could not be fulfilled");
        bench.report.notes.push(note);
    }
    drop(guest);
    Ok(())
}

/// Samples by the part of a plug.
#[derive(Default)]
struct Parts {
    rows: Vec<(&'static str, Vec<f64>)>,
}

impl Parts {
    fn push(&mut self, name: &'static str, ns: f64) {
        match self.rows.iter_mut().find(|(known, _)| *known == name) {
            Some((_, samples)) => samples.push(ns),
            None => self.rows.push((name, vec![ns])),
        }
    }
}

/// Gives orders and takes the time.
struct Driver<'a> {
    guest: Guest<'a>,
    injector: Injector,
    tsc_mhz: u32,
    limit: Duration,
    parts: Parts,
    /// Orders that the guest could not fulfil.
    failed: u64,
}

impl Driver<'_> {
    /// Gives an order and waits for the answer: nanoseconds, if it was fulfilled.
    fn give(&mut self, order: Order) -> Result<Option<f64>, Stop> {
        let (Order::Plug(cpu) | Order::Unplug(cpu)) = order else { return Ok(None) };
        let start = Instant::now();
        self.injector.send(&self.guest.vm, order)?;
        let number = self.injector.pending().map_or(0, |pending| pending.number);
        // By state, and how it ended.
        let mut entered = Vec::new();
        let mut end = None;
        while end.is_none() {
            self.guest.follow(|seen, at| match seen {
                Seen::Event(event, EventKind::CpuChanged) if event.args[0] == u64::from(cpu) => {
                    let state = CpuState::from_code(event.args[1] as u32);
                    entered.extend(state.map(|state| (state, event.tsc)));
                }
                Seen::Event(event, EventKind::PlugDone | EventKind::UnplugDone)
                    if event.args[2] == number =>
                {
                    end = Some((event, if at > start { at } else { Instant::now() }));
                }
                _ => {}
            })?;
            if start.elapsed() > self.limit {
                let late = format!("{order:?} is not answered within {:?}", self.limit);
                return Err(self.guest.hung(&late));
            }
        }
        self.injector.answered(number);
        let Some((answer, at)) = end else { return Ok(None) };
        if answer.args[1] != 0 {
            self.failed += 1;
            return Ok(None);
        }
        let whole = at.duration_since(start).as_nanos() as f64;
        let (parts, rest) = match order {
            Order::Plug(_) => (UP, "plug, host and back"),
            _ => (DOWN, "unplug, host and back"),
        };
        let moment = |state: Option<CpuState>, none: u64| match state {
            Some(state) => entered.iter().find(|(of, _)| *of == state).map(|(_, tsc)| *tsc),
            None => Some(none),
        };
        let taken = answer.args[3];
        let ns = |from: u64, to: u64| {
            (to >= from).then(|| (to - from) as f64 * 1000.0 / f64::from(self.tsc_mhz))
        };
        for (name, from, to) in parts {
            let bounds = moment(from, taken).zip(moment(to, answer.tsc));
            if let Some(ns) = bounds.and_then(|(from, to)| ns(from, to)) {
                self.parts.push(name, ns);
            }
        }
        if let Some(inside) = ns(taken, answer.tsc)
            && inside <= whole
        {
            self.parts.push(rest, whole - inside);
        }
        Ok(Some(whole))
    }
}
