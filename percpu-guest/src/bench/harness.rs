//! Timed loops: a subject, the bare instructions and a shared `lock xadd`, a stretch of each in
//! every round, so that whatever disturbs the machine hits all three alike.
//!
//! Something that disturbs makes a stretch longer and never shorter, so the minimum is what the
//! operation costs. That does not hold for several CPUs on one word, which get out of each other's
//! way when the host takes one of them off: there the median counts, of rounds in which all of them
//! were at work.

use percpu_core::sync::Mutex;
use percpu_guest::abi::{BENCH_ROUNDS, BenchTimes};

use super::bare;
use super::team::Team;
use percpu_guest::kernel::arch::tsc;
use percpu_guest::kernel::shared;

/// Operations in the body of a timed loop.
pub(super) const UNROLL: u64 = 8;
/// How long a row is measured before the rounds that counted have to do.
const PATIENCE_NS: u64 = 2_000_000_000;
/// How long a first one is waited for. A busy host may keep CPUs from running at the same time.
const MOST_PATIENCE_NS: u64 = 20_000_000_000;

/// What is timed in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Variant {
    Subject = 0,
    Bare = 1,
    Shared = 2,
}

const VARIANTS: [Variant; 3] = [Variant::Subject, Variant::Bare, Variant::Shared];

/// Ticks of an operation in thousandths, by variant and round.
type Samples = [[u64; BENCH_ROUNDS as usize]; VARIANTS.len()];

/// One row's; too large for the stack.
static SAMPLES: Mutex<Samples> = Mutex::new([[0; BENCH_ROUNDS as usize]; VARIANTS.len()]);

/// The measurement of one row.
pub struct Bench {
    cpus: u32,
    rounds: u32,
    times: [BenchTimes; VARIANTS.len()],
}

impl Bench {
    /// One that has measured nothing.
    pub fn new() -> Self {
        Self { cpus: 1, rounds: 0, times: [BenchTimes { min: 0, median: 0 }; VARIANTS.len()] }
    }

    /// Measures `subject` beside `bare` on this CPU.
    pub fn alone(&mut self, subject: impl Fn(), bare: impl Fn()) {
        self.measure(|variant, times| {
            Some(match variant {
                Variant::Subject => stretch(times, &subject),
                Variant::Bare => stretch(times, &bare),
                Variant::Shared => stretch(times, &bare::shared_xadd),
            })
        });
    }

    /// Measures `subject` beside `bare` on this CPU, while the other CPUs from 0 to `cpus` do the
    /// same as this one.
    pub fn together(&mut self, cpus: u32, subject: impl Fn() + Sync, bare: impl Fn() + Sync) {
        self.cpus = cpus.min(shared::boot().boot_cpus);
        let team = Team::start(self.cpus, &subject, &bare);
        self.measure(|variant, times| {
            team.while_all_work(variant, times, || match variant {
                Variant::Subject => stretch(times, &subject),
                Variant::Bare => stretch(times, &bare),
                Variant::Shared => stretch(times, &bare::shared_xadd),
            })
        });
    }

    /// CPUs that were at work.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Rounds that counted.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// By variant.
    pub fn times(&self) -> [BenchTimes; VARIANTS.len()] {
        self.times
    }

    /// All rounds. `stretch` goes through so many loops of a variant and says how many ticks that
    /// took, or that it does not count.
    fn measure(&mut self, mut stretch: impl FnMut(Variant, u64) -> Option<u64>) {
        let boot = shared::boot();
        let rounds = boot.bench_rounds.clamp(1, BENCH_ROUNDS);
        let wanted = u64::from(boot.bench_us) * u64::from(boot.tsc_mhz);
        let loops = VARIANTS.map(|variant| calibrate(wanted, |loops| stretch(variant, loops)));
        let mut samples = SAMPLES.lock();
        let began = tsc::now_ns();
        self.rounds = 0;
        while self.rounds < rounds {
            let spent = tsc::now_ns() - began;
            if spent > PATIENCE_NS && (self.rounds > 0 || spent > MOST_PATIENCE_NS) {
                break;
            }
            let round = VARIANTS.map(|variant| {
                let loops = loops[variant as usize];
                Some(stretch(variant, loops)? * 1000 / (loops * UNROLL))
            });
            let [Some(subject), Some(bare), Some(shared)] = round else { continue };
            for (of_variant, sample) in samples.iter_mut().zip([subject, bare, shared]) {
                of_variant[self.rounds as usize] = sample;
            }
            self.rounds += 1;
        }
        for (times, of_variant) in self.times.iter_mut().zip(samples.iter_mut()) {
            let counted = &mut of_variant[..self.rounds as usize];
            counted.sort_unstable();
            if let (Some(&min), Some(&median)) = (counted.first(), counted.get(counted.len() / 2)) {
                *times = BenchTimes { min, median };
            }
        }
    }
}

/// Whether the host emulates this CPU's instructions one by one.
pub(super) fn is_emulated() -> bool {
    /// Far more than an instruction takes that the CPU itself executes.
    const TICKS: u64 = 200;
    let fastest = (0..10).map(|_| stretch(1, &bare::add)).min();
    fastest.is_some_and(|ticks| ticks > TICKS * UNROLL)
}

/// Loops that take about `wanted` ticks.
fn calibrate(wanted: u64, mut stretch: impl FnMut(u64) -> Option<u64>) -> u64 {
    const MOST: u64 = 1 << 24;
    let began = tsc::now_ns();
    let mut loops = 1;
    while loops < MOST && tsc::now_ns() - began < MOST_PATIENCE_NS {
        // One that does not count says nothing about how long it takes.
        let Some(ticks) = stretch(loops) else { continue };
        if ticks >= wanted / 4 {
            return (loops * wanted / ticks).clamp(1, MOST);
        }
        loops *= 2;
    }
    loops
}

/// Goes through `loops` loops of `UNROLL` operations each and returns the ticks that took.
#[inline(never)]
fn stretch(loops: u64, op: &impl Fn()) -> u64 {
    let start = tsc::now();
    for _ in 0..loops {
        unrolled(op);
    }
    tsc::now() - start
}

/// The body of a loop, in which the loop itself costs next to nothing.
#[inline(always)]
pub(super) fn unrolled(op: &impl Fn()) {
    op();
    op();
    op();
    op();
    op();
    op();
    op();
    op();
}
