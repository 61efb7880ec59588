//! What the host knows of the guest's CPUs, and the words by which it and they speak: the step count,
//! timers, pending interrupts.

use std::mem::offset_of;

use percpu_guest::abi::{
    ControlBlock, SHARED, SharedHeader, Steps, VECTOR_COMMAND, VECTOR_TIMER, control_block,
};

use crate::memory::{GuestMem, Wild};

/// Vector of bit 0 of a word of pending interrupts.
const FIRST_VECTOR: u8 = 0x40;

/// Whether a CPU can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was not started, or is dead.
    Off,
    /// It runs when it is picked.
    Ready,
    /// It waits for another CPU in a loop and is let be until this moment.
    Waiting(u64),
    /// It waits for an interrupt. From this moment on it gets one early if there is work for it.
    Idle(u64),
}

/// All CPUs.
#[derive(Clone, Debug)]
pub(super) struct Cpus {
    mem: GuestMem,
    standings: Vec<Standing>,
}

impl Cpus {
    /// The CPUs of a machine that was not started yet.
    pub(super) fn new(mem: GuestMem, possible: u32) -> Self {
        Self { mem, standings: vec![Standing::Off; possible as usize] }
    }

    pub(super) fn all(&self) -> std::ops::Range<u32> {
        0..self.standings.len() as u32
    }

    pub(super) fn standing(&self, cpu: u32) -> Standing {
        self.standings[cpu as usize]
    }

    pub(super) fn set(&mut self, cpu: u32, standing: Standing) {
        if let Some(slot) = self.standings.get_mut(cpu as usize) {
            *slot = standing;
        }
    }

    /// Those that can run at moment `now`, ascending, into `able`.
    ///
    /// The guest's idle CPUs look for threads when their timer interrupts them. So that they take turns
    /// like the others, an idle CPU can run, too, when there are more threads than CPUs at work.
    pub(super) fn able(&self, now: u64, able: &mut Vec<u32>) -> Result<(), Wild> {
        able.clear();
        let at_work =
            |standing: &&Standing| matches!(standing, Standing::Ready | Standing::Waiting(_));
        let at_work = self.standings.iter().filter(at_work).count();
        let threads = self.mem.load_u32(SHARED + offset_of!(SharedHeader, threads) as u64)?;
        let threads_wait = threads as usize > at_work;
        for cpu in self.all() {
            let ready = match self.standing(cpu) {
                Standing::Off => false,
                Standing::Ready => true,
                Standing::Waiting(until) => until <= now,
                Standing::Idle(until) => (threads_wait && until <= now) || self.pending(cpu)? != 0,
            };
            if ready {
                able.push(cpu);
            }
        }
        Ok(())
    }

    /// The next moment at which a CPU that cannot run now may be able to.
    pub(super) fn next_moment(&self) -> Result<Option<u64>, Wild> {
        let mut next = None;
        for cpu in self.all() {
            let timer = self.timer(cpu)?;
            let moment = match self.standing(cpu) {
                Standing::Waiting(until) if timer != 0 => Some(until.min(timer)),
                Standing::Waiting(until) => Some(until),
                Standing::Idle(_) if timer != 0 => Some(timer),
                _ => None,
            };
            next = next.into_iter().chain(moment).min();
        }
        Ok(next)
    }

    /// The moment of a CPU's next timer interrupt; 0 if none is due.
    pub(super) fn timer(&self, cpu: u32) -> Result<u64, Wild> {
        self.mem.load_u64(control_block(cpu) + offset_of!(ControlBlock, timer) as u64)
    }

    /// Raises the timer interrupts that are due at moment `now`; tells `raised` of each.
    pub(super) fn raise_timers(
        &self,
        now: u64,
        mut raised: impl FnMut(u32, u8),
    ) -> Result<(), Wild> {
        for cpu in self.all() {
            let timer = self.timer(cpu)?;
            if timer != 0 && timer <= now && self.standing(cpu) != Standing::Off {
                let at = control_block(cpu) + offset_of!(ControlBlock, timer) as u64;
                self.mem.store_u64(at, 0)?;
                self.raise(cpu, VECTOR_TIMER)?;
                raised(cpu, VECTOR_TIMER);
            }
        }
        Ok(())
    }

