//! QEMU's migration stream in a file with capability `mapped-ram` (QEMU 9.0 or newer).
//!
//! ```text
//! "QEVM" u32 3 │ 07 machine name, subsections │ 01 section "ram": MEM_SIZE, then for each block
//!   { id, length, [gpa], header 28 B, bitmap, padding to 1 MiB, pages } │ EOS, footer │ … device state
//! ```
//!
//! Integers are big-endian; the bitmaps are the writer's native longs (little-endian: hosts of the other
//! kind are not supported). Source: QEMU 10.0 `migration/{savevm,ram}.c`, `docs/devel/migration/mapped-ram.rst`.
//!
//! The parser reads everything up to the end of the block list, checks each offset and length against the
//! file, and leaves the device state unread but for its last section. It takes what QEMU writes and
//! refuses the rest by name: pages may not overlap headers or one another, and stand at multiples of
//! 4 KiB.

mod cursor;
mod error;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

pub use error::MappedRamError;

use super::{Contents, RamBlock};
use cursor::Cursor;
use error::MappedRamError as Error;
use pages::PAGE_SIZE;
use std::fmt::Write;

/// The first four bytes of a QEMU migration stream.
pub const MAGIC: &[u8] = b"QEVM";
const STREAM_VERSION: u32 = 3;
const SECTION_START: u8 = 0x01;
const SUBSECTION: u8 = 0x05;
const SECTION_VMDESCRIPTION: u8 = 0x06;
const SECTION_CONFIGURATION: u8 = 0x07;
const FOOTER: u8 = 0x7e;
const RAM_VERSION: u32 = 4;
const RAM_MEM_SIZE: u64 = 0x04;
const RAM_EOS: u64 = 0x10;
const RAM_MULTIFD_FLUSH: u64 = 0x200;
const RAM_FLAGS: u64 = PAGE - 1;
const HEADER_VERSION: u32 = 1;
const PAGE: u64 = PAGE_SIZE as u64;
const TARGET_PAGE_BITS: u32 = 12;
/// More blocks than this are taken as damage; a VM with a hundred hot-plugged DIMMs is far below.
const BLOCKS_MAX: usize = 1024;
/// More than QEMU knows.
const CAPABILITIES_MAX: u32 = 64;
const MACHINE_NAME_MAX: u32 = 255;
/// The description of the device state, the last section, is looked for in so many bytes at the end.
const DESCRIPTION_MAX: usize = 16 << 20;

/// What stands in a mapped-ram file, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The machine type that can load it, as `pc-q35-10.0`.
    pub machine: String,
    /// The capabilities that the stream names, which its loader must have switched on.
    pub capabilities: Vec<String>,
    /// In the order of the file; at least one.
    pub blocks: Vec<Block>,
    /// Where the RAM section's start ends: the rest of the file is device state, opaque.
    pub tail_offset: u64,
}

/// A RAM block in a mapped-ram file. Header, bitmap and pages stand in this order and overlap nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// Unique in the file, at most 255 bytes, no control characters.
    pub id: String,
    /// In bytes, a multiple of 4096; may be 0.
    pub len: u64,
    /// Guest physical address, if the stream tells (capability `x-ignore-shared`).
    pub gpa: Option<u64>,
    /// Where its bitmap stands: a bit for each page, in whole 64-bit words.
    pub bitmap_offset: u64,
    /// Where page 0 stands; a multiple of 4096.
    pub pages_offset: u64,
    /// Number of set bits in the bitmap: pages that are not zero.
    pub present_pages: u64,
}

/// Reads the headers, the block list and the bitmaps of a mapped-ram file.
///
/// Time and memory are bounded by the file's length, whatever it holds.
///
/// # Errors
///
/// [`MappedRamError`] for everything that QEMU would not have written so, and for what is well-formed but
/// no image: memory that is not in the file, or bitmaps without a single page (what `background-snapshot`
/// together with mapped-ram leaves, and a migration that did not complete).
pub fn parse(file: &[u8]) -> Result<Layout, Error> {
    parse_at(file, 0)
}

/// As [`parse`], of a stream that begins at `start`, as in libvirt's images. All offsets are the file's.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_at(file: &[u8], start: u64) -> Result<Layout, Error> {
    let mut cursor = Cursor::new(file);
    cursor.skip(start, "what stands in front of the stream")?;
    if !cursor.rest().starts_with(MAGIC) {
        return Err(Error::NotAStream);
    }
    cursor.skip(MAGIC.len() as u64, "magic")?;
    let version = cursor.u32("stream version")?;
    if version != STREAM_VERSION {
        return Err(Error::StreamVersion { found: version });
    }
    let (machine, capabilities) = configuration(&mut cursor)?;
    let ignore_shared = capabilities.iter().any(|name| name == "x-ignore-shared");
    let section = ram_start(&mut cursor)?;
    let blocks = block_list(&mut cursor, ignore_shared)?;
    end_of_list(&mut cursor, section)?;
    if blocks.iter().all(|block| block.present_pages == 0) {
        return Err(Error::NoPages);
    }
    let tail_offset = cursor.at();
    check_tail(cursor.rest())?;
    Ok(Layout { machine, capabilities, blocks, tail_offset })
}

