//! Image files: a VM's memory as a file, mapped and read page by page.
//!
//! A *page* of an image is a page of the **file**, whatever the format: page number = file offset / 4096.
//! RAM blocks are described on top ([`RamBlock`]). So a file that is rebuilt from its pages is
//! byte-identical to its source, headers, bitmaps, device state and stale bytes included, and no format
//! needs a writer. Where a format keeps guest pages at multiples of 4 KiB in the file (all of these do),
//! equal guest pages are equal file pages.
//!
//! [`MappedImage`] never writes and never reads the file whole. docs/images.md has the formats and traps.

mod error;
mod firecracker;
mod holes;
pub mod mapped_ram;
mod pieces;
mod raw;

pub use error::{Change, ImageError};
pub use mapped_ram::MappedRamError;
pub use pieces::Piece;
pub use raw::BLOCK_ID;

use memmap2::{Advice, Mmap};
use pages::{Bitmap, PAGE_SIZE, Page, PageSource, Pfn};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const PAGE_BYTES: u64 = PAGE_SIZE as u64;
/// What libvirt writes at the front of a saved image until it is complete (`qemu_saveimage.h`).
const LIBVIRT_UNFINISHED: &[u8] = b"LibvirtQemudPart";
static ZERO_PAGE: Page = [0; PAGE_SIZE];

/// How a file holds a VM's memory.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ImageFormat {
    /// Bytes of memory from the first to the last; nothing is checked.
    Raw,
    /// QEMU's migration stream in a file with capability `mapped-ram` (QEMU 9.0 or newer).
    QemuMappedRam,
    /// Firecracker's memory file: raw, whole pages.
    Firecracker,
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::QemuMappedRam => "qemu-mapped-ram",
            Self::Firecracker => "firecracker",
        })
    }
}

/// A piece of the guest's memory and where its pages stand in the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RamBlock {
    /// The hypervisor's name for it, as `pc.ram`; [`BLOCK_ID`] where the format has none.
    pub id: String,
    /// Where its first page stands in the file, in bytes; a multiple of 4096.
    pub file_offset: u64,
    /// In bytes; the whole block is within the file.
    pub len: u64,
    /// Bytes in a page of the format, 4096.
    pub page_size: u64,
    /// Guest physical address of the first byte, where the format tells.
    pub gpa: Option<u64>,
}

/// What a file says about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ImageInfo {
    /// As detected or as told.
    pub format: ImageFormat,
    /// Bytes in the file.
    pub file_len: u64,
    /// In the order of the file; disjoint.
    pub blocks: Vec<RamBlock>,
    /// What must be equal for one hypervisor to load both of two images: format, machine type, names and
    /// lengths of the blocks (mapped-ram), or format and length. Compared as a whole; for people to read.
    pub fingerprint: String,
}

/// What a format's module finds in a file.
struct Contents {
    blocks: Vec<RamBlock>,
    present_pages: Option<u64>,
    fingerprint: String,
}

/// Which file this is and which state it is in.
#[derive(Copy, Clone, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    fn change_to(&self, now: &Self) -> Option<Change> {
        self.other_than(now).or_else(|| (self.modified != now.modified).then_some(Change::Modified))
    }

    /// The same, but when it was modified does not matter.
    fn other_than(&self, now: &Self) -> Option<Change> {
        if (self.device, self.inode) != (now.device, now.inode) {
            Some(Change::Replaced)
        } else {
            (self.len != now.len).then_some(Change::Resized)
        }
    }
}

/// An image file, mapped read-only.
///
/// Its pages are read where they lie. Holes of a sparse file are known from the file system and read as
/// zeros without touching the file.
///
/// The file must stay as it is while this value lives. A file that is written to meanwhile gives a mixture
/// of old and new: call [`check_unchanged`](Self::check_unchanged) after the last read and treat its error
/// as the failure of all that was read. A file that is *truncated* meanwhile kills the process (SIGBUS on
/// the next read beyond its end); nothing here can prevent that.
pub struct MappedImage {
    path: PathBuf,
    file: File,
    map: Mmap,
    /// Pages that lie in other files.
    pieces: Vec<pieces::MappedPiece>,
    /// A copy of the last page, zero-filled, if the file ends within a page.
    last: Option<Box<Page>>,
    /// The pages in holes; `None` if there are none.
    holes: Option<Bitmap>,
    page_count: u32,
    info: ImageInfo,
    present_pages: Option<u64>,
    state: FileState,
}

