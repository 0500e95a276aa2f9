//! Pages of an image that lie in files of their own: the memory of a VM that stands, read where its hypervisor has it.

use super::{FileState, ImageError, MappedImage, PAGE_BYTES, byte_range, holes};
use memmap2::{Mmap, MmapOptions};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use pages::{Bitmap, Page};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Pages of an image that lie in another file.
#[derive(Debug)]
pub struct Piece {
    /// That file.
    pub file: File,
    /// Its path, for errors.
    pub path: PathBuf,
    /// Where the first of the pages stands in it, in bytes; a multiple of 4096.
    pub offset: u64,
    /// Which pages of the image they are.
    pub pages: Range<u32>,
}

/// A piece that is mapped.
pub(super) struct MappedPiece {
    path: PathBuf,
    file: File,
    map: Mmap,
    pages: Range<u32>,
    state: FileState,
    /// Stores are dated when they are done, not when they are written.
    is_tmpfs: bool,
}

impl MappedPiece {
    fn new(piece: Piece) -> Result<(Self, Option<Bitmap>), ImageError> {
        let Piece { file, path, offset, pages } = piece;
        let io = |action| {
            let path = path.clone();
            move |source| ImageError::Io { path, action, source }
        };
        let state = FileState::of(&file.metadata().map_err(io("inspect"))?);
        let end = offset + u64::from(pages.end - pages.start) * PAGE_BYTES;
        if state.len < end || !offset.is_multiple_of(PAGE_BYTES) {
            let source = std::io::Error::other(format!("bytes {offset} to {end} of {}", state.len));
            return Err(io("map all of")(source));
        }
        let too_large = || ImageError::TooLarge { path: path.clone(), len: state.len };
        let file_pages = u32::try_from(state.len.div_ceil(PAGE_BYTES)).map_err(|_| too_large())?;
        let first = u32::try_from(offset / PAGE_BYTES).map_err(|_| too_large())?;
        let len = byte_range(pages.start, pages.end).len();
        // SAFETY: the mapping is private to this value, read-only, and within the file as long as that was a moment ago. Its
        // owner's hypervisor has it mapped, too, and may write: that it does not while this value is read is the documented duty of
        // the caller, who watches it (`qemu::capture::Standing`); `check_unchanged` detects a file that was made longer or shorter.
        let map = unsafe { MmapOptions::new().offset(offset).len(len).map(&file) }.map_err(io("map"))?;
        let mut own = None;
        if let Some(of_file) = holes::pages_in_holes(&file, state.len, file_pages) {
            let mut of_piece = Bitmap::new(pages.end - pages.start);
            for hole in of_file.iter_set_ranges() {
                let range = hole.start.max(first)..hole.end.min(first + of_piece.len());
                if range.start < range.end {
                    of_piece.set_range(range.start - first..range.end - first);
                }
            }
            own = Some(of_piece);
        }
        let is_tmpfs = fstatfs(&file).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC);
        Ok((Self { path, file, map, pages, state, is_tmpfs }, own))
    }

    pub(super) fn page(&self, number: u32) -> Option<&Page> {
        let at = number.checked_sub(self.pages.start)?;
        self.map.get(byte_range(at, at + 1))?.first_chunk()
    }

    /// The file may lose its name, as what is mapped stays; another one under that name is a sign that somebody works on it.
    ///
    /// When it was modified matters on a tmpfs only: on a disk, what its owner's stores did before he stood still may be written, and the
    /// time set, at any later moment. That he stands still is his watcher's word (`qemu::capture::Standing`).
    pub(super) fn check_unchanged(&self) -> Result<(), ImageError> {
        let inspect = |source| ImageError::Io { path: self.path.clone(), action: "inspect", source };
        let open = FileState::of(&self.file.metadata().map_err(inspect)?);
        let named = match std::fs::metadata(&self.path) {
            Ok(metadata) => Some(FileState::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(inspect(error)),
        };
        let changes = [Some(open), named].into_iter().flatten().find_map(|now| match self.is_tmpfs {
            true => self.state.change_to(&now),
            false => self.state.other_than(&now),
        });
        match changes {
            Some(change) => Err(ImageError::Changed { path: self.path.clone(), change }),
            None => Ok(()),
        }
    }
}

