//! Guest memory, the engine that executes in it, and what there is to know to start CPUs: what a machine
//! of either kind is built on.

use percpu_guest::abi::{self, BootParams, ImageHeader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::boot::{self, Entry};
use super::engine::{Board, Cpu, Engine};
use super::kvm::KvmBoard;
use super::threads::ThreadBoard;
use crate::error::Error;
use crate::image::Image;

/// What kind of machine to make.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// What executes the guest.
    pub engine: Engine,
    /// The guest's orders; memory bounds are filled in, and so is the clock's rate if it is 0.
    pub boot: BootParams,
    /// Bytes of guest memory, a multiple of 2 MiB, and no more than are below [`abi::DOORBELL`].
    pub memory: u64,
    /// Bytes at the end of it that the guest is not told of.
    pub kept: u64,
}

impl VmConfig {
    /// A machine that is told of all its memory.
    pub fn new(engine: Engine, boot: BootParams, memory: u64) -> Self {
        Self { engine, boot, memory, kept: 0 }
    }

    /// Enough memory for `cpus` possible CPUs under every workload.
    pub fn memory_for(cpus: u32) -> u64 {
        (192 << 20) + u64::from(cpus) * (8 << 20)
    }
}

/// A virtual machine without its CPUs.
#[derive(Debug)]
pub(super) struct Hardware {
    board: Box<dyn Board>,
    pub(super) mem: GuestMemoryMmap,
    image: ImageHeader,
    pub(super) boot: BootParams,
    pub(super) memory: u64,
}

impl Hardware {
    /// Makes a VM with `image` and the shared region in memory, and the boot CPU. Its CPUs are a thread
    /// each, if it is `whole`; else the boot CPU is all there is, and runs now and then.
    pub(super) fn new(
        image: &Image,
        config: VmConfig,
        whole: bool,
    ) -> Result<(Self, Box<dyn Cpu>), Error> {
        check_memory(&config)?;
        let (board, mem): (Box<dyn Board>, _) = match config.engine {
            Engine::Kvm => {
                let (board, mem) = KvmBoard::new(config.memory)?;
                (Box::new(board), mem)
            }
            Engine::Threads => {
                let (board, mem) = ThreadBoard::new(config.memory, image.header(), whole)?;
                (Box::new(board), mem)
            }
        };
        boot::write_page_tables(&mem, config.memory)?;
        let end = image.load(&mem)?;
        let boot_cpu = board.create_cpu(0)?;
        let tsc_mhz = match config.boot.tsc_mhz {
            0 => boot_cpu.tsc_khz()? / 1000,
            given => given,
        };
        let boot = BootParams {
            tsc_mhz,
            memory_start: end.next_multiple_of(4096),
            memory_end: config.memory - config.kept,
            ..config.boot
        };
        let header = GuestAddress(abi::SHARED);
        mem.write_obj(abi::MAGIC, header).map_err(Error::guest_memory)?;
        let version = u64::from(abi::ABI_VERSION) | (size_of::<abi::SharedHeader>() as u64) << 32;
        mem.write_obj(version, header.unchecked_add(8)).map_err(Error::guest_memory)?;
        crate::memory::write_view(&mem, header.0 + 16, &boot)?;

        Ok((Self { board, mem, image: *image.header(), boot, memory: config.memory }, boot_cpu))
    }

    /// Another CPU.
    pub(super) fn create_cpu(&self, cpu: u32) -> Result<Box<dyn Cpu>, Error> {
        self.board.create_cpu(cpu)
    }

    /// Where the boot CPU begins.
    pub(super) fn boot_entry(&self) -> Entry {
        Entry::of_boot_cpu(&self.image, self.boot.ring as u8)
    }

    /// Where another CPU begins if the host starts it.
    pub(super) fn ap_entry(&self, cpu: u32) -> Result<Entry, Error> {
        Entry::of_ap(&self.image, &self.mem, cpu, self.boot.ring as u8)
    }

    /// Raises `vector` on CPU `cpu`, as a device's message-signalled interrupt does.
    pub(super) fn interrupt(&self, cpu: u32, vector: u8) -> Result<(), Error> {
        self.board.interrupt(cpu, vector)
    }
}

/// Refuses memory for which the identity map and the devices leave no room.
fn check_memory(config: &VmConfig) -> Result<(), Error> {
    let VmConfig { memory, kept, .. } = *config;
    let fits = memory > 0 && memory.is_multiple_of(boot::LARGE_PAGE) && memory <= abi::DOORBELL;
    if fits && kept <= memory {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "a guest cannot have {memory:#x} bytes of memory, {kept:#x} of them kept back: it takes a \
         multiple of {:#x}, {:#x} at most (lower --max-cpus)",
        boot::LARGE_PAGE,
        abi::DOORBELL
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_no_guest_can_have_is_refused() {
        let boot = crate::memory::view_from_bytes(&[0; size_of::<BootParams>()]).unwrap();
        let check = |memory, kept| {
            check_memory(&VmConfig { kept, ..VmConfig::new(Engine::Threads, boot, memory) })
        };
        for memory in [2 << 20, VmConfig::memory_for(abi::MAX_CPUS as u32), abi::DOORBELL] {
            assert!(check(memory, 0).is_ok() && check(memory, memory).is_ok(), "{memory:#x}");
            assert!(check(memory, memory + 1).is_err(), "{memory:#x}");
        }
        for memory in [0, 4096, (2 << 20) + 4096, abi::DOORBELL + (2 << 20), u64::MAX] {
            assert!(check(memory, 0).is_err(), "{memory:#x}");
        }
    }
}
