//! The larger combinations under shuttle: CPUs that come and go while they count, allocate, take
//! references and give them back, in interleavings chosen by PCT (priorities and a few points where
//! they change), which finds a bug of a given depth with a known probability.
//!
//! `cargo xtask shuttle` runs it. A CPU is a thread of the model: it arrives, works while it has
//! nothing to serve, and dies. The boot CPU is the thread that plugs the others; beside it a thread
//! that is no CPU adds and removes a hotplug step's instances.
//!
//! A failure prints its schedule. With that in `PERCPU_SCHEDULE`, and the test's name, it runs again.
//! `PERCPU_ITERATIONS` says how many interleavings are tried.

#![cfg(shuttle)]

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use percpu_core::alloc::{self, AllocFlags};
use percpu_core::area::{self, Config};
use percpu_core::counter::{HierarchicalCounter, LazyCounter, PercpuCounter};
use percpu_core::cpu::{self, CpuId};
use percpu_core::hotplug::{self, CpuOps, Section, Serve, StartError};
use percpu_core::refcount::{PercpuRef, RefFlags, Release};
use percpu_core::var::PerCpuPtr;
use percpu_core::{arch, counter, irq, model};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, ReplayScheduler};
use shuttle::thread::JoinHandle;

const CPUS: usize = 4;
const BOOT: usize = 0;
/// Operations of a CPU's life, unless it is shorter.
const OPERATIONS: usize = 6;
/// Points at which PCT changes priorities, plus one.
const DEPTH: usize = 3;
const ITERATIONS: usize = 5000;

/// What the CPUs do.
#[derive(Clone, Copy, Default)]
struct Mix {
    counters: bool,
    refs: bool,
    allocator: bool,
    instances: bool,
}

/// What the CPUs do it to.
struct World {
    mix: Mix,
    counter: Counted<PercpuCounter>,
    lazy: Counted<LazyCounter>,
    hierarchical: Counted<HierarchicalCounter>,
    object: PercpuRef<Object>,
    uses: Arc<Uses>,
    /// Odd while the object's ref is known to be dead.
    epoch: AtomicU32,
    /// The CPUs are at rest.
    over: AtomicBool,
}

/// A counter, and what is known of it. These words are not the model's: no step is between them and
/// what is next to them.
struct Counted<C> {
    counter: C,
    begun: AtomicI64,
    done: AtomicI64,
}

impl<C> Counted<C> {
    fn new(counter: C) -> Self {
        Self { counter, begun: AtomicI64::new(0), done: AtomicI64::new(0) }
    }

    fn add(&self, amount: i64, add: impl FnOnce(&C, i64)) {
        self.begun.fetch_add(amount, SeqCst);
        add(&self.counter, amount);
        self.done.fetch_add(amount, SeqCst);
    }

    /// K1, K6: a sum has all adds that were done before it, and none that begins after it.
    fn check(&self, name: &str, sum: impl FnOnce(&C) -> i64) {
        let done = self.done.load(SeqCst);
        let sum = sum(&self.counter);
        let begun = self.begun.load(SeqCst);
        assert!((done..=begun).contains(&sum), "{name}: {sum} is not in {done}..={begun}");
    }
}

/// What references are taken to; the world looks at it without one.
struct Object(Arc<Uses>);

#[derive(Default)]
struct Uses {
    holders: AtomicU32,
    releases: AtomicU32,
}

impl Release for Object {
    fn release(&self) {
        assert_eq!(self.0.holders.load(SeqCst), 0, "R1: released while somebody has a reference");
        self.0.releases.fetch_add(1, SeqCst);
    }
}

