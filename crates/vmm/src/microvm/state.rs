//! A micro-VM's state beside its memory, and its file.
//!
//! All numbers little-endian; KVM's structures as the kernel's interface lays them out on x86-64.
//!
//! ```text
//! magic    8  "VSMICRO\0"
//! version  4  1
//! count    4  number of sections
//! section     u32 tag, u32 length, bytes        each tag once, in any order; an unknown one is an error
//! digest  32  BLAKE3 of everything before
//! ```

use super::device::{Pattern, Workload};
use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use std::collections::BTreeMap;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const MAGIC: [u8; 8] = *b"VSMICRO\0";
const VERSION: u32 = 1;
const DIGEST_BYTES: usize = 32;
const HEAD_BYTES: usize = 16;
/// Longest state file that is read; one has about 20 KiB.
pub const STATE_BYTES_MAX: usize = 1 << 20;

/// Why a state file is not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Too short, or another kind of file.
    #[error("this is no micro-VM state: it does not begin as one")]
    Magic,
    /// Written by another version of this program.
    #[error("the state has version {found}; this program reads version {VERSION}: capture the VM anew")]
    Version {
        /// In the file.
        found: u32,
    },
    /// Longer than any state.
    #[error("the state has {bytes} bytes; at most {STATE_BYTES_MAX} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Bytes changed since it was written, or it was cut.
    #[error("the state is damaged: its digest does not match")]
    Digest,
    /// A section is missing, doubled, unknown or of a wrong length: written by a broken program.
    #[error("section {tag} of the state is missing, doubled, unknown or of a wrong length")]
    Section {
        /// Its tag.
        tag: u32,
    },
}

/// Everything of a paused VM but its memory.
#[derive(Clone, Debug)]
pub struct VmState {
    pub(super) memory_bytes: u64,
    pub(super) workload: Workload,
    pub(super) vcpu: VcpuState,
    pub(super) irqchips: [kvm_irqchip; IRQCHIPS],
    pub(super) pit: kvm_pit_state2,
    pub(super) clock: kvm_clock_data,
}

/// Two PICs and the I/O APIC.
pub(super) const IRQCHIPS: usize = 3;

#[derive(Clone, Debug)]
pub(super) struct VcpuState {
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    pub(super) mp_state: kvm_mp_state,
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    /// The region of `kvm_xsave`; what follows it there is for features that are not enabled.
    pub(super) xsave: Box<[u32; 1024]>,
    pub(super) xcrs: kvm_xcrs,
    pub(super) debugregs: kvm_debugregs,
    pub(super) lapic: kvm_lapic_state,
    pub(super) msrs: Vec<kvm_msr_entry>,
    pub(super) events: kvm_vcpu_events,
}

/// Tags of the file's sections.
mod tag {
    pub(super) const MACHINE: u32 = 1;
    pub(super) const CPUID: u32 = 2;
    pub(super) const MP_STATE: u32 = 3;
    pub(super) const REGS: u32 = 4;
    pub(super) const SREGS: u32 = 5;
    pub(super) const XSAVE: u32 = 6;
    pub(super) const XCRS: u32 = 7;
    pub(super) const DEBUGREGS: u32 = 8;
    pub(super) const LAPIC: u32 = 9;
    pub(super) const MSRS: u32 = 10;
    pub(super) const EVENTS: u32 = 11;
    pub(super) const PIT: u32 = 12;
    pub(super) const CLOCK: u32 = 13;
    /// And the two that follow.
    pub(super) const IRQCHIP: u32 = 14;
    pub(super) const COUNT: u32 = 16;
}

/// memory bytes, pattern, step, percent written, rest.
type MachineFields = [u64; 5];

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, tag: u32, value: &T) {
        let value = value.as_bytes();
        let len = u32::try_from(value.len()).expect("sections have a few KiB");
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(value);
    }
}

struct Sections<'a>(BTreeMap<u32, &'a [u8]>);

impl<'a> Sections<'a> {
    fn bytes(&self, tag: u32) -> Result<&'a [u8], StateError> {
        self.0.get(&tag).copied().ok_or(StateError::Section { tag })
    }

    fn one<T: FromBytes>(&self, tag: u32) -> Result<T, StateError> {
        T::read_from_bytes(self.bytes(tag)?).map_err(|_| StateError::Section { tag })
    }

    fn many<T: FromBytes>(&self, tag: u32) -> Result<Vec<T>, StateError> {
        let bytes = self.bytes(tag)?;
        let chunks = bytes.chunks_exact(size_of::<T>());
        if !chunks.remainder().is_empty() {
            return Err(StateError::Section { tag });
        }
        chunks.map(|chunk| T::read_from_bytes(chunk).map_err(|_| StateError::Section { tag })).collect()
    }
}

impl VmState {
    /// Length of the memory that belongs to it, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// What the guest was doing.
    #[must_use]
    pub fn workload(&self) -> Workload {
        self.workload
    }

