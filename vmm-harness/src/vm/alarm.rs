//! The alarm: ends a run of a CPU that does not end by itself.
//!
//! A guest that loops without a step, with interrupts masked or none due, never leaves to the host,
//! and the thread that runs it would stand there for ever. So each CPU that runs on the caller's
//! thread has an alarm, armed around each run: that is two stores, no system call. One thread of the
//! process looks at all alarms a few times a second. One that is armed for the same run look after
//! look is overdue, and its thread gets the signal that kicks vCPUs, at every look until it has left
//! the guest; so a signal that comes just before that, and is lost, does no harm.
//!
//! Looks are counted, not time: a process that was stopped, or a host that slept, is not overdue.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::kick;
use crate::error::Error;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// No alarm: between runs.
const NONE: u64 = 0;

/// The alarm of one vCPU.
#[derive(Debug)]
pub(super) struct Alarm {
    watched: Arc<Watched>,
    /// Runs so far.
    runs: u64,
}

/// What the one who looks reads.
#[derive(Debug)]
struct Watched {
    /// The run under way, or [`NONE`].
    run: AtomicU64,
    /// The kernel's number of the thread that runs it.
    thread: AtomicI32,
    /// The last run that was overdue.
    overdue: AtomicU64,
    /// Looks after which a run is overdue.
    patience: u32,
}

impl Alarm {
    /// How long a run may last unless said otherwise: far beyond what any takes on a slow host.
    pub(super) const PATIENCE: Duration = Duration::from_secs(5);

    /// An alarm for runs that last longer than `patience`.
    pub(super) fn new(patience: Duration) -> Result<Self, Error> {
        kick::install()?;
        let looks = patience.as_millis().div_ceil(LOOK.as_millis());
        let watched = Arc::new(Watched {
            run: AtomicU64::new(NONE),
            thread: AtomicI32::new(0),
            overdue: AtomicU64::new(NONE),
            patience: u32::try_from(looks).unwrap_or(u32::MAX).max(1),
        });
        enlist(Arc::downgrade(&watched))?;
        Ok(Self { watched, runs: 0 })
    }

    /// Calls `run`, which is to run the CPU once; whether it was ended by the alarm.
    pub(super) fn around<R>(&mut self, run: impl FnOnce() -> R) -> (R, bool) {
        self.runs += 1;
        self.watched.thread.store(kick::this_thread(), Ordering::Relaxed);
        // After the thread's number: whoever sees this run sees that, too.
        self.watched.run.store(self.runs, Ordering::Release);
        let result = run();
        self.watched.run.store(NONE, Ordering::Relaxed);
        (result, self.watched.overdue.load(Ordering::Relaxed) == self.runs)
    }
}

/// An alarm, and what was seen of it.
struct Seen {
    watched: Weak<Watched>,
    run: u64,
    looks: u32,
}

impl Seen {
    /// Looks once; false if the alarm is gone.
    fn look(&mut self) -> bool {
        let Some(watched) = self.watched.upgrade() else { return false };
        let run = watched.run.load(Ordering::Acquire);
        if run == NONE || run != self.run {
            (self.run, self.looks) = (run, 0);
            return true;
        }
        self.looks = self.looks.saturating_add(1);
        if self.looks >= watched.patience {
            // Before the signal: who is ended by it looks here.
            watched.overdue.store(run, Ordering::Relaxed);
            kick::thread(watched.thread.load(Ordering::Relaxed));
        }
        true
    }
}

/// Lets the alarm be looked at for as long as it exists.
fn enlist(watched: Weak<Watched>) -> Result<(), Error> {
    static ALL: Mutex<Vec<Seen>> = Mutex::new(Vec::new());
    static LOOKER: OnceLock<Result<(), std::io::ErrorKind>> = OnceLock::new();
    let looker = LOOKER.get_or_init(|| {
        let look = || loop {
            std::thread::sleep(LOOK);
            ALL.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(Seen::look);
        };
        let thread = std::thread::Builder::new().name("alarm".into()).spawn(look);
        thread.map(drop).map_err(|error| error.kind())
    });
    (*looker).map_err(|kind| Error::thread(kind.into()))?;
    let seen = Seen { watched, run: NONE, looks: 0 };
    ALL.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Waits for longer than anybody should, or until a signal.
    fn wait() -> bool {
        let long = libc::timespec { tv_sec: 30, tv_nsec: 0 };
        // SAFETY: the call reads `long`, and writes nothing where the second pointer is null.
        unsafe { libc::nanosleep(&long, std::ptr::null_mut()) != 0 }
    }

    #[test]
    fn a_run_that_does_not_end_is_ended_and_the_next_one_is_not() {
        let mut alarm = Alarm::new(LOOK * 2).unwrap();
        let began = Instant::now();
        assert_eq!(alarm.around(wait), (true, true));
        assert!(began.elapsed() >= LOOK, "too early");
        // A kick that was under way may still come; after that nothing does.
        std::thread::sleep(LOOK * 2);
        let (interrupted, late) = alarm.around(|| {
            let short = libc::timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
            // SAFETY: as above.
            unsafe { libc::nanosleep(&short, std::ptr::null_mut()) != 0 }
        });
        assert_eq!((interrupted, late), (false, false));
    }

    #[test]
    fn many_short_runs_are_no_long_one() {
        let mut alarm = Alarm::new(LOOK * 2).unwrap();
        let began = Instant::now();
        while began.elapsed() < LOOK * 4 {
            let ((), late) = alarm.around(|| std::thread::sleep(LOOK / 10));
            assert!(!late);
        }
    }

    #[test]
    fn the_thread_that_runs_is_kicked_wherever_the_alarm_was_made() {
        let mut alarm = Alarm::new(LOOK).unwrap();
        let run = move || alarm.around(wait);
        assert_eq!(std::thread::spawn(run).join().unwrap(), (true, true));
    }
}
