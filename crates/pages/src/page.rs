//! Names for pages and where they come from.

use serde::{Deserialize, Serialize};

/// Bytes in a page. Larger pages of a guest are sequences of these.
pub const PAGE_SIZE: usize = 4096;

/// The bytes of one page.
pub type Page = [u8; PAGE_SIZE];

/// A VM's index within one transfer, counted from 0.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(pub u16);

/// Page number within one VM's image: offset in the image file / [`PAGE_SIZE`].
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pfn(pub u32);

/// `count` consecutive pages of one VM that all hold the same 64-bit word, repeated.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct UniformRun {
    /// The first page of the run.
    pub first: Pfn,
    /// Number of pages, at least 1; `first + count` does not overflow.
    pub count: u32,
    /// The word, read as little-endian; 0 is a zero page.
    pub word: u64,
}

/// The pages of one VM's image, readable from several threads.
///
/// A page may be asked for more than once; an implementation returns the same bytes each time for as long
/// as an index built from it is in use.
pub trait PageSource: Send + Sync {
    /// Number of pages in the image. A last partial page counts and reads zero-filled.
    fn page_count(&self) -> u32;

    /// The bytes of a page.
    ///
    /// # Panics
    ///
    /// May panic unless `pfn` is below [`page_count`](Self::page_count).
    fn page(&self, pfn: Pfn) -> &Page;
}

/// An image held in memory; page numbers are indices.
impl PageSource for Vec<Page> {
    fn page_count(&self) -> u32 {
        u32::try_from(self.len()).expect("an image has fewer than 2^32 pages")
    }

    fn page(&self, pfn: Pfn) -> &Page {
        &self[pfn.0 as usize]
    }
}