impl World {
    fn new(mix: Mix) -> Self {
        let uses = Arc::<Uses>::default();
        let object = PercpuRef::new(Object(uses.clone()), RefFlags::ALLOW_REINIT).unwrap();
        Self {
            mix,
            counter: Counted::new(PercpuCounter::new(0).unwrap()),
            lazy: Counted::new(LazyCounter::new(0)),
            hierarchical: Counted::new(HierarchicalCounter::new(0, 8).unwrap()),
            object,
            uses,
            epoch: AtomicU32::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// One operation of a CPU.
    fn work(&self, areas: &mut Vec<Area>) {
        let mix = self.mix;
        if mix.counters {
            match thread_rng().gen_range(0..4) {
                0 => self.counter.add(2, |counter, amount| counter.add_batch(amount, 3)),
                1 => self.counter.add(1, |counter, amount| counter.add_local(amount)),
                2 => self.lazy.add(1, |counter, amount| counter.add(amount)),
                _ => self.hierarchical.add(5, |counter, amount| counter.add(amount)),
            }
        }
        if mix.refs {
            self.use_object();
        }
        if mix.allocator {
            Area::take_or_give(areas);
        }
    }

    /// Sums until all is over, whenever nobody of a higher priority has something to do.
    fn check_sums(&self) {
        while !self.over.load(SeqCst) {
            self.counter.check("counter", PercpuCounter::sum);
            self.lazy.check("lazy counter", LazyCounter::sum);
            shuttle::thread::yield_now();
        }
    }

    fn releases(&self) -> u32 {
        self.uses.releases.load(SeqCst)
    }

    fn use_object(&self) {
        let epoch = self.epoch.load(SeqCst);
        let Some(reference) = self.object.tryget_live() else { return };
        let dead = epoch % 2 == 1 && self.epoch.load(SeqCst) == epoch;
        assert!(!dead, "a reference to what was confirmed to be dead");
        reference.0.holders.fetch_add(1, SeqCst);
        let again = reference.clone();
        shuttle::thread::yield_now();
        again.0.holders.fetch_sub(1, SeqCst);
        drop(again);
        drop(reference);
    }

    /// Kills the object's ref and revives it, waiting for the release or not.
    fn kill_and_revive(&self) {
        let before = self.releases();
        self.object.kill().unwrap();
        self.epoch.fetch_add(1, SeqCst);
        let wait = thread_rng().gen_range(0..2) == 0;
        while wait && self.releases() == before {
            shuttle::thread::yield_now();
        }
        self.epoch.fetch_add(1, SeqCst);
        if wait { self.object.reinit() } else { self.object.resurrect() }.unwrap();
        assert!(self.releases() - before <= 1, "released twice");
    }

    /// What must be so when nothing runs.
    fn check_at_rest(&self) {
        let exact = |name, sum: i64, done: &AtomicI64| {
            assert_eq!(sum, done.load(SeqCst), "K1: {name}");
        };
        exact("counter", self.counter.counter.sum(), &self.counter.done);
        exact("lazy counter", self.lazy.counter.sum(), &self.lazy.done);
        exact("hierarchical", self.hierarchical.counter.sum(), &self.hierarchical.done);
        for cpu in (1..CPUS).map(possible) {
            // SAFETY: the counter lives, and local parts are only accessed atomically.
            let local = unsafe { self.counter.counter.locals().read_on(cpu) };
            assert_eq!(local, 0, "K5: a dead CPU's local part");
        }
        assert_eq!(self.uses.holders.load(SeqCst), 0);
        let before = self.releases();
        self.object.kill().unwrap();
        assert_eq!(self.releases(), before + 1, "released once at its end");
    }
}

/// An area of dynamic memory, on every CPU filled with its own address.
struct Area {
    ptr: PerCpuPtr<u8>,
    size: usize,
}

impl Area {
    fn take_or_give(areas: &mut Vec<Area>) {
        let flags = [AllocFlags::NONE, AllocFlags::ATOMIC][thread_rng().gen_range(0..2)];
        let size = [8, 40, 1000][thread_rng().gen_range(0..3)];
        if areas.len() < 2
            && let Ok(ptr) = alloc::global().alloc(size, 8, flags)
        {
            let area = Self { ptr, size };
            area.replace(0, area.tag());
            return areas.push(area);
        }
        if let Some(area) = areas.pop() {
            area.free();
        }
        if thread_rng().gen_range(0..4) == 0 {
            alloc::global().drain_caches();
        }
    }

    fn tag(&self) -> u8 {
        (self.ptr.raw() / 8) as u8 | 1
    }

    /// Looks for `old` in every byte, and puts `new` there.
    fn replace(&self, old: u8, new: u8) {
        for cpu in cpu::booted_once().iter() {
            // SAFETY: the area is live, and this one's owner's alone.
            let bytes = unsafe { std::slice::from_raw_parts_mut(self.ptr.on(cpu), self.size) };
            assert!(bytes.iter().all(|&byte| byte == old), "I1, I14: {:?} on {cpu:?}", self.ptr);
            bytes.fill(new);
        }
    }

    fn free(self) {
        self.replace(self.tag(), 0xee);
        // SAFETY: nobody uses it any more.
        unsafe { alloc::free_percpu(self.ptr) }.unwrap();
    }
}

fn possible(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

/// The thread that each CPU is, and the world that it is in.
struct Machine {
    threads: Mutex<[Option<JoinHandle<()>>; CPUS]>,
    world: Mutex<Option<Arc<World>>>,
}

static MACHINE: Machine =
    Machine { threads: Mutex::new([const { None }; CPUS]), world: Mutex::new(None) };

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A CPU's life.
fn live(cpu: CpuId, world: &World) {
    // SAFETY: a fresh thread, the only one that is this CPU.
    unsafe { arch::set_offset(area::offset(cpu)) };
    let masked = irq::disable();
    // SAFETY: this is that CPU, just started.
    unsafe { hotplug::arrive(cpu) }.unwrap();
    drop(masked);
    let (mut areas, mut operations) = (Vec::new(), OPERATIONS);
    loop {
        match hotplug::serve(cpu) {
            Serve::Die => break,
            Serve::Worked => {}
            Serve::Idle if operations > 0 => {
                operations -= 1;
                world.work(&mut areas);
            }
            Serve::Idle => shuttle::thread::yield_now(),
        }
    }
    areas.into_iter().for_each(Area::free);
    let masked = irq::disable();
    // SAFETY: this is that CPU, and nothing else runs on it.
    unsafe { hotplug::die(cpu) };
    drop(masked);
    // SAFETY: nothing follows.
    unsafe { hotplug::dead(cpu) };
}

impl CpuOps for Machine {
    fn start(&self, cpu: CpuId) -> Result<(), StartError> {
        let world = lock(&self.world).clone().expect("a world");
        let thread = shuttle::thread::spawn(move || live(cpu, &world));
        lock(&self.threads)[cpu.index()] = Some(thread);
        Ok(())
    }

    fn reap(&self, cpu: CpuId) {
        let thread = lock(&self.threads)[cpu.index()].take();
        thread.expect("it was started").join().unwrap();
    }

    fn arrival_timeout_ns(&self) -> u64 {
        u64::MAX
    }
}

/// Adds a step's instances and removes them, and looks whether they run where CPUs are up.
fn add_and_remove_instances() {
    let step = hotplug::register_multi::<AtomicU32>(
        Section::Online,
        "model",
        Some(|cpu, started| {
            let before = started.fetch_or(1 << cpu.index(), SeqCst);
            assert_eq!(before & 1 << cpu.index(), 0, "started twice on {cpu:?}");
            Ok(())
        }),
        Some(|cpu, started| {
            let before = started.fetch_and(!(1 << cpu.index()), SeqCst);
            assert_ne!(before & 1 << cpu.index(), 0, "stopped twice on {cpu:?}");
        }),
    )
    .unwrap();
    for _ in 0..2 {
        let instances = [(); 2].map(|()| step.add(AtomicU32::new(0)).unwrap());
        let still = hotplug::cpus_read_lock();
        let online = cpu::online().iter().fold(0, |set, cpu| set | 1 << cpu.index());
        for instance in &instances {
            assert_eq!(instance.load(SeqCst), online, "instances run where CPUs are up");
        }
        drop(still);
        let [first, second] = instances;
        drop(first);
        drop(second);
    }
}

/// One execution.
fn execute(mix: Mix) {
    // The same beginning for each: no freed area waits anywhere.
    alloc::global().drain_caches();
    let live = alloc::global().statistics().live;
    let world = Arc::new(World::new(mix));
    *lock(&MACHINE.world) = Some(world.clone());

    model::start();
    // SAFETY: the boot CPU's only thread.
    unsafe { arch::set_offset(area::offset(possible(BOOT))) };
    for n in 1..CPUS {
        hotplug::cpu_up(possible(n)).unwrap();
    }
    let driver = mix.instances.then(|| shuttle::thread::spawn(add_and_remove_instances));
    let observer = mix.counters.then(|| {
        let world = world.clone();
        shuttle::thread::spawn(move || world.check_sums())
    });
    let mut areas = Vec::new();
    for _ in 0..2 {
        let victim = possible(thread_rng().gen_range(1..CPUS));
        world.work(&mut areas);
        hotplug::cpu_down(victim).unwrap();
        world.work(&mut areas);
        if mix.refs {
            world.kill_and_revive();
        }
        if mix.allocator {
            alloc::global().balance();
        }
        hotplug::cpu_up(victim).unwrap();
    }
    areas.into_iter().for_each(Area::free);
    if let Some(driver) = driver {
        driver.join().unwrap();
    }
    for n in 1..CPUS {
        hotplug::cpu_down(possible(n)).unwrap();
    }
    world.over.store(true, SeqCst);
    if let Some(observer) = observer {
        observer.join().unwrap();
    }
    model::stop();

    world.check_at_rest();
    lock(&MACHINE.world).take();
    drop(Arc::into_inner(world).expect("all CPUs are down"));
    assert_eq!(alloc::global().statistics().live, live, "an area was kept");
}

fn boot() {
    static BOOTED: Mutex<bool> = Mutex::new(false);
    let mut booted = lock(&BOOTED);
    if !std::mem::replace(&mut *booted, true) {
        // SAFETY: nothing per-CPU was used.
        unsafe { area::setup_per_cpu_areas(0..CPUS as u32, &Config::default()) }.unwrap();
        hotplug::init(&MACHINE, possible(BOOT));
        (0..CPUS).map(possible).for_each(hotplug::set_present);
        counter::register_hotplug_steps().unwrap();
        alloc::register_hotplug_steps().unwrap();
    }
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Tries interleavings of `mix`, or the one in `PERCPU_SCHEDULE`.
fn explore(mix: Mix) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = lock(&ONE_AT_A_TIME);
    boot();
    let mut config = shuttle::Config::default();
    config.stack_size = 512 << 10;
    let model = move || execute(mix);
    // What is there only once is allocated and warm from here on, in a replay as well.
    shuttle::Runner::new(PctScheduler::new_from_seed(0, 1, 1), config.clone()).run(model);
    if let Ok(schedule) = std::env::var("PERCPU_SCHEDULE") {
        let scheduler = ReplayScheduler::new_from_encoded(&schedule);
        shuttle::Runner::new(scheduler, config).run(model);
        return;
    }
    let iterations = number("PERCPU_ITERATIONS").unwrap_or(ITERATIONS);
    let begin = std::time::Instant::now();
    shuttle::Runner::new(PctScheduler::new(DEPTH, iterations), config).run(model);
    println!("{iterations} executions in {:.1} s", begin.elapsed().as_secs_f32());
}

#[test]
fn counters_are_exact_while_cpus_come_and_go() {
    explore(Mix { counters: true, ..Mix::default() });
}

#[test]
fn refs_are_released_once_while_cpus_come_and_go() {
    explore(Mix { refs: true, ..Mix::default() });
}

#[test]
fn areas_are_one_owners_while_caches_are_drained_and_chunks_balanced() {
    explore(Mix { allocator: true, ..Mix::default() });
}

#[test]
fn instances_run_where_cpus_are_up() {
    explore(Mix { instances: true, counters: true, ..Mix::default() });
}

#[test]
fn everything_at_once() {
    explore(Mix { counters: true, refs: true, allocator: true, instances: true });
}