impl MappedImage {
    /// Maps the file and checks its headers. With `format` `None`, a file that begins with QEMU's magic
    /// "QEVM" is taken as mapped-ram, each other one as raw.
    ///
    /// # Errors
    ///
    /// [`ImageError`]; any damage to a mapped-ram file's header, block list or bitmaps is one.
    pub fn open(path: impl AsRef<Path>, format: Option<ImageFormat>) -> Result<Self, ImageError> {
        let path = path.as_ref();
        let io = |action| move |source| ImageError::Io { path: path.to_owned(), action, source };
        // Opening a pipe would wait for a writer, so its kind is looked at first.
        if !std::fs::metadata(path).map_err(io("open"))?.is_file() {
            return Err(ImageError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(io("open"))?;
        let state = FileState::of(&file.metadata().map_err(io("inspect"))?);
        if state.len == 0 {
            return Err(ImageError::Empty { path: path.to_owned() });
        }
        let too_large = || ImageError::TooLarge { path: path.to_owned(), len: state.len };
        let page_count = u32::try_from(state.len.div_ceil(PAGE_BYTES)).map_err(|_| too_large())?;
        let len = usize::try_from(state.len).map_err(|_| too_large())?;
        // SAFETY: the mapping is private to this value, read-only, and as long as the file was a moment
        // ago. That nothing changes or truncates the file while it is mapped cannot be enforced on Linux;
        // it is the documented duty of the caller, and `check_unchanged` detects a breach of it.
        let map = unsafe { memmap2::MmapOptions::new().len(len).map(&file) }.map_err(io("map"))?;
        let format = match format {
            Some(format) => format,
            None => detect(path, &map)?,
        };
        let Contents { blocks, present_pages, fingerprint } = match format {
            ImageFormat::Raw => raw::contents(state.len),
            ImageFormat::Firecracker => firecracker::contents(path, &map)?,
            ImageFormat::QemuMappedRam => mapped_ram::contents(&map)
                .map_err(|source| ImageError::MappedRam { path: path.to_owned(), source })?,
        };
        let image = Self {
            last: last_partial_page(&map),
            holes: holes::pages_in_holes(&file, state.len, page_count),
            info: ImageInfo { format, file_len: state.len, blocks, fingerprint },
            path: path.to_owned(),
            file,
            map,
            pieces: Vec::new(),
            page_count,
            present_pages,
            state,
        };
        image.check_unchanged()?;
        Ok(image)
    }

    /// What the file says about itself.
    #[must_use]
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many of the guest's pages the format itself marks as present (not zero): the set bits of a
    /// mapped-ram file's bitmaps; `None` for formats without.
    ///
    /// An estimate for plans, no permission to skip pages: under a clear bit the file may still hold the
    /// bytes that the page had before the guest cleared it, and they are carried like all others.
    #[must_use]
    pub fn present_pages(&self) -> Option<u64> {
        self.present_pages
    }

    /// Number of pages in holes of a sparse file, which read as zeros without touching the file.
    #[must_use]
    pub fn hole_pages(&self) -> u32 {
        self.holes.as_ref().map_or(0, Bitmap::count)
    }

    /// Asks the system to start reading these pages from the disk (`MADV_WILLNEED`). Advice only:
    /// failures and pages beyond the end are ignored.
    pub fn prefetch(&self, pages: Range<u32>) {
        let range = byte_range(pages.start, pages.end.min(self.page_count));
        let end = range.end.min(self.map.len());
        if range.start < end {
            // No result is needed: pages that are not read ahead are read when they are touched.
            let _ = self.map.advise_range(Advice::WillNeed, range.start, end - range.start);
        }
    }

    /// Checks that the file is still the one that was opened, with the same length and time of
    /// modification. To be called after the last page was read, before what was read is vouched for.
    /// Of [pieces](Self::with_pieces) the time does not matter, and their names may be gone.
    ///
    /// A writer with a shared mapping (a running QEMU on a `memory-backend-file`) changes the time only
    /// now and then, so this is no proof against one: stop the guest first.
    ///
    /// # Errors
    ///
    /// [`ImageError::Changed`], or [`ImageError::Io`] if the file cannot be inspected.
    pub fn check_unchanged(&self) -> Result<(), ImageError> {
        let changed = |change| Err(ImageError::Changed { path: self.path.clone(), change });
        let inspect = |source| ImageError::Io { path: self.path.clone(), action: "inspect", source };
        let open = FileState::of(&self.file.metadata().map_err(inspect)?);
        let named = match std::fs::metadata(&self.path) {
            Ok(metadata) => FileState::of(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return changed(Change::Removed),
            Err(error) => return Err(inspect(error)),
        };
        match self.state.change_to(&open).or_else(|| self.state.change_to(&named)) {
            Some(change) => changed(change),
            None => self.pieces.iter().try_for_each(pieces::MappedPiece::check_unchanged),
        }
    }
}

impl PageSource for MappedImage {
    fn page_count(&self) -> u32 {
        self.page_count
    }

    fn page(&self, pfn: Pfn) -> &Page {
        if self.holes.as_ref().is_some_and(|holes| holes.get(pfn.0)) {
            return &ZERO_PAGE;
        }
        if let Some(page) = self.pieces.iter().find_map(|piece| piece.page(pfn.0)) {
            return page;
        }
        let whole = self.map.get(byte_range(pfn.0, pfn.0 + 1)).and_then(<[u8]>::first_chunk);
        match (whole, &self.last) {
            (Some(page), _) => page,
            (None, Some(last)) if pfn.0 + 1 == self.page_count => last,
            _ => panic!("page {} of an image of {} pages", pfn.0, self.page_count),
        }
    }
}

impl std::fmt::Debug for MappedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappedImage")
            .field("path", &self.path)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

fn detect(path: &Path, file: &[u8]) -> Result<ImageFormat, ImageError> {
    if file.starts_with(LIBVIRT_UNFINISHED) {
        return Err(ImageError::LibvirtUnfinished { path: path.to_owned() });
    }
    Ok(if file.starts_with(mapped_ram::MAGIC) { ImageFormat::QemuMappedRam } else { ImageFormat::Raw })
}

/// The bytes of pages `first..end` of a file.
fn byte_range(first: u32, end: u32) -> Range<usize> {
    first as usize * PAGE_SIZE..end as usize * PAGE_SIZE
}

fn last_partial_page(file: &[u8]) -> Option<Box<Page>> {
    let (_, rest) = file.as_chunks::<PAGE_SIZE>();
    (!rest.is_empty()).then(|| {
        let mut page = Box::new([0; PAGE_SIZE]);
        page[..rest.len()].copy_from_slice(rest);
        page
    })
}
