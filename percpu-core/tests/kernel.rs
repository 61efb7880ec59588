//! Set-up and hotplug as a kernel does them, call by call: a kernel of three CPUs, numbered with
//! gaps, of which one is never plugged in.

#[path = "common/threads.rs"]
mod threads;

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use percpu_core::area::{self, Config};
use percpu_core::counter::PercpuCounter;
use percpu_core::cpu::{self, CpuId};
use percpu_core::hotplug::{
    self, ArriveError, CpuOps, HotplugError, RegisterError, Section, Serve, StartError,
};
use percpu_core::{arch, counter, irq, percpu, preempt, var, view};
use threads::abort_on_panic;

percpu! {
    static LIVES: PerCpu<u32> = 0;
}

/// The counters' steps are not registered here: nobody folds what a CPU that went down has counted.
static UNFOLDED: OnceLock<PercpuCounter> = OnceLock::new();

const BOOT: usize = 0;
const SECOND: usize = 2;
const ABSENT: usize = 5;

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

/// What a started CPU executes.
fn run(cpu: CpuId) {
    // SAFETY: a fresh thread, the only one that is this CPU.
    unsafe { arch::set_offset(area::offset(cpu)) };
    let masked = irq::disable();
    LIVES.inc();
    UNFOLDED.get().unwrap().add(7);
    // SAFETY: this is that CPU, just started.
    unsafe { hotplug::arrive(cpu) }.unwrap();
    drop(masked);
    loop {
        // The next request may come at any time. One that is there stays: only this thread serves it.
        let has_work = hotplug::has_work(cpu);
        match hotplug::serve(cpu) {
            Serve::Die => break,
            Serve::Worked => {}
            Serve::Idle => {
                assert!(!has_work, "a request was not served");
                thread::yield_now();
            }
        }
    }
    let masked = irq::disable();
    // SAFETY: this is that CPU, and nothing else runs on it.
    unsafe { hotplug::die(cpu) };
    drop(masked);
    // SAFETY: nothing follows.
    unsafe { hotplug::dead(cpu) };
}

struct Machine(Mutex<Option<JoinHandle<()>>>);

static MACHINE: Machine = Machine(Mutex::new(None));

impl CpuOps for Machine {
    fn start(&self, cpu: CpuId) -> Result<(), StartError> {
        *self.0.lock().unwrap() = Some(thread::spawn(move || abort_on_panic(|| run(cpu))));
        // The CPU is faster than the one that starts it.
        thread::sleep(Duration::from_millis(5));
        Ok(())
    }

    fn reap(&self, _cpu: CpuId) {
        self.0.lock().unwrap().take().unwrap().join().unwrap();
    }

    fn arrival_timeout_ns(&self) -> u64 {
        u64::MAX
    }
}

static STARTED: AtomicU32 = AtomicU32::new(0);

