//! Giving a CPU its unit when it first comes up.

use crate::alloc;
use crate::cpu::{self, CpuId};
use crate::platform::NoMemory;
use crate::sync::Mutex;

/// Held by the one thread that gives a CPU its unit.
static BRING_UP: Mutex<()> = Mutex::new(());

/// Gives `cpu` its unit, with everything in it: static variables as in the template, zero in all
/// dynamic areas, and in each box that was
/// [made with an initialiser](crate::alloc::PerCpuBox::try_new_with) the value that this makes.
/// Does nothing if the CPU has a unit: a CPU that went down finds its unit as it was.
///
/// Bringing a CPU up through [`hotplug`](crate::hotplug) begins with this. May sleep; runs the
/// initialisers on the calling thread, with no lock held that they could want, but they must not
/// bring up another CPU. Costs as much as the memory, see
/// [`Allocator::add_unit`](crate::alloc::Allocator::add_unit).
///
/// # Errors
///
/// Nothing has changed then.
///
/// # Panics
///
/// If an initialiser does. The CPU has no unit then; the values made for it so far are kept for the
/// next call, or go with their boxes.
pub fn add_unit(cpu: CpuId) -> Result<(), NoMemory> {
    let _alone = BRING_UP.lock();
    if super::try_offset(cpu).is_some() {
        return Ok(());
    }
    let number = cpu.index() as u32;
    alloc::global().add_unit(number)?;
    let first = alloc::global().first_chunk().expect("a CPU is possible since set-up");
    let offset = first.offset(number).expect("a possible CPU has a place for its unit");
    // SAFETY: the unit has the template since `add_unit`, and is not published yet, so no CPU uses
    // it.
    unsafe { cpu::init_unit(number, offset) };
    alloc::initialise_copies(cpu, || {
        // SAFETY: `add_unit` gave the unit its memory, with the template and with zero in the
        // dynamic areas; number and offset were written above; every box that is alive has made
        // its value, and while this runs none is made that has not seen the CPU.
        unsafe { super::publish(cpu, offset) };
    });
    Ok(())
}
