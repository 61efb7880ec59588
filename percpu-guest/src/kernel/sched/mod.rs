//! Preemptible kernel threads that migrate between CPUs.
//!
//! One queue serves all CPUs, so a thread goes on wherever a CPU comes by next: nearly every switch
//! is a migration, which is what the code under test has to survive. Threads that belong to a CPU
//! (its hotplug thread, the control thread) wait in that CPU's own queue and go first. When a CPU
//! dies nothing has to be moved: it just takes no more threads.

mod switch;
mod thread;

use core::sync::atomic::{AtomicU32, Ordering};

use crate::abi::MAX_CPUS;
use percpu_core::cpu::{self, CpuId};
use percpu_core::platform::Platform;
use percpu_core::{irq, percpu, preempt};

use crate::kernel::Kernel;
use crate::kernel::arch::{self, service, tsc};
use crate::kernel::shared;

use thread::Queue;
pub use thread::{Thread, spawn, spawn_bound};

percpu! {
    /// Address of the thread that runs on this CPU; 0 before the scheduler starts.
    static CURRENT: PerCpu<usize> = 0;
}

/// The queues; whoever holds the lock has interrupts masked. A plain word, because it is taken by
/// one thread and released by the next one across a switch.
struct RunQueue {
    locked: AtomicU32,
    queues: core::cell::UnsafeCell<Queues>,
}

struct Queues {
    /// Runnable threads that any CPU may run.
    shared: Queue,
    /// Threads bound to a CPU.
    bound: [Queue; MAX_CPUS],
    /// A CPU's idle thread, address or 0.
    idle: [usize; MAX_CPUS],
}

// SAFETY: `queues` is touched only between `lock` and `unlock`.
unsafe impl Sync for RunQueue {}

static RUN_QUEUE: RunQueue = RunQueue {
    locked: AtomicU32::new(0),
    queues: core::cell::UnsafeCell::new(Queues {
        shared: Queue::new(),
        bound: [const { Queue::new() }; MAX_CPUS],
        idle: [0; MAX_CPUS],
    }),
};

impl RunQueue {
    fn lock(&self) {
        let mut spins = 0;
        while self.locked.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            Kernel::relax(spins);
            spins += 1;
        }
    }

    fn unlock(&self) {
        self.locked.store(0, Ordering::Release);
    }

    fn with<R>(&self, f: impl FnOnce(&mut Queues) -> R) -> R {
        let _masked = irq::disable();
        self.lock();
        // SAFETY: the lock is held, so this is the only reference.
        let result = f(unsafe { &mut *self.queues.get() });
        self.unlock();
        result
    }
}

impl Queues {
    /// The next thread for `cpu`. After a bound thread others come first, so that one that waits
    /// by yielding does not keep the CPU.
    fn pick(&mut self, cpu: u32, after_bound: bool) -> usize {
        if after_bound && let Some(thread) = self.pick_shared(cpu) {
            return thread;
        }
        let now = tsc::now();
        self.bound[cpu as usize]
            .pop_if(|thread| thread.is_wanted(cpu, now))
            .or_else(|| self.pick_shared(cpu))
            .unwrap_or(self.idle[cpu as usize])
    }

    fn pick_shared(&mut self, cpu: u32) -> Option<usize> {
        let header = shared::header();
        // All threads wait for the end of a quiescent phase: let the CPU rest.
        let quiet =
            header.quiesce.load(Ordering::Relaxed) != 0 && header.busy.load(Ordering::Relaxed) == 0;
        if quiet || !CpuId::new(cpu as usize).is_some_and(|cpu| cpu::active().contains(cpu)) {
            return None;
        }
        let now = tsc::now();
        self.shared.pop_if(|thread| thread.is_wanted(cpu, now))
    }
}

/// Switches to the next thread. Interrupts are masked, preemption is on but for them.
fn schedule() {
    let cpu = cpu::this_cpu_raw();
    let previous = CURRENT.read();
    if previous == 0 {
        return;
    }
    thread::check_stack(previous);
    preempt::clear_need_resched();
    RUN_QUEUE.lock();
    // SAFETY: the lock is held. The reference ends before the switch.
    let queues = unsafe { &mut *RUN_QUEUE.queues.get() };
    let bound = queues.put_back(cpu, previous);
    let next = queues.pick(cpu, bound);
    if next != previous {
        CURRENT.write(next);
        let control = shared::control(cpu);
        control.thread.store(thread::row_of(next), Ordering::Relaxed);
        control.switches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `next` came off a queue or is this CPU's idle thread, so it runs nowhere; the
        // lock is held until its side of the switch releases it, so nobody takes `previous` off
        // its queue before its registers are saved.
        unsafe { thread::switch(previous, next) };
    }
    // Perhaps on another CPU now; that CPU's switch took the lock.
    RUN_QUEUE.unlock();
}

