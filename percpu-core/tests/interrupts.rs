//! Single-instruction operations against interrupt handlers: a signal is to a thread what an
//! interrupt is to a CPU.
#![cfg(not(miri))]

#[path = "common/threads.rs"]
mod threads;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use percpu_core::{cpu, host, percpu, preempt};
use threads::Done;

percpu! {
    static ADDED: PerCpu<u64> = 0;
    static RETURNED: PerCpu<u16> = 0;
    static SWAPPED: PerCpu<u32> = 0;
    static FLAGS: PerCpu<u8> = 0;
}

static HANDLED: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn handler(_: libc::c_int) {
    ADDED.add(3);
    RETURNED.sub(1);
    SWAPPED.inc();
    FLAGS.or(0x80);
    preempt::set_need_resched();
    HANDLED.fetch_add(1, Relaxed);
}

#[test]
fn no_operation_is_torn_by_an_interrupt() {
    host::boot(2).unwrap();
    let done = AtomicBool::new(false);
    // SAFETY: `handler` does nothing but lock-free operations.
    let before = unsafe { libc::signal(libc::SIGUSR1, handler as *const () as libc::sighandler_t) };
    assert_ne!(before, libc::SIG_ERR);
    let _cpu = host::enter_any().unwrap();
    // SAFETY: asks who this thread is.
    let this_thread = unsafe { libc::pthread_self() };
    let mut rounds = 0_u64;
    std::thread::scope(|scope| {
        let signals = scope.spawn(|| {
            while !done.load(Relaxed) {
                // SAFETY: the thread waits for this one, so it lives.
                assert_eq!(unsafe { libc::pthread_kill(this_thread, libc::SIGUSR1) }, 0);
                std::thread::sleep(std::time::Duration::from_micros(5));
            }
        });
        let _ending = Done(&done);
        while rounds < 1_000_000 || HANDLED.load(Relaxed) < 1000 {
            assert!(!signals.is_finished(), "no signals come any more");
            rounds += 1;
            ADDED.inc();
            let was = RETURNED.add_return(1);
            assert_eq!(was.wrapping_sub(1), was.wrapping_add(u16::MAX));
            if rounds.is_multiple_of(8) {
                TAKEN.fetch_add(SWAPPED.xchg(0).into(), Relaxed);
            }
            FLAGS.write(0);
            FLAGS.add(1);
            assert_eq!(FLAGS.read() & 0x7f, 1);
            let pin = preempt::disable();
            assert_eq!(preempt::count(), 1, "a wish for a reschedule is no guard");
            drop(pin);
        }
    });
    // SAFETY: the handler was the default before.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
    let handled = HANDLED.load(Relaxed);
    assert_eq!(ADDED.read(), rounds + 3 * handled);
    assert_eq!(RETURNED.read(), (rounds - handled) as u16);
    assert_eq!(TAKEN.load(Relaxed) + u64::from(SWAPPED.read()), handled);
    assert_eq!(ADDED.read_on(cpu::current()), ADDED.read());
}
