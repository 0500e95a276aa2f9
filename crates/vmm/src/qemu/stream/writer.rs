//! Writing a stream.

use super::command::{Command, counted};
use super::cursor::Cursor;
use super::ram::{Block, BlockPlan};
use super::{
    FLAG_CONTINUE, FLAG_EOS, FLAG_MEM_SIZE, FLAG_PAGE, FLAG_ZERO, PAGE_BYTES, RAM_VERSION, SECTION_COMMAND,
    SECTION_DESCRIPTION, SECTION_END, SECTION_EOF, SECTION_FOOTER, SECTION_PART, SECTION_START,
    SECTION_SUBSECTION,
};

/// Appends a command section.
///
/// # Panics
///
/// If a block's name has more than 255 bytes.
pub fn write_command(out: &mut Vec<u8>, command: &Command) {
    let (number, data) = command.encode();
    out.push(SECTION_COMMAND);
    out.extend(number.to_be_bytes());
    out.extend(u16::try_from(data.len()).expect("encode keeps to 64 KiB").to_be_bytes());
    out.extend(data);
}

/// Appends the mark that ends a stream.
pub fn write_end(out: &mut Vec<u8>) {
    out.push(SECTION_EOF);
}

/// Appends the description that pre-copy destinations expect behind the end; `{}` if there is none.
///
/// # Panics
///
/// If it has 4 GiB or more.
pub fn write_description(out: &mut Vec<u8>, description: &[u8]) {
    let description = if description.is_empty() { b"{}" } else { description };
    out.push(SECTION_DESCRIPTION);
    out.extend(u32::try_from(description.len()).expect("device state is at most 64 MiB").to_be_bytes());
    out.extend_from_slice(description);
}

/// A stream's head (magic and configuration section without `x-ignore-shared`) with that capability put in.
#[must_use]
pub fn with_ignore_shared(prefix: &[u8]) -> Vec<u8> {
    let mut out = prefix.to_vec();
    out.push(SECTION_SUBSECTION);
    out.extend(counted("configuration/capabilities"));
    out.extend(1u32.to_be_bytes());
    out.extend(1u32.to_be_bytes());
    out.extend(counted("x-ignore-shared"));
    out
}

/// A stream's head without what it says about capabilities; everything else stays.
#[must_use]
pub fn without_capabilities(prefix: &[u8]) -> Vec<u8> {
    let name = counted("configuration/capabilities");
    let Some(at) = prefix.windows(name.len()).position(|bytes| bytes == name) else { return prefix.to_vec() };
    let mut cursor = Cursor::new(&prefix[at + name.len()..]);
    let end = (|| {
        let (_version, count) = (cursor.u32()?, cursor.u32()?);
        (0..count).try_for_each(|_| cursor.counted().map(drop))?;
        Some(at + name.len() + cursor.at())
    })();
    // In front of the name stands the type of a subsection.
    [&prefix[..at.saturating_sub(1)], &prefix[end.unwrap_or(prefix.len())..]].concat()
}

/// Writes section `ram`. Remembers which block the destination was told last, as records leave it out when it is the
/// same; a new connection needs a new writer.
#[derive(Clone, Debug)]
pub struct RamWriter {
    section: u32,
    last: Option<usize>,
    blocks: Vec<Block>,
}

impl RamWriter {
    /// For these blocks, in an image's order, under this section id.
    #[must_use]
    pub fn new(section: u32, blocks: &[Block]) -> Self {
        Self { section, last: None, blocks: blocks.to_vec() }
    }

    /// Appends the START section with the list of blocks. `addresses`: with guest physical addresses, as
    /// `x-ignore-shared` wants it (0 where none is known, which QEMU takes for blocks that are not ignored).
    pub fn start(&self, out: &mut Vec<u8>, plan: &BlockPlan, addresses: bool) {
        out.push(SECTION_START);
        out.extend(self.section.to_be_bytes());
        out.extend(counted("ram"));
        out.extend(0u32.to_be_bytes());
        out.extend(RAM_VERSION.to_be_bytes());
        let total: u64 = self.blocks.iter().map(|block| block.len).sum();
        out.extend((total | FLAG_MEM_SIZE).to_be_bytes());
        for block in &self.blocks {
            out.extend(counted(&block.id));
            out.extend(block.len.to_be_bytes());
            if plan.postcopy && block.page_size != PAGE_BYTES {
                out.extend(block.page_size.to_be_bytes());
            }
            if addresses {
                out.extend(block.gpa.unwrap_or(0).to_be_bytes());
            }
        }
        self.close(out);
    }

    /// Begins a PART section; records follow, then [`close`](Self::close).
    pub fn part(&self, out: &mut Vec<u8>) {
        out.push(SECTION_PART);
        out.extend(self.section.to_be_bytes());
    }

    /// Begins the END section; records may follow, then [`close`](Self::close).
    pub fn end(&self, out: &mut Vec<u8>) {
        out.push(SECTION_END);
        out.extend(self.section.to_be_bytes());
    }

    /// Ends a section.
    pub fn close(&self, out: &mut Vec<u8>) {
        out.extend(FLAG_EOS.to_be_bytes());
        out.push(SECTION_FOOTER);
        out.extend(self.section.to_be_bytes());
    }

    /// Appends a page of the image.
    ///
    /// # Panics
    ///
    /// If the image has no such page.
    pub fn page(&mut self, out: &mut Vec<u8>, page: u32, bytes: &[u8; 4096]) {
        self.head(out, page, FLAG_PAGE);
        out.extend(bytes);
    }

    /// Appends a page of zeros.
    ///
    /// # Panics
    ///
    /// If the image has no such page.
    pub fn zero(&mut self, out: &mut Vec<u8>, page: u32) {
        self.head(out, page, FLAG_ZERO);
        out.push(0);
    }

    fn head(&mut self, out: &mut Vec<u8>, page: u32, flag: u64) {
        // Pages mostly come in order, so the block is nearly always the last one.
        let holds = |index: &usize| self.blocks[*index].page_range().contains(&page);
        let index = self.last.filter(holds).or_else(|| (0..self.blocks.len()).find(holds));
        let index = index.expect("a page of the image");
        let block = &self.blocks[index];
        let address = u64::from(page - block.first_page) * PAGE_BYTES;
        if self.last == Some(index) {
            out.extend((address | flag | FLAG_CONTINUE).to_be_bytes());
        } else {
            out.extend((address | flag).to_be_bytes());
            out.extend(counted(&block.id));
            self.last = Some(index);
        }
    }
}
