//! The self-checking guest as a PVH image, and its way into memory.

use crate::memory::{GuestMemory, MemoryError};
use std::io;

/// The guest (sources and description: `crates/vmm/guest`), a PVH ELF image: it boots in QEMU (`-kernel`),
/// Firecracker and Cloud Hypervisor, too. It writes its reports to port 0x3f8.
pub const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// Below this address, the guest has its program and tables; its pattern begins here.
pub const PATTERN_AT: u64 = 8 << 20;

/// `hvm_start_info` (Xen's public/arch-x86/hvm/start_info.h): magic, version, and the command line's address.
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_AT: u64 = 0x6000;
const COMMAND_LINE_AT: u64 = 0x7000;
const COMMAND_LINE_MAX: usize = 1024;

const TYPE_LOAD: u32 = 1;
const PROGRAM_HEADER_BYTES: usize = 56;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A part of the image: where it goes, and its bytes.
type Segment<'a> = (u64, &'a [u8]);

/// The segments of a 64-bit little-endian ELF file, (address, bytes), and its entry.
fn segments(elf: &[u8]) -> Option<(u64, Vec<Segment<'_>>)> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let headers = usize::try_from(u64_at(elf, 32)?).ok()?;
    let mut found = Vec::new();
    for i in 0..usize::from(u16_at(elf, 56)?) {
        let at = headers.checked_add(i * PROGRAM_HEADER_BYTES)?;
        if u32_at(elf, at)? == TYPE_LOAD {
            let offset = usize::try_from(u64_at(elf, at + 8)?).ok()?;
            let len = usize::try_from(u64_at(elf, at + 32)?).ok()?;
            found.push((u64_at(elf, at + 24)?, elf.get(offset..offset.checked_add(len)?)?));
        }
    }
    Some((u64_at(elf, 24)?, found))
}

/// What the vCPU begins with.
pub(super) struct Entry {
    pub(super) instruction: u64,
    pub(super) start_info: u64,
}

/// Loads the guest and its command line into fresh memory.
pub(super) fn load(memory: &GuestMemory, command_line: &str) -> Result<Entry, MemoryError> {
    let (instruction, segments) = segments(ELF).expect("the image that build.rs made is an ELF file");
    for (address, bytes) in segments {
        memory.write(address, bytes)?;
    }
    if command_line.len() >= COMMAND_LINE_MAX {
        let source = io::Error::from_raw_os_error(libc::E2BIG);
        return Err(MemoryError { bytes: memory.len() as u64, action: "load the guest", source });
    }
    let mut info = [0u8; 56];
    info[..4].copy_from_slice(&START_INFO_MAGIC.to_le_bytes());
    info[4..8].copy_from_slice(&1u32.to_le_bytes());
    info[24..32].copy_from_slice(&COMMAND_LINE_AT.to_le_bytes());
    memory.write(START_INFO_AT, &info)?;
    memory.write(COMMAND_LINE_AT, command_line.as_bytes())?;
    Ok(Entry { instruction, start_info: START_INFO_AT })
}