impl MappedImage {
    /// Lets pages be read from other files, where they lie; what this image's own file has in their place is not looked at.
    ///
    /// Such a file belongs to a hypervisor that has it mapped and writable. Whoever reads must make sure that its VM stands, and
    /// find out if it does not ([`crate::qemu::capture::Standing`]): times of modification do not tell. As with the image's own
    /// file, truncating it kills the process.
    ///
    /// # Errors
    ///
    /// [`ImageError`], if a file is too short or cannot be mapped.
    ///
    /// # Panics
    ///
    /// If the image has no such pages.
    pub fn with_pieces(mut self, pieces: Vec<Piece>) -> Result<Self, ImageError> {
        for piece in pieces {
            let pages = piece.pages.clone();
            assert!(pages.end <= self.page_count, "pages to {} of {}", pages.end, self.page_count);
            let (mapped, own) = MappedPiece::new(piece)?;
            let holes = self.holes.get_or_insert_with(|| Bitmap::new(self.page_count));
            for page in pages.clone() {
                let is_hole = own.as_ref().is_some_and(|own| own.get(page - pages.start));
                if is_hole {
                    holes.set(page)
                } else {
                    holes.unset(page)
                };
            }
            self.pieces.push(mapped);
        }
        Ok(self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::{Change, ImageFormat};
    use super::*;
    use pages::{PAGE_SIZE, PageSource, Pfn};
    use std::os::unix::fs::FileExt;

    fn file(bytes: &[(u64, u8)], pages: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(pages * PAGE_BYTES).unwrap();
        for (page, byte) in bytes {
            file.as_file().write_all_at(&[*byte; PAGE_SIZE], page * PAGE_BYTES).unwrap();
        }
        file
    }

    fn piece(of: &tempfile::NamedTempFile, offset: u64, pages: Range<u32>) -> Piece {
        Piece { file: of.reopen().unwrap(), path: of.path().to_owned(), offset, pages }
    }

    #[test]
    fn pages_are_read_where_they_lie() {
        let own = file(&[(0, 1), (3, 9), (9, 2)], 10);
        let other = file(&[(2, 3), (4, 4)], 8);
        let image = MappedImage::open(own.path(), Some(ImageFormat::Raw)).unwrap();
        let image = image.with_pieces(vec![piece(&other, 2 * PAGE_BYTES, 3..8)]).unwrap();
        assert_eq!(image.page_count(), 10);
        let first_bytes: Vec<u8> = (0..10).map(|page| image.page(Pfn(page))[0]).collect();
        // What the own file has there is not looked at, and a hole of the own file is none of the other's.
        assert_eq!(first_bytes, [1, 0, 0, 3, 0, 4, 0, 0, 0, 2]);
        image.check_unchanged().unwrap();
        // What its owner did before may be dated later.
        let path = other.path().to_owned();
        let kept = other.reopen().unwrap();
        kept.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(9)).unwrap();
        image.check_unchanged().unwrap();
        // Its name may go, but not be another's; its length may not change.
        drop(other);
        assert!(!path.exists());
        image.check_unchanged().unwrap();
        let changed = |to: Change| {
            let error = image.check_unchanged().unwrap_err();
            assert!(matches!(error, ImageError::Changed { change, .. } if change == to), "{error}");
        };
        File::create(&path).unwrap().set_len(8 * PAGE_BYTES).unwrap();
        changed(Change::Replaced);
        std::fs::remove_file(&path).unwrap();
        image.check_unchanged().unwrap();
        kept.set_len(64 * PAGE_BYTES).unwrap();
        changed(Change::Resized);
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let (own, other) = (file(&[], 10), file(&[], 4));
        let open = || MappedImage::open(own.path(), Some(ImageFormat::Raw)).unwrap();
        assert!(open().with_pieces(vec![piece(&other, 0, 0..4)]).is_ok());
        for (offset, pages) in [(0, 0..5), (PAGE_BYTES, 0..4), (1, 0..2)] {
            let error = open().with_pieces(vec![piece(&other, offset, pages)]).unwrap_err();
            assert!(error.to_string().contains("cannot map all of the image"), "{error}");
        }
    }
}
