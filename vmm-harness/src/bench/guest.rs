//! A guest that is measured: no judge looks at it, its events are read and forgotten.
//!
//! What it says is not believed: rings are bounded, and what makes no sense ends the measurement.

use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use percpu_guest::abi::{
    BootParams, EVENT_RING_LEN, Event, EventKind, EventRing, SHARED, Shared, SharedHeader,
};

use crate::crash::{self, Scene};
use crate::error::{Error, Status};
use crate::image::Image;
use crate::memory::{GuestMem, Wild};
use crate::report::Crash;
use crate::vm::{Engine, Vm, VmConfig, VmEventKind};

/// Longest wait between two looks at the rings, which the guest fills under load.
const POLL: Duration = Duration::from_millis(1);

/// Why a measurement is over before its time.
pub enum Stop {
    /// The guest did not go on.
    Guest(Status, Crash),
    /// It was ended from outside.
    Interrupted,
    /// It could not be gone on with.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Something that happened.
pub enum Seen {
    /// The guest executes its first instructions.
    Hello,
    /// An event of the guest.
    Event(Event, EventKind),
}

/// A guest under way.
pub struct Guest<'a> {
    image: &'a Image,
    pub(super) vm: Vm,
    pub(super) mem: GuestMem,
    possible: u32,
    interrupted: &'a AtomicBool,
    /// Events of each CPU that were taken.
    taken: Vec<u64>,
}

impl<'a> Guest<'a> {
    /// Makes a machine and starts its boot CPU.
    pub fn start(
        image: &'a Image,
        boot: BootParams,
        interrupted: &'a AtomicBool,
    ) -> Result<Self, Error> {
        let vm =
            Vm::new(image, VmConfig::new(Engine::Kvm, boot, VmConfig::memory_for(boot.possible)))?;
        let mem = GuestMem::new(vm.memory().clone());
        vm.start()?;
        let taken = vec![0; boot.possible as usize];
        Ok(Self { image, vm, mem, possible: boot.possible, interrupted, taken })
    }

    /// Follows the guest until `done` says so of something that happened, at the given time. Longer
    /// than `limit` it is not waited for.
    pub fn until<R>(
        &mut self,
        limit: Duration,
        awaited: &str,
        mut done: impl FnMut(Seen, Instant) -> Option<R>,
    ) -> Result<R, Stop> {
        let deadline = Instant::now() + limit;
        loop {
            let mut seen = None;
            self.follow(|what, at| {
                if seen.is_none() {
                    seen = done(what, at);
                }
            })?;
            if let Some(seen) = seen {
                return Ok(seen);
            }
            if Instant::now() > deadline {
                let late = format!("{awaited}: not within {limit:?}");
                return Err(self.hung(&late));
            }
        }
    }

    /// Waits for something to happen, a little while, and hands it over.
    pub fn follow(&mut self, mut each: impl FnMut(Seen, Instant)) -> Result<(), Stop> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Stop::Interrupted);
        }
        let event = self.vm.next_event(Instant::now() + POLL);
        let mut at = Instant::now();
        if let Some(event) = event {
            match event.kind {
                VmEventKind::Hello => each(Seen::Hello, event.at),
                // When the vCPU left the guest: earlier than this thread ran.
                VmEventKind::Event => at = event.at,
                VmEventKind::Parked => {}
                VmEventKind::Exit => return Err(self.hung("the guest stopped by itself")),
                VmEventKind::Crashed(crash) => {
                    let report = crash::report(&self.scene(), event.cpu, &crash)?;
                    return Err(Stop::Guest(Status::Crashed, report));
                }
            }
        }
        match self.drain(|event, kind| each(Seen::Event(event, kind), at)) {
            Ok(()) => Ok(()),
            Err(nonsense) => Err(self.nonsense(&nonsense)),
        }
    }

    /// Takes all that is in the event rings. An event that another one follows from is in its ring by
    /// then, but may be handed over later.
    fn drain(&mut self, mut each: impl FnMut(Event, EventKind)) -> Result<(), String> {
        let wild = |wild: Wild| wild.to_string();
        for (cpu, taken) in (0u64..).zip(&mut self.taken) {
            let ring =
                SHARED + offset_of!(Shared, events) as u64 + cpu * size_of::<EventRing>() as u64;
            let head =
                self.mem.load_u64(ring + offset_of!(EventRing, head) as u64).map_err(wild)?;
            let fresh = head.wrapping_sub(*taken);
            if fresh == 0 {
                continue;
            }
            if fresh > EVENT_RING_LEN as u64 {
                return Err(format!(
                    "CPU {cpu}'s event ring makes no sense: {head} events, of which {taken} were taken"
                ));
            }
            let slots = ring + offset_of!(EventRing, slots) as u64;
            for n in (0..fresh).map(|n| taken.wrapping_add(n)) {
                let slot = slots + n % EVENT_RING_LEN as u64 * size_of::<Event>() as u64;
                let event: Event = self.mem.read(slot).map_err(wild)?;
                if let Some(kind) = EventKind::from_code(event.kind) {
                    each(event, kind);
                }
            }
            *taken = head;
            self.mem.store_u64(ring + offset_of!(EventRing, tail) as u64, head).map_err(wild)?;
        }
        Ok(())
    }

    /// Ticks of the time stamp counter in a microsecond, as the guest was told.
    pub fn tsc_mhz(&self) -> Result<u32, Error> {
        let field = offset_of!(SharedHeader, boot) + offset_of!(BootParams, tsc_mhz);
        Ok(self.mem.load_u32(SHARED + field as u64)?.max(1))
    }

    /// What there is to say of a guest that does not go on.
    pub fn hung(&self, why: &str) -> Stop {
        Stop::Guest(Status::Hung, crash::hang(&self.scene(), why, &[]))
    }

    /// What there is to say of one that says what makes no sense.
    pub fn nonsense(&self, why: &str) -> Stop {
        Stop::Guest(Status::Crashed, crash::hang(&self.scene(), why, &[]))
    }

    fn scene(&self) -> Scene<'_> {
        Scene {
            vm: &self.vm,
            mem: &self.mem,
            image: self.image,
            judge: None,
            possible: self.possible,
        }
    }
}