#[test]
fn a_kernel_boots_and_plugs_cpus() {
    // Whatever alignment the linker would choose for the variables of this program.
    assert!(var::template().start.is_multiple_of(4096));
    assert!(!area::is_set_up());
    assert_eq!(CpuId::new(BOOT), None, "no CPU is possible yet");
    let possible = [BOOT as u32, SECOND as u32, ABSENT as u32];
    // SAFETY: nothing per-CPU was used.
    unsafe { area::setup_per_cpu_areas(possible.into_iter(), &Config::default()) }.unwrap();
    // SAFETY: this thread is the boot CPU, and stays it.
    unsafe { arch::set_offset(area::offset(cpu(BOOT))) };
    assert_eq!((cpu::this_cpu_raw(), preempt::count()), (BOOT as u32, 0));
    assert_eq!(cpu::possible().iter().map(|c| c.index()).collect::<Vec<_>>(), [0, 2, 5]);
    assert_eq!((cpu::nr_cpu_ids(), CpuId::new(1)), (6, None));
    assert_eq!(view::roots().nr_cpu_ids, 6);

    let boot = cpu(BOOT);
    let early = PercpuCounter::new(1).unwrap();
    early.add(30);
    assert_eq!((early.sum(), early.limited_add(10, 1)), (31, false), "the boot CPU counts");
    let unfolded = UNFOLDED.get_or_init(|| PercpuCounter::new(100).unwrap());
    hotplug::init(&MACHINE, boot);
    assert!(cpu::present().contains(boot) && cpu::online().contains(boot));
    // The boot CPU has no hotplug thread yet: its start-ups run here.
    let count = |_| {
        STARTED.fetch_add(1, SeqCst);
        Ok(())
    };
    for section in [Section::Prepare, Section::Starting, Section::Online] {
        hotplug::register(section, "early", Some(count), None).unwrap();
    }
    assert_eq!(STARTED.load(SeqCst), 3);

    assert_eq!(hotplug::cpu_up(cpu(SECOND)), Err(HotplugError::NotPresent));
    hotplug::set_present(cpu(SECOND));
    assert_eq!(hotplug::cpu_up(cpu(ABSENT)), Err(HotplugError::NotPresent));
    assert_eq!(hotplug::cpu_down(boot), Err(HotplugError::LastCpu));
    // SAFETY: a CPU that arrives out of the blue; no CPU in fact.
    let stray = unsafe { hotplug::arrive(cpu(SECOND)) };
    assert_eq!(stray, Err(ArriveError::NotExpected));

    for life in 1..=3 {
        hotplug::cpu_up(cpu(SECOND)).unwrap();
        assert_eq!(STARTED.load(SeqCst), 3 + 3 * life);
        assert_eq!(LIVES.read_on(cpu(SECOND)), life, "its area is what it left");
        assert_eq!(cpu::active().iter().map(|c| c.index()).collect::<Vec<_>>(), [0, 2]);
        hotplug::cpu_down(cpu(SECOND)).unwrap();
        assert!(MACHINE.0.lock().unwrap().is_none(), "reaped");
        assert_eq!((unfolded.read(), unfolded.sum()), (100, 100 + 7 * i64::from(life)));
    }
    assert_eq!((LIVES.read(), LIVES.read_on(cpu(ABSENT))), (0, 0));

    // The same, as another address space sees it.
    let roots = view::roots();
    let mask = |n: u64| {
        let at = (roots.masks + n * roots.mask_size) as usize;
        // SAFETY: the masks are statics, and nobody changes them now.
        unsafe { std::ptr::with_exposed_provenance::<u64>(at).read() }
    };
    let all = 0b100101;
    // CPU 2 is down, but counted because nobody has folded what it counted.
    let masks = [all, 0b101, 0b1, 0b1, 0, all, 0, all];
    assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(mask), masks);
    counter::cpu_dead(cpu(SECOND));
    assert_eq!((unfolded.read(), unfolded.sum()), (121, 121));
    assert_eq!(mask(7), 0b100001);
    let areas = std::ptr::with_exposed_provenance::<view::AreasView>(roots.areas as usize);
    // SAFETY: the areas are set up and do not change any more.
    let areas = unsafe { areas.read() };
    let offset = areas.offset as usize + SECOND * size_of::<u64>();
    // SAFETY: as above.
    let offset = unsafe { std::ptr::with_exposed_provenance::<u64>(offset).read() };
    assert_eq!(offset as usize, area::offset(cpu(SECOND)));
    assert_eq!(areas.template as usize, var::template().start);

    // The counters' two steps where there is room for one: a later call registers the other.
    let mut others = Vec::new();
    while let Ok(id) = hotplug::register(Section::Prepare, "other", None, None) {
        others.push(id);
    }
    hotplug::unregister(others.pop().unwrap());
    assert_eq!(counter::register_hotplug_steps(), Err(RegisterError::Full));
    others.drain(..2).for_each(hotplug::unregister);
    (0..2).for_each(|_| counter::register_hotplug_steps().unwrap());
    let names: Vec<_> = hotplug::steps().map(|step| step.2).collect();
    for name in ["counter:dead", "counter:online"] {
        assert_eq!(names.iter().filter(|it| **it == name).count(), 1, "{name} in {names:?}");
    }
    hotplug::cpu_up(cpu(SECOND)).unwrap();
    hotplug::cpu_down(cpu(SECOND)).unwrap();
    assert_eq!((unfolded.read(), unfolded.sum()), (128, 128), "folded once");
}
