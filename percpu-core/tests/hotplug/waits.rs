//! Waits that would not end: for the thread that waits, for a CPU that nobody leaves, for a guard that
//! was forgotten.

use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use percpu_core::cpu::CpuId;
use percpu_core::host;
use percpu_core::hotplug::{self, HotplugError, RegisterError, Section, StepError};
use percpu_core::platform::{Global, Platform};

use super::steps::{STEPS, Steps, downs, ups};
use super::{CPUS, assert_down, assert_up, cpu, system, take_log, victim};

fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let payload = catch_unwind(AssertUnwindSafe(|| drop(f()))).expect_err("it panics");
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.unwrap_or_else(|| *payload.downcast::<String>().unwrap())
}

/// A thread that is a CPU until this is dropped.
struct Occupied(Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>);

impl Occupied {
    fn new(cpu: CpuId) -> Self {
        let (entered, wait) = mpsc::channel();
        let (leave, until) = mpsc::channel();
        let thread = thread::spawn(move || {
            let _cpu = host::enter_when_free(cpu).unwrap();
            entered.send(()).unwrap();
            let _ = until.recv();
        });
        wait.recv().unwrap();
        Self(Some((leave, thread)))
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let (leave, thread) = self.0.take().unwrap();
        drop(leave);
        thread.join().unwrap();
    }
}

/// Shortens the time in which a CPU has to answer, until it is dropped.
struct Impatient;

impl Impatient {
    fn new() -> Self {
        host::set_answer_timeout(Duration::from_millis(50));
        Self
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        host::set_answer_timeout(Duration::from_secs(10));
    }
}

#[test]
fn a_thread_that_is_a_cpu_is_refused_what_waits_for_that_cpu() {
    let _system = system();
    let _steps = Steps::register();
    let disks = hotplug::register_multi::<u32>(Section::Online, "disks", Some(|_, _| Ok(())), None);
    let disks = disks.unwrap();
    let old = hotplug::register(Section::Online, "old", None, Some(|_| ())).unwrap();
    let entered = host::enter_when_free(victim()).unwrap();
    let before = hotplug::steps().count();
    take_log();
    for panic in [
        panic_of(|| hotplug::cpu_down(victim())),
        panic_of(|| disks.add(7)),
        panic_of(|| hotplug::register(Section::Online, "new", Some(|_| Ok(())), None)),
        panic_of(|| hotplug::unregister(old)),
    ] {
        assert!(panic.contains("waits for that CPU's hotplug thread"), "{panic}");
        assert_eq!(take_log(), [""; 0], "nothing was run");
        assert_eq!(hotplug::steps().count(), before);
        assert!(!hotplug::has_work(victim()), "nothing is left in the mailbox");
        assert_eq!(hotplug::state(victim()), hotplug::CpuState::Online);
        assert!(cpu::active().contains(victim()));
    }
    // What does not concern that CPU goes on.
    hotplug::cpu_down(cpu(3)).unwrap();
    hotplug::cpu_up(cpu(3)).unwrap();
    let prepare = hotplug::register(Section::Prepare, "here", Some(|_| Ok(())), None).unwrap();
    hotplug::unregister(prepare);
    drop(entered);
    hotplug::unregister(old);
    take_log();
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(take_log(), downs(0..STEPS));
    hotplug::cpu_up(victim()).unwrap();
    assert_up(victim());
}

#[test]
fn of_two_cpus_that_take_each_other_down_one_is_refused() {
    let _system = system();
    let begin = Barrier::new(2);
    let results = thread::scope(|scope| {
        let begin = &begin;
        [(1, 3), (3, 1)]
            .map(|(this, other)| {
                scope.spawn(move || {
                    let _cpu = host::enter_when_free(cpu(this)).unwrap();
                    begin.wait();
                    hotplug::cpu_down(cpu(other))
                })
            })
            .map(|thread| thread.join())
    });
    let refused = results.iter().filter(|result| result.is_err()).count();
    // One goes first, and finds the other gone when that has been refused.
    assert_eq!(refused, 1, "{results:?}");
    assert_eq!(results.iter().flatten().collect::<Vec<_>>(), [&Ok(())]);
    for n in [1, 3] {
        let _ = hotplug::cpu_up(cpu(n));
        assert_up(cpu(n));
    }
}