pub(super) fn contents(file: &[u8]) -> Result<Contents, Error> {
    let layout = parse(file)?;
    let mut fingerprint = format!("qemu-mapped-ram;machine={}", layout.machine);
    for block in &layout.blocks {
        write!(fingerprint, ";{}={}", block.id, block.len).expect("a string takes everything");
    }
    let ram_block = |block: &Block| RamBlock {
        id: block.id.clone(),
        file_offset: block.pages_offset,
        len: block.len,
        page_size: PAGE,
        gpa: block.gpa,
    };
    Ok(Contents {
        blocks: layout.blocks.iter().map(ram_block).collect(),
        present_pages: Some(layout.blocks.iter().map(|block| block.present_pages).sum()),
        fingerprint,
    })
}

/// The configuration section with its subsections: machine type and capabilities.
fn configuration(cursor: &mut Cursor<'_>) -> Result<(String, Vec<String>), Error> {
    let kind = cursor.u8("configuration section")?;
    if kind != SECTION_CONFIGURATION {
        return Err(Error::NoConfiguration { found: kind });
    }
    let len = cursor.u32("machine name's length")?;
    if len == 0 || len > MACHINE_NAME_MAX {
        return Err(Error::MachineName);
    }
    let machine = name(cursor.take(u64::from(len), "machine name")?).ok_or(Error::MachineName)?;
    let mut capabilities = Vec::new();
    while cursor.peek() == Some(SUBSECTION) {
        cursor.skip(1, "subsection")?;
        let id = cursor.counted("subsection's name")?;
        let _version = cursor.u32("subsection's version")?;
        match id {
            b"configuration/capabilities" => capabilities = capability_list(cursor)?,
            b"configuration/target-page-bits" => {
                let bits = cursor.u32("target page bits")?;
                if bits != TARGET_PAGE_BITS {
                    return Err(Error::TargetPageBits { found: bits });
                }
            }
            b"configuration/uuid" => cursor.skip(16, "uuid")?,
            other => {
                return Err(Error::UnknownConfiguration { name: lossy(other) });
            }
        }
    }
    if !capabilities.iter().any(|name| name == "mapped-ram") {
        return Err(Error::NotMappedRam);
    }
    Ok((machine, capabilities))
}

fn capability_list(cursor: &mut Cursor<'_>) -> Result<Vec<String>, Error> {
    let count = cursor.u32("number of capabilities")?;
    if count > CAPABILITIES_MAX {
        return Err(Error::TooManyCapabilities { found: count });
    }
    let mut capabilities = Vec::new();
    for _ in 0..count {
        let id = cursor.counted("capability")?;
        // Others may change the layout of what follows.
        if !matches!(id, b"mapped-ram" | b"x-ignore-shared") {
            return Err(Error::UnknownCapability { name: lossy(id) });
        }
        capabilities.push(lossy(id));
    }
    Ok(capabilities)
}

/// The head of section "ram", which must be the first; its section id.
fn ram_start(cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    let kind = cursor.u8("first section")?;
    if kind != SECTION_START {
        return Err(Error::NotRamFirst { kind, name: String::new() });
    }
    let section = cursor.u32("section id")?;
    let id = cursor.counted("section's name")?;
    let instance = cursor.u32("section's instance")?;
    // Other sections that iterate (VFIO, dirty bitmaps, …) interleave with RAM in ways only they know.
    if id != b"ram" || instance != 0 {
        return Err(Error::NotRamFirst { kind, name: lossy(id) });
    }
    let version = cursor.u32("version of section ram")?;
    if version != RAM_VERSION {
        return Err(Error::RamVersion { found: version });
    }
    Ok(section)
}

fn block_list(cursor: &mut Cursor<'_>, ignore_shared: bool) -> Result<Vec<Block>, Error> {
    let record = cursor.u64("MEM_SIZE record")?;
    if record & RAM_FLAGS != RAM_MEM_SIZE {
        return Err(Error::NoBlockList { record });
    }
    let mut left = record & !RAM_FLAGS;
    let mut blocks: Vec<Block> = Vec::new();
    while left > 0 {
        if blocks.len() == BLOCKS_MAX {
            return Err(Error::TooManyBlocks);
        }
        let block = block(cursor, ignore_shared)?;
        if blocks.iter().any(|other| other.id == block.id) {
            return Err(Error::DuplicateBlock { id: block.id });
        }
        left = left.checked_sub(block.len).ok_or_else(|| Error::BlockSum { id: block.id.clone(), left })?;
        blocks.push(block);
    }
    Ok(blocks)
}

