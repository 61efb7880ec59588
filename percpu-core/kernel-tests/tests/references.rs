//! References in a kernel: where operations are no step for other CPUs, a word is closed by an
//! interrupt of its CPU, and stays closed where the CPU cannot be interrupted.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::thread;

use kernel_tests::{boot, on_cpus};
use percpu_core::area::Config;
use percpu_core::cpu::{self, CpuId};
use percpu_core::hotplug::{self, CpuOps, Section, Serve, StartError, StepError};
use percpu_core::irq;
use percpu_core::refcount::{PercpuRef, RefFlags, Release};
use percpu_core::var::PerCpuPtr;
use percpu_core::view::RefView;

const CPUS: usize = 4;
const SWITCHES: usize = 1000;

struct Object;

static RELEASES: AtomicU32 = AtomicU32::new(0);

impl Release for Object {
    fn release(&self) {
        RELEASES.fetch_add(1, SeqCst);
    }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

/// The CPUs whose words are open, while no CPU uses the ref.
fn open_words(of: &PercpuRef<Object>) -> Vec<usize> {
    let view = std::ptr::with_exposed_provenance::<RefView>(of.view_address());
    // SAFETY: the ref is there, and its words are integers that nothing changes now.
    let open = |&n: &usize| unsafe {
        PerCpuPtr::<i64>::from_raw((*view).words as usize).read_on(cpu(n)) >= 0
    };
    (0..CPUS).filter(open).collect()
}

/// Ends a life of a ref to which there are no references but its first. It is released once, now.
fn end(object: &PercpuRef<Object>, what: &str) {
    let before = RELEASES.load(SeqCst);
    let guard = object.tryget().unwrap_or_else(|| panic!("{what}: released while it is alive"));
    object.kill().unwrap();
    assert_eq!(RELEASES.load(SeqCst), before, "{what}: released under a reference");
    drop(guard);
    assert_eq!(RELEASES.load(SeqCst), before + 1, "{what}: a reference is left");
    object.reinit().unwrap();
}

/// Takes and gives back, all the time, until `stop`.
fn use_until(object: &PercpuRef<Object>, stop: &AtomicBool) {
    while !stop.load(SeqCst) {
        for _ in 0..50 {
            drop(object.get());
        }
    }
}

#[test]
fn references_are_counted_with_and_without_hotplug() {
    // A CPU that panics is one for which the others wait for ever.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
    boot(CPUS as u32, &Config::default()).unwrap();
    let object = PercpuRef::new(Object, RefFlags::ALLOW_REINIT).unwrap();

    // No hotplug: the online mask has the boot CPU, and four run.
    let (stop, running) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            on_cpus(1..CPUS, |_| {
                running.fetch_add(1, SeqCst);
                use_until(&object, &stop);
            });
        });
        while running.load(SeqCst) != 3 {
            thread::yield_now();
        }
        for _ in 0..SWITCHES {
            object.switch_to_atomic();
            object.switch_to_percpu();
            drop(object.get());
        }
        stop.store(true, SeqCst);
    });
    assert!(object.is_percpu() && open_words(&object).is_empty());
    end(&object, "without hotplug");

    // A CPU that runs, but not because hotplug has brought it up, is like that for ever.
    hotplug::init(&MACHINE, cpu(0));
    drop(object.get());
    on_cpus(3..4, |_| drop(object.get()));
    assert_eq!(open_words(&object), [0]);
    end(&object, "a CPU behind hotplug's back");

    with_hotplug(Box::leak(Box::new(object)));
}

/// The ref that CPUs use on their way up and down, and while they run.
static REF: Mutex<Option<&PercpuRef<Object>>> = Mutex::new(None);
static STOP: AtomicBool = AtomicBool::new(false);
/// Changes of mode while CPUs 1 and 2 are up.
static SWITCHED: AtomicUsize = AtomicUsize::new(0);

fn starting(_: CpuId) -> Result<(), StepError> {
    let object = REF.lock().unwrap().unwrap();
    (0..10).for_each(|_| drop(object.get()));
    Ok(())
}

fn dying(_: CpuId) {
    starting(cpu(0)).unwrap();
}

fn with_hotplug(object: &'static PercpuRef<Object>) {
    *REF.lock().unwrap() = Some(object);
    hotplug::register(Section::Starting, "use", Some(starting), Some(dying)).unwrap();
    (1..3).for_each(|n| hotplug::set_present(cpu(n)));
    (1..3).for_each(|n| hotplug::cpu_up(cpu(n)).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            // Both CPUs use the ref meanwhile.
            while SWITCHED.load(SeqCst) < 20 * SWITCHES {
                thread::yield_now();
            }
            for _ in 0..30 {
                hotplug::cpu_down(cpu(2)).unwrap();
                hotplug::cpu_up(cpu(2)).unwrap();
            }
            STOP.store(true, SeqCst);
        });
        // This thread is the boot CPU, which is interrupted, too, when it does not close words.
        while !STOP.load(SeqCst) {
            object.switch_to_atomic();
            object.switch_to_percpu();
            drop(object.get());
            SWITCHED.fetch_add(1, SeqCst);
        }
    });
    // Words of CPUs that went down are as they were left.
    hotplug::cpu_down(cpu(2)).unwrap();
    hotplug::cpu_down(cpu(1)).unwrap();
    assert_eq!(cpu::online().count(), 1);
    end(object, "with hotplug");
    object.switch_to_atomic();
    assert!(open_words(object).is_empty());
}

struct Machine;

static MACHINE: Machine = Machine;
static THREADS: Mutex<Vec<(CpuId, thread::JoinHandle<()>)>> = Mutex::new(Vec::new());

/// What a CPU does from its start to its end.
fn run(cpu: CpuId) {
    let masked = irq::disable();
    // SAFETY: this is that CPU, just started, with interrupts masked.
    unsafe { hotplug::arrive(cpu) }.unwrap();
    drop(masked);
    let object = REF.lock().unwrap().unwrap();
    while hotplug::serve(cpu) != Serve::Die {
        // A reference that the CPU has on its way down.
        (0..1000).for_each(|_| drop(object.get()));
    }
    let guard = object.get();
    let masked = irq::disable();
    // SAFETY: this is that CPU, and nothing else runs on it.
    unsafe { hotplug::die(cpu) };
    drop(guard);
    // SAFETY: nothing follows that matters to others.
    unsafe { hotplug::dead(cpu) };
    drop(masked);
}

impl CpuOps for Machine {
    fn start(&self, cpu: CpuId) -> Result<(), StartError> {
        let one = cpu.index()..cpu.index() + 1;
        THREADS.lock().unwrap().push((cpu, thread::spawn(move || on_cpus(one, run))));
        Ok(())
    }

    fn reap(&self, cpu: CpuId) {
        let mut threads = THREADS.lock().unwrap();
        let at = threads.iter().position(|(of, _)| *of == cpu).unwrap();
        threads.remove(at).1.join().unwrap();
    }

    fn arrival_timeout_ns(&self) -> u64 {
        u64::MAX
    }
}