    /// Raises the timer interrupt of a CPU before its time if that is `wanted`, or if it is idle and
    /// has no other reason to run.
    pub(super) fn wake(&self, cpu: u32, wanted: bool) -> Result<Option<u8>, Wild> {
        let idle = matches!(self.standing(cpu), Standing::Idle(_));
        let wanted = wanted && self.timer(cpu)? != 0;
        if !wanted && (!idle || self.pending(cpu)? != 0) {
            return Ok(None);
        }
        self.raise(cpu, VECTOR_TIMER)?;
        Ok(Some(VECTOR_TIMER))
    }

    /// Raises the interrupt that says "look at the command ring".
    pub(super) fn raise_command(&self, cpu: u32) -> Result<u8, Wild> {
        self.raise(cpu, VECTOR_COMMAND)?;
        Ok(VECTOR_COMMAND)
    }

    /// Sets the bit of `vector` in the CPU's word. The CPU has one: it was online.
    fn raise(&self, cpu: u32, vector: u8) -> Result<(), Wild> {
        let Some(word) = self.pending_word(cpu)? else { return Ok(()) };
        self.mem.store_u64(word, self.mem.load_u64(word)? | 1 << (vector - FIRST_VECTOR))
    }

    fn pending(&self, cpu: u32) -> Result<u64, Wild> {
        self.pending_word(cpu)?.map_or(Ok(0), |word| self.mem.load_u64(word))
    }

    /// Physical address of the CPU's word of pending interrupts.
    fn pending_word(&self, cpu: u32) -> Result<Option<u64>, Wild> {
        let at = control_block(cpu) + offset_of!(ControlBlock, pending) as u64;
        match self.mem.load_u64(at)? {
            0 => Ok(None),
            word => self.mem.translate(word).map(Some),
        }
    }
}

/// The words of [`Steps`].
#[derive(Clone, Debug)]
pub(super) struct Clock {
    mem: GuestMem,
}

impl Clock {
    pub(super) fn new(mem: GuestMem) -> Self {
        Self { mem }
    }

    fn at(offset: usize) -> u64 {
        SHARED + (offset_of!(SharedHeader, steps) + offset) as u64
    }

    /// Steps of all CPUs so far.
    pub(super) fn steps(&self) -> Result<u64, Wild> {
        self.mem.load_u64(Self::at(offset_of!(Steps, done)))
    }

    /// The guest's clock.
    pub(super) fn now(&self) -> Result<u64, Wild> {
        Ok(self.steps()?.wrapping_add(self.skipped()?))
    }

    fn skipped(&self) -> Result<u64, Wild> {
        self.mem.load_u64(Self::at(offset_of!(Steps, skipped)))
    }

    /// Lets time pass, in which no CPU does anything.
    pub(super) fn skip(&self, ticks: u64) -> Result<(), Wild> {
        let skipped = self.skipped()?.wrapping_add(ticks);
        self.mem.store_u64(Self::at(offset_of!(Steps, skipped)), skipped)
    }

    /// Steps of all CPUs so far that come before an operation on shared or per-CPU data.
    pub(super) fn points(&self) -> Result<u64, Wild> {
        self.mem.load_u64(Self::at(offset_of!(Steps, points)))
    }

    /// Sets the moment at which the guest asks who runs next, or the point, whichever comes first: at
    /// its next step, at the earliest.
    pub(super) fn ask_at(&self, moment: u64, point: u64) -> Result<(), Wild> {
        self.mem.store_u64(Self::at(offset_of!(Steps, next_point)), point)?;
        let step = moment.saturating_sub(self.skipped()?).max(self.steps()? + 1);
        self.mem.store_u64(Self::at(offset_of!(Steps, next)), step)
    }
}