#[test]
fn a_cpu_on_its_way_down_does_not_wait_for_a_reader_on_that_cpu() {
    let _system = system();
    let entered = host::enter_when_free(victim()).unwrap();
    let down = thread::spawn(|| hotplug::cpu_down(victim()));
    while !hotplug::has_work(victim()) {
        thread::yield_now();
    }
    let panic = panic_of(hotplug::cpus_read_lock);
    assert!(panic.contains("leave it first"), "{panic}");
    drop(entered);
    assert_eq!(down.join().unwrap(), Ok(()));
    drop(hotplug::cpus_read_lock());
    hotplug::cpu_up(victim()).unwrap();
}

#[test]
fn on_each_cpu_is_refused_to_a_thread_that_is_a_cpu() {
    let _system = system();
    let entered = host::enter_when_free(victim()).unwrap();
    assert!(panic_of(|| host::on_each_cpu(|_| ())).contains("is a CPU"));
    drop(entered);
    assert_eq!(host::on_each_cpu(|cpu| cpu.index()), [0, 1, 2, 3]);
    // Also in the middle of another.
    let nested = catch_unwind(|| host::on_each_cpu(|_| host::on_each_cpu(|_| ())));
    assert!(nested.is_err());
    assert_up(victim());
}

#[test]
fn a_function_that_panics_on_another_cpu_panics_here_and_leaves_the_cpu() {
    let _system = system();
    let index = victim().index() as u32;
    assert!(panic_of(|| Global::run_on_cpu(index, |_| panic!("no"), 0)).contains("no"));
    assert_up(victim());
    assert!(panic_of(|| Global::offer_to_cpu(index, |_| panic!("no"), 0)).contains("no"));
    assert_up(victim());
    let forgets = |_| forget(percpu_core::preempt::disable());
    assert!(panic_of(|| Global::run_on_cpu(index, forgets, 0)).contains("preemption off"));
    assert_up(victim());
    hotplug::cpu_down(victim()).unwrap();
    assert!(panic_of(|| Global::run_on_cpu(index, |_| (), 0)).contains("is down"));
    hotplug::cpu_up(victim()).unwrap();
    for impossible in [CPUS as u32, 1 << 31, u32::MAX] {
        assert!(panic_of(|| Global::run_on_cpu(impossible, |_| (), 0)).contains("possible"));
    }
}

#[test]
fn of_cpus_that_call_each_other_one_is_refused() {
    let _system = system();
    let begin = Barrier::new(3);
    let results = thread::scope(|scope| {
        let begin = &begin;
        [(1, 2), (2, 3), (3, 1)]
            .map(|(this, other)| {
                scope.spawn(move || {
                    let _cpu = host::enter_when_free(cpu(this)).unwrap();
                    begin.wait();
                    Global::run_on_cpu(other, |_| (), 0);
                })
            })
            .map(|thread| thread.join())
    });
    assert!(results.iter().any(Result::is_ok) && results.iter().any(Result::is_err));
    (1..4).for_each(|n| assert_up(cpu(n)));
}

#[test]
fn only_the_hotplug_thread_serves() {
    let _system = system();
    assert!(panic_of(|| hotplug::serve(victim())).contains("this thread is no CPU"));
    for n in [victim().index(), 1] {
        let _cpu = host::enter_when_free(cpu(n)).unwrap();
        assert!(panic_of(|| hotplug::serve(victim())).contains("not that CPU's hotplug thread"));
    }
    fn serve(_: usize) {
        hotplug::serve(victim());
    }
    let panic = panic_of(|| Global::run_on_cpu(victim().index() as u32, serve, 0));
    assert!(panic.contains("not that CPU's hotplug thread"), "interrupts are masked: {panic}");
    // Under fire a CPU's steps run on that CPU.
    static ELSEWHERE: AtomicU32 = AtomicU32::new(0);
    fn look(cpu: CpuId) -> Result<(), StepError> {
        let here = catch_unwind(cpu::current).ok();
        ELSEWHERE.fetch_add(u32::from(here != Some(cpu)), SeqCst);
        Ok(())
    }
    let step = hotplug::register(Section::Online, "here", Some(look), None).unwrap();
    let stop = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(SeqCst) == 0 {
                assert!(catch_unwind(|| hotplug::serve(victim())).is_err());
            }
        });
        for _ in 0..20 {
            hotplug::cpu_down(victim()).unwrap();
            hotplug::cpu_up(victim()).unwrap();
        }
        stop.store(1, SeqCst);
    });
    assert_eq!(ELSEWHERE.load(SeqCst), 0);
    hotplug::unregister(step);
}

