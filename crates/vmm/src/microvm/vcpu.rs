//! The vCPU: its start, and its state out and in.

use super::guest::Entry;
use super::state::VcpuState;
use super::{MicroVmError, kvm};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_segment, kvm_xsave};
use kvm_ioctls::{Kvm, VcpuFd};

/// CR0.PE and CR0.ET: protected mode, no paging.
const CR0_PROTECTED: u64 = 0x11;
const RFLAGS_RESERVED: u64 = 2;
/// The time-stamp counter's register: written back last, so that the guest's clock stands still as briefly as can be.
const MSR_TSC: u32 = 0x10;

/// Registers of one call: KVM takes 256 (`MAX_IO_MSRS`).
const MSRS_AT_ONCE: usize = 256;

fn segment(type_: u8, selector: u16, limit: u32, flat: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(flat),
        s: u8::from(flat),
        l: 0,
        g: u8::from(flat),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Prepares a fresh vCPU for the PVH boot protocol: 32 bits, flat segments, no paging, EBX on the start info.
pub(super) fn start(kvm_fd: &Kvm, vcpu: &VcpuFd, entry: &Entry) -> Result<(), MicroVmError> {
    let cpuid = kvm_fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("tell the CPU's features"))?;
    vcpu.set_cpuid2(&cpuid).map_err(kvm("set the CPU's features"))?;
    let mut sregs = vcpu.get_sregs().map_err(kvm("read the vCPU's registers"))?;
    sregs.cs = segment(0xb, 8, u32::MAX, true);
    let data = segment(3, 16, u32::MAX, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(0xb, 0, 0x67, false);
    (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PROTECTED, 0, 0);
    vcpu.set_sregs(&sregs).map_err(kvm("set the vCPU's registers"))?;
    let mut regs = vcpu.get_regs().map_err(kvm("read the vCPU's registers"))?;
    regs.rip = entry.instruction;
    regs.rbx = entry.start_info;
    regs.rflags = RFLAGS_RESERVED;
    vcpu.set_regs(&regs).map_err(kvm("set the vCPU's registers"))
}

/// The registers of which KVM says that a state consists, as far as it gives them out.
fn msrs(kvm_fd: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, MicroVmError> {
    let list = kvm_fd.get_msr_index_list().map_err(kvm("list model-specific registers"))?;
    let mut found = Vec::new();
    for &index in list.as_slice() {
        let entry = kvm_msr_entry { index, ..kvm_msr_entry::default() };
        let mut one = Msrs::from_entries(&[entry]).expect("one entry fits");
        // KVM lists registers of features that this VM has not: those read as an error and have no state.
        if vcpu.get_msrs(&mut one) == Ok(1) {
            found.push(one.as_slice()[0]);
        }
    }
    found.sort_by_key(|entry| (entry.index == MSR_TSC, entry.index));
    Ok(found)
}

/// Takes the state of a vCPU that does not run and whose last port access is completed.
pub(super) fn capture(kvm_fd: &Kvm, vcpu: &VcpuFd) -> Result<VcpuState, MicroVmError> {
    let read = || kvm("read the vCPU's state");
    Ok(VcpuState {
        cpuid: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(read())?.as_slice().to_vec(),
        mp_state: vcpu.get_mp_state().map_err(read())?,
        regs: vcpu.get_regs().map_err(read())?,
        sregs: vcpu.get_sregs().map_err(read())?,
        xsave: Box::new(vcpu.get_xsave().map_err(read())?.region),
        xcrs: vcpu.get_xcrs().map_err(read())?,
        debugregs: vcpu.get_debug_regs().map_err(read())?,
        lapic: vcpu.get_lapic().map_err(read())?,
        msrs: msrs(kvm_fd, vcpu)?,
        events: vcpu.get_vcpu_events().map_err(read())?,
    })
}

/// Writes a state back. Features first, as they decide what else is accepted; events last, as writing registers clears some.
pub(super) fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), MicroVmError> {
    let write = || kvm("write the vCPU's state");
    let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| MicroVmError::Kvm {
        action: "take so many CPU features",
        source: std::io::Error::from_raw_os_error(libc::E2BIG),
    })?;
    vcpu.set_cpuid2(&cpuid).map_err(write())?;
    vcpu.set_mp_state(state.mp_state).map_err(write())?;
    vcpu.set_regs(&state.regs).map_err(write())?;
    vcpu.set_sregs(&state.sregs).map_err(write())?;
    let xsave = kvm_xsave { region: *state.xsave, ..kvm_xsave::default() };
    // SAFETY: without a request for dynamic features (AMX), which this VMM never makes, KVM reads exactly the
    // structure's 4 KiB region.
    unsafe { vcpu.set_xsave(&xsave) }.map_err(write())?;
    vcpu.set_xcrs(&state.xcrs).map_err(write())?;
    vcpu.set_debug_regs(&state.debugregs).map_err(write())?;
    vcpu.set_lapic(&state.lapic).map_err(write())?;
    restore_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&state.events).map_err(write())
}

/// Writes model-specific registers back, all that KVM takes in one call: each call costs several exits where KVM is nested itself.
fn restore_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), MicroVmError> {
    let mut left = entries;
    while !left.is_empty() {
        let (batch, rest) = left.split_at(left.len().min(MSRS_AT_ONCE));
        let all = Msrs::from_entries(batch).expect("a batch fits");
        // KVM stops at the first that it refuses, and says how many it took.
        let taken = vcpu.set_msrs(&all).unwrap_or(0);
        let Some(refused) = batch.get(taken) else {
            left = rest;
            continue;
        };
        // A register that this host cannot set matters only if its value is not the one it has anyway.
        if !has_value(vcpu, refused) {
            return Err(MicroVmError::Kvm {
                action: "write a model-specific register of the state (another kind of CPU?)",
                source: std::io::Error::other(format!("register {:#x}", refused.index)),
            });
        }
        left = &left[taken + 1..];
    }
    Ok(())
}

fn has_value(vcpu: &VcpuFd, entry: &kvm_msr_entry) -> bool {
    let asked = kvm_msr_entry { index: entry.index, ..kvm_msr_entry::default() };
    let mut now = Msrs::from_entries(&[asked]).expect("one entry fits");
    vcpu.get_msrs(&mut now) == Ok(1) && now.as_slice()[0].data == entry.data
}
