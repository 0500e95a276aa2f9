//! Why an image refuses.

use super::LazyImage;
use std::io;
use std::path::PathBuf;

/// Why a page cannot be placed, or an image not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LazyError {
    /// The file is on a disk: pages of it cannot be shared with guests as memory.
    #[error(
        "{path} is not on a tmpfs: give a store on one (as /dev/shm), or let the memory stand beside the store"
    )]
    NotSharedMemory {
        /// The file.
        path: PathBuf,
    },
    /// Memory is whole pages, at least one and less than 2^32.
    #[error("a VM's memory of {len} bytes is not a whole number of pages of 4096, from 1 to 2^32 - 1")]
    Length {
        /// Bytes.
        len: u64,
    },
    /// The range is not within the image.
    #[error("pages {first} to {end} of an image of {page_count}")]
    OutOfRange {
        /// First page.
        first: u32,
        /// One past the last.
        end: u64,
        /// Pages of the image.
        page_count: u32,
    },
    /// A page that is here already has other bytes than those now brought.
    #[error(
        "page {page} came twice, with different bytes: the source changed while it was read, or one source is wrong"
    )]
    Differs {
        /// The first such page.
        page: u32,
    },
    /// The system refused: no memory left, usually.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// More listeners than [`LazyImage::LISTENERS_MAX`].
    #[error("{0} listeners on one image: at most {max}", max = LazyImage::LISTENERS_MAX)]
    Listeners(usize),
}