fn block(cursor: &mut Cursor<'_>, ignore_shared: bool) -> Result<Block, Error> {
    let at = cursor.at();
    let id = cursor.counted("block's name")?;
    let id = name(id).ok_or(Error::BlockName { at })?;
    let len = cursor.u64("block's length")?;
    if !len.is_multiple_of(PAGE) {
        return Err(Error::BlockLength { id, len });
    }
    let gpa = if ignore_shared { Some(cursor.u64("block's address")?) } else { None };
    let version = cursor.u32("mapped-ram header")?;
    if version != HEADER_VERSION {
        return Err(Error::HeaderVersion { id, found: version });
    }
    let page_size = cursor.u64("page size")?;
    let bitmap_offset = cursor.u64("bitmap's offset")?;
    let pages_offset = cursor.u64("pages' offset")?;
    if ignore_shared && bitmap_offset == 0 && pages_offset == 0 {
        return Err(Error::BlockElsewhere { id });
    }
    if page_size != PAGE {
        return Err(Error::PageSize { id, found: page_size });
    }
    if !pages_offset.is_multiple_of(PAGE) {
        return Err(Error::Misaligned { id, offset: pages_offset });
    }
    let page_count = len / PAGE;
    let bitmap_len = page_count.div_ceil(64) * 8;
    // Header, bitmap, pages, next header: in this order nothing can overlap, and the list comes to an end.
    let order = [
        ("bitmap", bitmap_offset, bitmap_len, cursor.at()),
        ("pages", pages_offset, len, bitmap_offset.saturating_add(bitmap_len)),
    ];
    for (what, offset, len, earliest) in order {
        let file_len = cursor.len();
        if offset.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(Error::OutsideFile { id, what, offset, len, file_len });
        }
        if offset < earliest {
            return Err(Error::Overlap { id, what, offset, earliest });
        }
    }
    cursor.seek(bitmap_offset);
    let Some(present_pages) = count_bits(cursor.take(bitmap_len, "bitmap")?, page_count) else {
        return Err(Error::BitmapBits { id });
    };
    cursor.seek(pages_offset + len);
    Ok(Block { id, len, gpa, bitmap_offset, pages_offset, present_pages })
}

/// The number of set bits; `None` if a bit beyond the last page is set. Whole little-endian words.
fn count_bits(bitmap: &[u8], page_count: u64) -> Option<u64> {
    let (words, _) = bitmap.as_chunks::<8>();
    let used = page_count % 64;
    if let Some(last) = words.last()
        && used != 0
        && u64::from_le_bytes(*last) >> used != 0
    {
        return None;
    }
    Some(words.iter().map(|word| u64::from(u64::from_le_bytes(*word).count_ones())).sum())
}

/// After the last block's pages: records without pages, the end of the section, its footer.
fn end_of_list(cursor: &mut Cursor<'_>, section: u32) -> Result<(), Error> {
    let at = cursor.at();
    let mut record = cursor.u64("end of section ram")?;
    if record == RAM_MULTIFD_FLUSH {
        record = cursor.u64("end of section ram")?;
    }
    let footer = (cursor.u8("footer")?, cursor.u32("footer")?);
    if record != RAM_EOS || footer != (FOOTER, section) {
        return Err(Error::EndOfList { at });
    }
    Ok(())
}

/// Whether the stream comes to its end: a description of the device state that reaches the end of the file
/// exactly, or, for machines that write none, a last byte that can be the end mark.
///
/// Not a proof (device state has no lengths), but a file that was cut off is nearly always found out.
fn check_tail(tail: &[u8]) -> Result<(), Error> {
    let near_end = &tail[tail.len().saturating_sub(DESCRIPTION_MAX)..];
    let ends_here = |at: usize| {
        let Some((head, json)) = near_end[at..].split_first_chunk::<6>() else { return false };
        let [0, SECTION_VMDESCRIPTION, len @ ..] = *head else { return false };
        usize::try_from(u32::from_be_bytes(len)) == Ok(json.len()) && json.starts_with(b"{")
    };
    // The description is short against the state, so the search goes backwards.
    let complete = tail.last() == Some(&0) || (0..near_end.len()).rev().any(ends_here);
    if complete { Ok(()) } else { Err(Error::CutOff) }
}

/// A name as QEMU gives them: not empty, UTF-8, no control characters.
fn name(bytes: &[u8]) -> Option<String> {
    let text = str::from_utf8(bytes).ok()?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

/// Damaged names are shown in errors as well as they can be.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}
