//! The image while it is written.

use super::super::error::QemuError;
use super::super::stream::{Block, PAGE_BYTES};
use nix::fcntl::{FallocateFlags, fallocate};
use pages::Bitmap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// As file offsets are counted.
const PAGE_BYTES_I: i64 = 4096;
/// Pages that are gathered before they are written together.
const RUN_PAGES: usize = 64;

/// A new image file: sparse, the RAM blocks behind each other. Pages are written in the order they come; a later one
/// replaces an earlier one.
#[derive(Debug)]
pub struct RamFile {
    file: File,
    path: PathBuf,
    /// Pages that were written with bytes, so a zero page must replace them.
    written: Bitmap,
    /// Neighbouring pages, not yet written.
    run: Vec<u8>,
    run_first: u32,
}

impl RamFile {
    /// Over an empty file, whose path is for errors.
    #[must_use]
    pub fn new(file: File, path: &Path) -> Self {
        Self { file, path: path.to_owned(), written: Bitmap::new(0), run: Vec::new(), run_first: 0 }
    }

    /// Gives it the length of these blocks.
    ///
    /// # Errors
    ///
    /// [`QemuError::Io`].
    pub fn set_blocks(&mut self, blocks: &[Block]) -> Result<(), QemuError> {
        let pages = blocks.last().map_or(0, |block| block.page_range().end);
        self.written = Bitmap::new(pages);
        self.file.set_len(u64::from(pages) * PAGE_BYTES).map_err(QemuError::io("size", &self.path))
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes a page.
    ///
    /// # Errors
    ///
    /// [`QemuError::Io`], as when the file system is full.
    ///
    /// # Panics
    ///
    /// If the blocks have no such page.
    pub fn page(&mut self, page: u32, bytes: &[u8; 4096]) -> Result<(), QemuError> {
        let gathered = self.run.len() / bytes.len();
        if gathered == RUN_PAGES || gathered > 0 && self.run_first as usize + gathered != page as usize {
            self.flush()?;
        }
        if self.run.is_empty() {
            self.run_first = page;
        }
        self.run.extend_from_slice(bytes);
        self.written.set(page);
        Ok(())
    }

    /// Makes a page zero.
    ///
    /// # Errors
    ///
    /// [`QemuError::Io`].
    pub fn zero(&mut self, page: u32) -> Result<(), QemuError> {
        // A page that was never written is a hole.
        if self.written.get(page) { self.page(page, &[0; 4096]) } else { Ok(()) }
    }

    /// Writes what is gathered.
    ///
    /// # Errors
    ///
    /// [`QemuError::Io`].
    pub fn flush(&mut self) -> Result<(), QemuError> {
        let at = u64::from(self.run_first) * PAGE_BYTES;
        let outcome: io::Result<()> = self.file.write_all_at(&self.run, at);
        self.run.clear();
        outcome.map_err(QemuError::io("write", &self.path))
    }

    /// Takes pages away, so that they read as zeros.
    ///
    /// # Errors
    ///
    /// [`QemuError::Io`].
    pub fn clear(&mut self, pages: Range<u32>) -> Result<(), QemuError> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (at, len) = (i64::from(pages.start), i64::from(pages.end - pages.start));
        fallocate(&self.file, flags, at * PAGE_BYTES_I, len * PAGE_BYTES_I)
            .map_err(|error| QemuError::io("clear pages of", &self.path)(error.into()))
    }

    /// The file, once everything is flushed.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}
