//! Timed loops: a subject, the bare instructions, a shared `lock xadd` and a spin lock, a stretch of
//! each in every round, so that whatever disturbs the machine hits all four alike.
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
    Locked = 3,
}

const VARIANTS: [Variant; 4] = [Variant::Subject, Variant::Bare, Variant::Shared, Variant::Locked];
/// Parts of the rounds that are compared, to see how much the times differ by themselves.
const PARTS: usize = 4;

/// Ticks of an operation in thousandths, by variant and round.
type Samples = [[u64; BENCH_ROUNDS as usize]; VARIANTS.len()];

/// One row's; too large for the stack.
static SAMPLES: Mutex<Samples> = Mutex::new([[0; BENCH_ROUNDS as usize]; VARIANTS.len()]);

/// The measurement of one row.
pub struct Bench {
    x: u32,
    cpus: u32,
    rounds: u32,
    times: [BenchTimes; VARIANTS.len()],
}

impl Bench {
    /// One that has measured nothing, of a row with `x` on its axis.
    pub fn new(x: u32) -> Self {
        Self { x, cpus: 1, rounds: 0, times: [BenchTimes::default(); VARIANTS.len()] }
    }

    /// What the row has on its axis.
    pub fn x(&self) -> u32 {
        self.x
    }

    /// Measures `subject` beside `bare` on this CPU.
    pub fn alone(&mut self, subject: impl Fn(), bare: impl Fn()) {
        self.measure(|variant, times| {
            Some(match variant {
                Variant::Subject => stretch(times, &subject),
                Variant::Bare => stretch(times, &bare),
                Variant::Shared => stretch(times, &bare::shared_xadd),
                Variant::Locked => stretch(times, &bare::spin_locked_add),
            })
        });
    }

    /// Measures `subject` beside `bare` on this CPU, while others do the same as this one: as many in
    /// all as the row's axis says.
    pub fn together(&mut self, subject: impl Fn() + Sync, bare: impl Fn() + Sync) {
        self.cpus = self.x.clamp(1, shared::boot().boot_cpus);
        let team = Team::start(self.cpus, &subject, &bare);
        self.measure(|variant, times| {
            team.while_all_work(variant, times, || match variant {
                Variant::Subject => stretch(times, &subject),
                Variant::Bare => stretch(times, &bare),
                Variant::Shared => stretch(times, &bare::shared_xadd),
                Variant::Locked => stretch(times, &bare::spin_locked_add),
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
            let [Some(subject), Some(bare), Some(shared), Some(locked)] = round else { continue };
            for (of_variant, sample) in samples.iter_mut().zip([subject, bare, shared, locked]) {
                of_variant[self.rounds as usize] = sample;
            }
            self.rounds += 1;
        }
        for (times, of_variant) in self.times.iter_mut().zip(samples.iter_mut()) {
            *times = summary(&mut of_variant[..self.rounds as usize], self.cpus > 1);
        }
    }
}

/// What there is to say of a row's rounds, which are in the order of time and sorted afterwards.
fn summary(rounds: &mut [u64], median_counts: bool) -> BenchTimes {
    if rounds.is_empty() {
        return BenchTimes::default();
    }
    let (mut least, mut most) = (u64::MAX, 0);
    for part in rounds.chunks_mut(rounds.len().div_ceil(PARTS)) {
        part.sort_unstable();
        let counts = part[if median_counts { part.len() / 2 } else { 0 }];
        (least, most) = (least.min(counts), most.max(counts));
    }
    rounds.sort_unstable();
    BenchTimes {
        min: rounds[0],
        median: rounds[rounds.len() / 2],
        p99: rounds[(rounds.len() * 99).div_ceil(100) - 1],
        noise: most - least,
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
