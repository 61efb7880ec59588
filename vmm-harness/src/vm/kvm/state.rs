//! A vCPU's whole architectural state, to give a reused vCPU the state of a new one.

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::super::boot::Entry;
use super::segments;
use crate::error::Error;

/// Model-specific registers a guest of ours could have changed.
const MSRS: &[u32] = &[
    0x1b,        // IA32_APIC_BASE
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0084, // SFMASK
    0xc000_0102, // KERNEL_GS_BASE
];

/// Everything but the CPUID table, which KVM keeps.
pub(super) struct CpuState {
    mp: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Msrs,
    events: kvm_vcpu_events,
}

impl CpuState {
    /// Reads the state of a vCPU that does not run.
    pub(super) fn save(fd: &VcpuFd) -> Result<Self, Error> {
        let entries: Vec<_> =
            MSRS.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("the list of MSRs is short");
        let got = fd.get_msrs(&mut msrs).map_err(Error::kvm("KVM_GET_MSRS"))?;
        let msrs = Msrs::from_entries(&msrs.as_slice()[..got]).expect("the list of MSRs is short");
        Ok(Self {
            mp: fd.get_mp_state().map_err(Error::kvm("KVM_GET_MP_STATE"))?,
            regs: fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?,
            xsave: fd.get_xsave().map_err(Error::kvm("KVM_GET_XSAVE"))?,
            xcrs: fd.get_xcrs().ok(),
            debug: fd.get_debug_regs().map_err(Error::kvm("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?,
            msrs,
            events: fd.get_vcpu_events().map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Writes the state back: the LAPIC after the special registers, MSRs after the LAPIC.
    pub(super) fn restore(&self, fd: &VcpuFd) -> Result<(), Error> {
        fd.set_mp_state(self.mp).map_err(Error::kvm("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs).map_err(Error::kvm("KVM_SET_REGS"))?;
        fd.set_sregs(&self.sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        // SAFETY: KVM reads more than the structure only if an XSAVE feature such as AMX was enabled for
        // guests by `arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)`, which nothing here calls. Without it
        // KVM_GET_SUPPORTED_CPUID, and so the vCPU, has none.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(Error::kvm("KVM_SET_XSAVE"))?;
        if let Some(xcrs) = &self.xcrs {
            fd.set_xcrs(xcrs).map_err(Error::kvm("KVM_SET_XCRS"))?;
        }
        fd.set_debug_regs(&self.debug).map_err(Error::kvm("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&self.lapic).map_err(Error::kvm("KVM_SET_LAPIC"))?;
        fd.set_msrs(&self.msrs).map_err(Error::kvm("KVM_SET_MSRS"))?;
        fd.set_vcpu_events(&self.events).map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))?;
        Ok(())
    }

    /// Writes the state back, then that of an entry over it: the vCPU runs from there.
    pub(super) fn enter(&self, fd: &VcpuFd, entry: &Entry) -> Result<(), Error> {
        self.restore(fd)?;
        let mut sregs = self.sregs;
        segments::apply(entry, &mut sregs);
        fd.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        fd.set_regs(&entry.regs()).map_err(Error::kvm("KVM_SET_REGS"))?;
        set_mp_state(fd, KVM_MP_STATE_RUNNABLE)
    }
}

/// Says whether the vCPU runs or waits for what.
pub(super) fn set_mp_state(fd: &VcpuFd, mp_state: u32) -> Result<(), Error> {
    fd.set_mp_state(kvm_mp_state { mp_state }).map_err(Error::kvm("KVM_SET_MP_STATE"))
}