#[test]
fn a_cpu_that_does_not_answer_is_an_error_in_time() {
    let _system = system();
    let _steps = Steps::register();
    let _impatient = Impatient::new();
    {
        let _occupied = Occupied::new(victim());
        let answer = hotplug::cpu_down(victim());
        let Err(HotplugError::Step { error, .. }) = answer else { panic!("{answer:?}") };
        assert_eq!(error, StepError::UNRESPONSIVE);
        assert_eq!(take_log(), [""; 0], "no tear-down was run");
        assert!(cpu::online().contains(victim()) && cpu::active().contains(victim()));
        // Nothing is held: others go on.
        drop(hotplug::cpus_read_lock());
        hotplug::cpu_down(cpu(1)).unwrap();
        hotplug::cpu_up(cpu(1)).unwrap();
        take_log();
    }
    // As if it had never been asked.
    hotplug::cpu_down(victim()).unwrap();
    assert_eq!(take_log(), downs(0..STEPS));
    assert_down(victim());
    hotplug::cpu_up(victim()).unwrap();
    assert_eq!(take_log(), ups(0..STEPS));
}

#[test]
fn a_cpu_that_does_not_die_in_time_stays_up() {
    let _system = system();
    let _impatient = Impatient::new();
    {
        // There is no ONLINE step with a tear-down: the first request is the last.
        let _occupied = Occupied::new(victim());
        assert_eq!(hotplug::cpu_down(victim()), Err(HotplugError::Unresponsive));
        assert!(cpu::online().contains(victim()) && cpu::active().contains(victim()));
        assert!(!cpu::dying().contains(victim()) && !hotplug::has_work(victim()));
    }
    assert_up(victim());
    hotplug::cpu_down(victim()).unwrap();
    assert_down(victim());
    hotplug::cpu_up(victim()).unwrap();
}

#[test]
fn a_request_that_was_taken_back_names_nothing_any_more() {
    let _system = system();
    let _impatient = Impatient::new();
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let alive = Arc::new(());
    let disks = hotplug::register_multi::<Arc<()>>(
        Section::Online,
        "disks",
        Some(|_, _| {
            CALLS.fetch_add(1, SeqCst);
            Ok(())
        }),
        Some(|_, _| {
            CALLS.fetch_sub(1, SeqCst);
        }),
    )
    .unwrap();
    {
        let _occupied = Occupied::new(victim());
        let refused = disks.add(alive.clone()).unwrap_err();
        let error = StepError::UNRESPONSIVE;
        assert_eq!(refused.error, RegisterError::Step { cpu: victim(), error });
        assert_eq!(Arc::strong_count(&alive), 2, "the value is in the error");
        let before = hotplug::steps().count();
        let register = hotplug::register(Section::Online, "new", Some(|_| Ok(())), Some(|_| ()));
        assert_eq!(register, Err(RegisterError::Step { cpu: victim(), error }));
        assert_eq!(hotplug::steps().count(), before);
    }
    // The threads that were woken find nothing to do.
    assert_up(victim());
    thread::sleep(Duration::from_millis(20));
    assert_eq!((CALLS.load(SeqCst), Arc::strong_count(&alive)), (0, 1));
    let disk = disks.add(alive.clone()).unwrap();
    assert_eq!(CALLS.load(SeqCst), CPUS as u32);
    drop(disk);
    assert_eq!((CALLS.load(SeqCst), Arc::strong_count(&alive)), (0, 1));
}

#[test]
fn a_guard_on_the_masks_holds_hotplug_up_for_so_long_only() {
    let _system = system();
    let _steps = Steps::register();
    let _impatient = Impatient::new();
    let guard = hotplug::cpus_read_lock();
    assert_eq!(hotplug::cpu_down(victim()), Err(HotplugError::Readers));
    assert_eq!(take_log(), [""; 0]);
    assert_up(victim());
    drop(hotplug::cpus_read_lock());
    drop(guard);
    hotplug::cpu_down(victim()).unwrap();
    let guard = hotplug::cpus_read_lock();
    assert_eq!(hotplug::cpu_up(victim()), Err(HotplugError::Readers));
    drop(guard);
    assert_down(victim());
    hotplug::cpu_up(victim()).unwrap();
    assert_up(victim());
}

#[test]
fn the_longest_time_is_no_limit() {
    let _system = system();
    host::set_arrival_timeout(Duration::MAX);
    host::set_answer_timeout(Duration::MAX);
    hotplug::cpu_down(victim()).unwrap();
    hotplug::cpu_up(victim()).unwrap();
    host::set_arrival_timeout(Duration::from_secs(10));
    host::set_answer_timeout(Duration::from_secs(10));
}
