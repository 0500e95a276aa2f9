//! Holes of sparse files, asked from the file system.
//!
//! Reading a hole through a mapping would fill the page cache with pages of zeros: for a mostly empty VM
//! that is most of its memory, once more; on a tmpfs those pages become the file's.
//!
//! So files are asked about to their ends, in however many extents they are: a bit a page is kept, whatever
//! the answers, and the two calls an extent took 0.6 µs on a tmpfs.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use pages::{Bitmap, PAGE_SIZE};
use std::fs::File;

/// The pages that lie in holes whole, or `None` if there are none or the file system does not tell.
pub(super) fn pages_in_holes(file: &File, file_len: u64, page_count: u32) -> Option<Bitmap> {
    let mut holes: Option<Bitmap> = None;
    let end = i64::try_from(file_len).ok()?;
    let mut at = 0;
    while let Ok(hole) = lseek64(file, at, Whence::SeekHole) {
        if hole >= end {
            break;
        }
        let data = match lseek64(file, hole, Whence::SeekData) {
            Ok(data) => data.min(end),
            // No data from here to the end.
            Err(Errno::ENXIO) => end,
            Err(_) => break,
        };
        // A file that changes, or a file system that lies, is no reason to ask for ever.
        if data <= at {
            break;
        }
        let first = page_at_or_after(hole);
        // A last partial page that is a hole to the end of the file is a hole whole.
        let last = if data == end { Some(page_count) } else { page_before(data) };
        if let (Some(first), Some(last)) = (first, last)
            && first < last
        {
            holes.get_or_insert_with(|| Bitmap::new(page_count)).set_range(first..last);
        }
        at = data;
        if at >= end {
            break;
        }
    }
    holes
}

const PAGE: i64 = PAGE_SIZE as i64;

fn page_at_or_after(offset: i64) -> Option<u32> {
    u32::try_from((offset + PAGE - 1) / PAGE).ok()
}

fn page_before(offset: i64) -> Option<u32> {
    u32::try_from(offset / PAGE).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    fn sparse(pieces: &[(u64, usize)], len: u64) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        for (offset, count) in pieces {
            file.seek(SeekFrom::Start(*offset)).unwrap();
            file.write_all(&vec![7; *count]).unwrap();
        }
        file
    }

    #[test]
    fn no_page_with_data_is_taken_for_a_hole() {
        // File systems may report less, in units of their own; what they report must be right.
        let len = 64 * 4096 + 100;
        let pieces = [(5 * 4096 + 17, 1), (20 * 4096 - 1, 2), (40 * 4096, 3 * 4096), (64 * 4096 + 99, 1)];
        let holes = pages_in_holes(&sparse(&pieces, len), len, 65);
        for page in [5, 19, 20, 40, 41, 42, 64] {
            assert!(!holes.as_ref().is_some_and(|holes| holes.get(page)), "page {page} holds data");
        }
    }

    #[test]
    fn a_file_of_one_hole_is_a_hole_to_its_partial_end() {
        let len = 1 << 20 | 5;
        let file = sparse(&[], len);
        match pages_in_holes(&file, len, 257) {
            Some(holes) => assert_eq!(holes.count(), 257),
            None => eprintln!("skipped: the file system of the temporary directory reports no holes"),
        }
    }

    #[test]
    fn a_file_in_many_extents_is_known_to_its_end() {
        use std::os::unix::fs::FileExt;
        // On a tmpfs, whose holes must not be read.
        let file: File =
            nix::sys::memfd::memfd_create(c"holes", nix::sys::memfd::MFdFlags::empty()).unwrap().into();
        let extents = 5_000;
        file.set_len(2 * extents * 4096).unwrap();
        for extent in 0..extents {
            file.write_all_at(&[7], 2 * extent * 4096).unwrap();
        }
        let pages = u32::try_from(2 * extents).unwrap();
        let holes = pages_in_holes(&file, 2 * extents * 4096, pages).unwrap();
        assert!((0..pages).all(|page| holes.get(page) == (page % 2 == 1)));
    }

    #[test]
    fn a_dense_file_has_no_holes() {
        let len = 8 * 4096;
        assert_eq!(pages_in_holes(&sparse(&[(0, 8 * 4096)], len), len, 8), None);
    }
}