impl Queues {
    /// Puts the thread that ran back on its queue; says whether it is bound to the CPU.
    fn put_back(&mut self, cpu: u32, thread: usize) -> bool {
        if thread == self.idle[cpu as usize] || thread::has_ended(thread) {
            return false;
        }
        let bound = thread::is_bound(thread);
        let queue = if bound { &mut self.bound[cpu as usize] } else { &mut self.shared };
        queue.push(thread);
        bound
    }
}

/// The first thing a thread does that was never switched away from.
fn finish_first_switch() {
    RUN_QUEUE.unlock();
    // SAFETY: a thread starts inside `schedule`, which runs masked once; threads begin unmasked.
    unsafe { arch::irq::unmask() };
}

/// Gives the CPU to another thread. Preemption and interrupts are on.
pub fn yield_now() {
    // The count is 1 on whatever CPU the thread goes on: every switch is made masked once.
    let _masked = irq::disable();
    schedule();
}

/// As [`yield_now`], for a thread that waits for something others do.
///
/// One that any CPU may run lets them be for a moment: many waiting threads that take each other's
/// turns would keep every CPU in the scheduler. One that belongs to its CPU keeps that for a moment
/// and looks again, since hotplug waits for it: by looking once a turn it would hardly ever find a
/// lock open that many want.
pub fn yield_to_others() {
    const LET_BE_US: u64 = 100;
    const LOOK_US: u64 = 50;
    let current = CURRENT.read();
    if current == 0 {
        return;
    }
    assert!(
        preempt::count() == 0 && !arch::irq::masked(),
        "a thread waits for others while a guard keeps them off its CPU"
    );
    let after = |us: u64| tsc::now() + us * u64::from(shared::boot().tsc_mhz);
    if !thread::is_bound(current) {
        thread::set_not_before(current, after(LET_BE_US));
        yield_now();
    } else if cfg!(percpu_steps) {
        // Looking again shows nothing new before another CPU has run.
        Kernel::relax(0);
        yield_now();
    } else if tsc::now() < thread::look_until(current) {
        core::hint::spin_loop();
    } else {
        yield_now();
        thread::set_look_until(current, after(LOOK_US));
    }
}

/// Switches threads if the last interrupt asked for it and the interrupted code allows it.
/// Interrupts are masked.
pub fn on_interrupt_exit() {
    if preempt::need_resched() && preempt::count() == 0 {
        schedule();
    }
}

/// A guard was dropped while a reschedule was wanted.
pub fn preempt_schedule() {
    // Masked interrupts forbid a switch too; the next interrupt looks again.
    while preempt::need_resched() && preempt::count() == 0 && !arch::irq::masked() {
        yield_now();
    }
}

/// Makes the current flow of control the idle thread of `cpu`.
///
/// # Safety
///
/// `cpu` is this CPU, `thread` its idle thread; the caller goes on with [`idle`].
pub unsafe fn adopt_idle(cpu: u32, thread: &'static Thread) {
    RUN_QUEUE.with(|queues| queues.idle[cpu as usize] = thread.address());
    CURRENT.write(thread.address());
    shared::control(cpu).thread.store(u32::MAX, Ordering::Relaxed);
}

/// The idle thread's loop: other threads first, then a halt until an interrupt.
pub fn idle() -> ! {
    loop {
        yield_now();
        let _masked = irq::disable();
        let cpu = cpu::this_cpu_raw();
        if !preempt::need_resched() && RUN_QUEUE.with(|queues| queues.is_idle(cpu)) {
            service::idle();
        }
    }
}

impl Queues {
    /// Whether there is nothing to run on `cpu`.
    fn is_idle(&mut self, cpu: u32) -> bool {
        match self.pick(cpu, false) {
            thread if thread == self.idle[cpu as usize] => true,
            thread => {
                self.put_back_front(cpu, thread);
                false
            }
        }
    }

    fn put_back_front(&mut self, cpu: u32, thread: usize) {
        let queue =
            if thread::is_bound(thread) { &mut self.bound[cpu as usize] } else { &mut self.shared };
        queue.push_front(thread);
    }
}

/// Whether what runs stays on its CPU by itself: a thread that belongs to it, or none, in its idle
/// loop or on its way.
pub fn is_bound() -> bool {
    let current = CURRENT.read();
    current == 0 || thread::is_bound(current)
}

/// Returns the address of the current thread, or 0 in an idle loop and before threads are run.
pub fn current() -> usize {
    CURRENT.read()
}

/// The ledger row of the current thread, `u32::MAX` if it has none.
pub fn current_row() -> u32 {
    match CURRENT.read() {
        0 => u32::MAX,
        thread => thread::row_of(thread),
    }
}

/// Lets the current thread wait until `wanted` says otherwise, of whatever CPU comes by.
pub fn wait_until(wanted: fn(u32) -> bool) {
    thread::set_wanted(CURRENT.read(), Some(wanted));
    while !wanted(cpu::this_cpu_raw()) {
        yield_now();
    }
    thread::set_wanted(CURRENT.read(), None);
}

/// Ends the current thread. Its memory stays.
fn end_current() -> ! {
    thread::set_ended(CURRENT.read());
    arch::irq::mask();
    schedule();
    unreachable!("a thread that has ended was run again")
}
