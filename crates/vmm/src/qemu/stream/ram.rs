//! RAM blocks, and how a stream lists them.

use super::cursor::{Cursor, lossy, name};
use super::error::StreamError;
use super::{BLOCKS_MAX, FLAG_CONTINUE, FLAG_EOS, FLAG_MEM_SIZE, FLAG_PAGE, FLAG_ZERO, FLAGS, PAGE_BYTES};
use serde::{Deserialize, Serialize};

/// A RAM block. In an image the blocks follow each other without gaps, in the order of the stream.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Block {
    /// QEMU's name for it, as `pc.ram`; 1 to 255 bytes.
    pub id: String,
    /// In bytes; a multiple of 4096, not zero.
    pub len: u64,
    /// Bytes of a page of the host that holds it: 4096, or a huge page's size.
    pub page_size: u64,
    /// Guest physical address, where the stream tells (with `x-ignore-shared`).
    pub gpa: Option<u64>,
    /// Its first page's number in the image.
    pub first_page: u32,
}

impl Block {
    /// Number of pages of 4 KiB.
    ///
    /// # Panics
    ///
    /// If it has 2^32 or more, as neither a parser nor a decoded state gives it.
    #[must_use]
    pub fn pages(&self) -> u32 {
        u32::try_from(self.len / PAGE_BYTES).expect("a plan's blocks together have at most 2^32 - 1 pages")
    }

    /// The pages of the image that this block has.
    #[must_use]
    pub fn page_range(&self) -> std::ops::Range<u32> {
        self.first_page..self.first_page + self.pages()
    }
}

/// Which stream the block list is from: it does not tell by itself.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct BlockPlan {
    /// Blocks of other page sizes than 4096, whose entries carry it if capability `postcopy-ram` is on.
    pub huge: Vec<(String, u64)>,
    /// Capability `postcopy-ram` is on at the source.
    pub postcopy: bool,
}

impl BlockPlan {
    fn page_size(&self, id: &str) -> u64 {
        self.huge.iter().find(|(name, _)| name == id).map_or(PAGE_BYTES, |(_, size)| *size)
    }
}

/// The list of blocks while it comes.
#[derive(Clone, Debug)]
pub(super) struct BlockList {
    plan: BlockPlan,
    /// Entries carry a guest physical address.
    pub(super) addresses: bool,
    /// Bytes of blocks that are still to be named.
    left: u64,
    pub(super) blocks: Vec<Block>,
    /// The block of the record before.
    last: Option<usize>,
}

/// One record.
pub(super) enum Record<'a> {
    MemSize,
    Page(u32, &'a [u8; 4096]),
    Zero(u32),
    EndOfSection,
}

impl BlockList {
    pub(super) fn new(plan: BlockPlan) -> Self {
        Self { plan, addresses: false, left: 0, blocks: Vec::new(), last: None }
    }

    /// Whether the list is still incomplete.
    pub(super) fn is_open(&self) -> bool {
        self.left > 0
    }

    /// The list's next entry; `None` if it has not come whole.
    pub(super) fn entry(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<()>, StreamError> {
        let Some(found) = cursor.counted() else { return Ok(None) };
        let wrong = |what| StreamError::Block { id: lossy(found), what };
        let id = name(found).ok_or_else(|| wrong("has a damaged name"))?;
        let page_size = self.plan.page_size(id);
        let Some(len) = cursor.u64() else { return Ok(None) };
        if self.plan.postcopy && page_size != PAGE_BYTES {
            let Some(told) = cursor.u64() else { return Ok(None) };
            if told != page_size {
                return Err(wrong("has another page size than the VM's memory backend"));
            }
        }
        let mut gpa = None;
        if self.addresses {
            let Some(told) = cursor.u64() else { return Ok(None) };
            gpa = Some(told);
        }
        if self.blocks.len() == BLOCKS_MAX {
            return Err(StreamError::TooLarge { what: "RAM blocks", max: BLOCKS_MAX as u64 });
        }
        if self.blocks.iter().any(|block| block.id == id) {
            return Err(wrong("is there twice"));
        }
        if len == 0 || !len.is_multiple_of(PAGE_BYTES) {
            return Err(wrong("is no whole number of pages"));
        }
        self.left = self.left.checked_sub(len).ok_or_else(|| wrong("is longer than the list's total"))?;
        let first_page = self.blocks.last().map_or(0, |block| block.page_range().end);
        self.blocks.push(Block { id: id.to_owned(), len, page_size, gpa, first_page });
        Ok(Some(()))
    }

    /// The next record of a section's body, `at` from the stream's start.
    pub(super) fn record<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        at: u64,
    ) -> Result<Option<Record<'a>>, StreamError> {
        let Some(head) = cursor.u64() else { return Ok(None) };
        let (address, flags) = (head & !FLAGS, head & FLAGS);
        match flags & !FLAG_CONTINUE {
            FLAG_EOS if head == FLAG_EOS => return Ok(Some(Record::EndOfSection)),
            FLAG_MEM_SIZE if flags == FLAG_MEM_SIZE => {
                return self.open(address).map(|()| Some(Record::MemSize));
            }
            FLAG_PAGE | FLAG_ZERO => {}
            _ => return Err(StreamError::Flags { flags, at }),
        }
        let index = if flags & FLAG_CONTINUE != 0 {
            self.last.ok_or(StreamError::Damaged { what: "first page record", at })?
        } else {
            let Some(id) = cursor.counted() else { return Ok(None) };
            let known = self.blocks.iter().position(|block| block.id.as_bytes() == id);
            known.ok_or_else(|| StreamError::Block { id: lossy(id), what: "is not in the list of blocks" })?
        };
        let block = &self.blocks[index];
        if address >= block.len {
            return Err(StreamError::Block {
                id: block.id.clone(),
                what: "has no page at a record's address",
            });
        }
        let within = u32::try_from(address / PAGE_BYTES).expect("below the block's number of pages");
        let page = block.first_page + within;
        let record = if flags & FLAG_ZERO != 0 {
            match cursor.u8() {
                None => return Ok(None),
                Some(0) => Record::Zero(page),
                Some(_) => return Err(StreamError::Damaged { what: "zero page", at }),
            }
        } else {
            let Some(bytes) = cursor.array() else { return Ok(None) };
            Record::Page(page, bytes)
        };
        self.last = Some(index);
        Ok(Some(record))
    }

    fn open(&mut self, total: u64) -> Result<(), StreamError> {
        let max = u64::from(u32::MAX) * PAGE_BYTES;
        if total > max {
            return Err(StreamError::TooLarge { what: "bytes of RAM", max });
        }
        self.left = total;
        self.blocks.clear();
        Ok(())
    }
}
