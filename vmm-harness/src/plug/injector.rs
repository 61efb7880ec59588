//! The injector: writes orders into the guest's command ring and raises its doorbell interrupt.

use std::mem::offset_of;
use std::time::Instant;

use percpu_guest::abi::{
    COMMAND_RING_LEN, CommandKind, CommandRing, CommandSlot, SHARED, SharedHeader, Trial,
    VECTOR_COMMAND,
};

use crate::error::Error;
use crate::memory::GuestMem;
use crate::vm::Vm;

/// The CPU that takes commands.
const CONTROL_CPU: u32 = 0;

/// What can be asked of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Bring a CPU up.
    Plug(u32),
    /// Take a CPU down.
    Unplug(u32),
    /// Carry out a trial, with its argument.
    Trial(Trial, u64),
}

/// An order on its way.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// The order.
    pub order: Order,
    /// Its sequence number, by which the answer names it.
    pub number: u64,
    /// When it was given.
    pub since: Instant,
}

/// The host's end of the command ring.
#[derive(Debug)]
pub struct Injector {
    mem: GuestMem,
    sent: u64,
    pending: Option<Pending>,
}

impl Injector {
    /// The injector of the guest in `mem`.
    pub fn new(mem: GuestMem) -> Self {
        Self { mem, sent: 0, pending: None }
    }

    /// The order that the guest has not answered yet.
    pub fn pending(&self) -> Option<&Pending> {
        self.pending.as_ref()
    }

    /// Gives an order and interrupts the guest. One at a time: the one before must have been
    /// answered.
    pub fn send(&mut self, vm: &Vm, order: Order) -> Result<(), Error> {
        self.post(order)?;
        vm.interrupt(CONTROL_CPU, VECTOR_COMMAND)
    }

    /// As [`send`](Self::send), without the interrupt: that is the caller's.
    pub fn post(&mut self, order: Order) -> Result<(), Error> {
        debug_assert!(self.pending.is_none());
        let (kind, arg0, arg1) = match order {
            Order::Plug(cpu) => (CommandKind::Plug, cpu, 0),
            Order::Unplug(cpu) => (CommandKind::Unplug, cpu, 0),
            Order::Trial(trial, argument) => (CommandKind::Trial, trial as u32, argument),
        };
        let number = self.sent;
        self.write(kind, arg0, arg1)?;
        self.pending = Some(Pending { order, number, since: Instant::now() });
        Ok(())
    }

    /// Makes the hotplug step numbered `step` fail, once, for `cpu`. Nobody answers that, and the
    /// interrupt is the next order's.
    pub fn fail_step(&mut self, cpu: u32, step: u64) -> Result<(), Error> {
        self.write(CommandKind::FailStep, cpu, step)
    }

    fn write(&mut self, kind: CommandKind, arg0: u32, arg1: u64) -> Result<(), Error> {
        let ring = SHARED + offset_of!(SharedHeader, commands) as u64;
        let index = self.sent % COMMAND_RING_LEN as u64;
        let slot =
            ring + offset_of!(CommandRing, slots) as u64 + index * size_of::<CommandSlot>() as u64;
        self.mem.store_u32(slot + offset_of!(CommandSlot, kind) as u64, kind as u32)?;
        self.mem.store_u32(slot + offset_of!(CommandSlot, arg0) as u64, arg0)?;
        self.mem.store_u64(slot + offset_of!(CommandSlot, arg1) as u64, arg1)?;
        self.sent += 1;
        Ok(self.mem.store_u64(ring + offset_of!(CommandRing, head) as u64, self.sent)?)
    }

    /// Takes the guest's answer to order `number`; `None` if it is not the one that is awaited.
    pub fn answered(&mut self, number: u64) -> Option<Pending> {
        self.pending.take_if(|pending| pending.number == number)
    }
}
