//! QEMU's migration stream: complete for RAM and commands, opaque for devices.
//!
//! ```text
//! "QEVM" 3 · configuration · [commands] · RAM START · [early device sections] · RAM PART* · RAM END · device sections · EOF · description
//!                                        blocks                                pages                └────────── tail ──────────┘
//! ```
//!
//! [`Parser`] takes bytes as they come and hands out [`Event`]s; it holds no more than the block list. [`RamWriter`]
//! and the functions beside it write the same. [`ReturnMessage`] is what the other side says. All integers are
//! big-endian. Source: `migration/{savevm,ram,migration,postcopy-ram}.c` of QEMU 10.0; docs/qemu.md has the layout.

mod command;
mod configuration;
mod cursor;
mod early;
mod error;
mod parser;
mod ram;
mod return_path;
mod tail;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
mod writer;

pub use command::{Command, PageRange, PostcopyPages};
pub use configuration::Configuration;
pub use error::StreamError;
pub use parser::{Event, INPUT_BYTES_MIN, Parser};
pub use ram::{Block, BlockPlan};
pub use return_path::{
    BITMAP_BYTES_MAX, BITMAP_END_MARK, RETURN_HEADER_BYTES, ReturnMessage, received_bitmap,
};
pub use tail::{Tail, package_devices, split_tail};
pub use writer::{
    RamWriter, with_ignore_shared, without_capabilities, write_command, write_description, write_end,
};

/// The first bytes of a stream: "QEVM", version 3.
pub const MAGIC: [u8; 8] = *b"QEVM\0\0\0\x03";
/// Bytes of a page in records, whatever the page size of the block.
pub const PAGE_BYTES: u64 = 4096;
/// Most RAM blocks of a VM. QEMU has no limit; a VM with 32 of everything has some 200.
pub const BLOCKS_MAX: usize = 1024;
/// Most bytes of device state (tail or package) that are taken; a common VM has 0.1 to 2 MiB.
pub const DEVICE_BYTES_MAX: usize = 64 << 20;
/// Most bytes of the early device sections between RAM's start and its first pages.
pub const EARLY_BYTES_MAX: usize = 128 << 10;

const SECTION_EOF: u8 = 0x00;
const SECTION_START: u8 = 0x01;
const SECTION_PART: u8 = 0x02;
const SECTION_END: u8 = 0x03;
const SECTION_FULL: u8 = 0x04;
const SECTION_SUBSECTION: u8 = 0x05;
const SECTION_DESCRIPTION: u8 = 0x06;
const SECTION_CONFIGURATION: u8 = 0x07;
const SECTION_COMMAND: u8 = 0x08;
const SECTION_FOOTER: u8 = 0x7e;

const FLAG_ZERO: u64 = 0x02;
const FLAG_MEM_SIZE: u64 = 0x04;
const FLAG_PAGE: u64 = 0x08;
const FLAG_EOS: u64 = 0x10;
const FLAG_CONTINUE: u64 = 0x20;
const FLAGS: u64 = PAGE_BYTES - 1;

const RAM_VERSION: u32 = 4;