    /// The file's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let pattern = match self.workload.pattern {
            Pattern::Random => 0,
            Pattern::Sequential => 1,
            Pattern::HotSet => 2,
        };
        let Workload { step, write_percent, idle_us, .. } = self.workload;
        let machine: MachineFields =
            [self.memory_bytes, pattern, step.into(), write_percent.into(), idle_us.into()];
        let mut writer = Writer { bytes: Vec::with_capacity(24 << 10) };
        writer.bytes.extend_from_slice(&MAGIC);
        writer.bytes.extend_from_slice(&VERSION.to_le_bytes());
        writer.bytes.extend_from_slice(&tag::COUNT.to_le_bytes());
        let vcpu = &self.vcpu;
        writer.put(tag::MACHINE, &machine);
        writer.put(tag::CPUID, vcpu.cpuid.as_slice());
        writer.put(tag::MP_STATE, &vcpu.mp_state);
        writer.put(tag::REGS, &vcpu.regs);
        writer.put(tag::SREGS, &vcpu.sregs);
        writer.put(tag::XSAVE, vcpu.xsave.as_ref());
        writer.put(tag::XCRS, &vcpu.xcrs);
        writer.put(tag::DEBUGREGS, &vcpu.debugregs);
        writer.put(tag::LAPIC, &vcpu.lapic);
        writer.put(tag::MSRS, vcpu.msrs.as_slice());
        writer.put(tag::EVENTS, &vcpu.events);
        writer.put(tag::PIT, &self.pit);
        writer.put(tag::CLOCK, &self.clock);
        for (chip, tag) in self.irqchips.iter().zip(tag::IRQCHIP..) {
            writer.put(tag, chip);
        }
        let digest = blake3::hash(&writer.bytes);
        writer.bytes.extend_from_slice(digest.as_bytes());
        writer.bytes
    }

    /// Reads a file's bytes, checking all of them.
    ///
    /// # Errors
    ///
    /// Damage, another version, or another kind of file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let sections = Sections(sections(bytes)?);
        let machine: MachineFields = sections.one(tag::MACHINE)?;
        let [memory_bytes, pattern, rest @ ..] = machine;
        let wrong = || StateError::Section { tag: tag::MACHINE };
        let small = |value: u64| u32::try_from(value).map_err(|_| wrong());
        let pattern = match pattern {
            0 => Pattern::Random,
            1 => Pattern::Sequential,
            2 => Pattern::HotSet,
            _ => return Err(wrong()),
        };
        let workload = Workload {
            pattern,
            step: small(rest[0])?,
            write_percent: small(rest[1])?,
            idle_us: small(rest[2])?,
        };
        let chip = |i: u32| sections.one(tag::IRQCHIP + i);
        Ok(Self {
            memory_bytes,
            workload,
            vcpu: VcpuState {
                cpuid: sections.many(tag::CPUID)?,
                mp_state: sections.one(tag::MP_STATE)?,
                regs: sections.one(tag::REGS)?,
                sregs: sections.one(tag::SREGS)?,
                xsave: Box::new(sections.one(tag::XSAVE)?),
                xcrs: sections.one(tag::XCRS)?,
                debugregs: sections.one(tag::DEBUGREGS)?,
                lapic: sections.one(tag::LAPIC)?,
                msrs: sections.many(tag::MSRS)?,
                events: sections.one(tag::EVENTS)?,
            },
            irqchips: [chip(0)?, chip(1)?, chip(2)?],
            pit: sections.one(tag::PIT)?,
            clock: sections.one(tag::CLOCK)?,
        })
    }
}

/// Checks the frame of a file and takes it apart.
fn sections(bytes: &[u8]) -> Result<BTreeMap<u32, &[u8]>, StateError> {
    if bytes.len() > STATE_BYTES_MAX {
        return Err(StateError::TooLong { bytes: bytes.len() });
    }
    if bytes.len() < HEAD_BYTES + DIGEST_BYTES || !bytes.starts_with(&MAGIC) {
        return Err(StateError::Magic);
    }
    let number = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
    };
    let found = number(bytes, MAGIC.len()).unwrap_or_default();
    if found != VERSION {
        return Err(StateError::Version { found });
    }
    let (body, digest) = bytes.split_at(bytes.len() - DIGEST_BYTES);
    if blake3::hash(body).as_bytes().as_slice() != digest {
        return Err(StateError::Digest);
    }
    let mut sections = BTreeMap::new();
    let mut rest = &body[HEAD_BYTES..];
    while !rest.is_empty() {
        let tag = number(rest, 0).ok_or(StateError::Section { tag: 0 })?;
        let wrong = StateError::Section { tag };
        let len = number(rest, 4).ok_or(wrong.clone())? as usize;
        let value = rest.get(8..).and_then(|rest| rest.get(..len)).ok_or(wrong.clone())?;
        if !(1..=tag::COUNT).contains(&tag) || sections.insert(tag, value).is_some() {
            return Err(wrong);
        }
        rest = &rest[8 + len..];
    }
    Ok(sections)
}
