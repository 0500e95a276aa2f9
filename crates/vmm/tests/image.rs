//! Image files as files: a golden header from a real QEMU, mappings, holes, and files that change in use.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pages::{PAGE_SIZE, PageSource, Pfn};
use std::error::Error as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use vmm::image::{BLOCK_ID, Change, MappedRamError};
use vmm::{ImageError, ImageFormat, MappedImage};

fn file_with(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Different bytes in each page.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i / PAGE_SIZE * 7 + i * 13) % 251).unwrap()).collect()
}

fn read_back(image: &MappedImage) -> Vec<u8> {
    (0..image.page_count()).flat_map(|pfn| *image.page(Pfn(pfn))).collect()
}

/// Writes the file that tests/data/make-golden.sh has taken apart; its pages are holes.
fn golden(dir: &TempDir) -> PathBuf {
    let data = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mapped-ram-microvm.extents"))
        .unwrap();
    let path = dir.path().join("golden.mapped-ram");
    let file = File::create(&path).unwrap();
    let (len, mut rest) = data.split_first_chunk().unwrap();
    file.set_len(u64::from_le_bytes(*len)).unwrap();
    while let Some((offset, after)) = rest.split_first_chunk() {
        let (len, after) = after.split_first_chunk().unwrap();
        let (bytes, after) = after.split_at(u32::from_le_bytes(*len) as usize);
        file.write_all_at(bytes, u64::from_le_bytes(*offset)).unwrap();
        rest = after;
    }
    path
}

#[test]
fn a_file_written_by_qemu_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let path = golden(&dir);
    let image = MappedImage::open(&path, None).unwrap();
    let info = image.info();
    assert_eq!(info.format, ImageFormat::QemuMappedRam);
    assert_eq!(info.fingerprint, "qemu-mapped-ram;machine=microvm;microvm.ram=4194304;pc.bios=65536");
    let blocks: Vec<_> =
        info.blocks.iter().map(|b| (b.id.as_str(), b.file_offset, b.len, b.page_size)).collect();
    assert_eq!(blocks, [("microvm.ram", 0x10_0000, 4 << 20, 4096), ("pc.bios", 0x60_0000, 65536, 4096)]);
    // Seven pages of firmware; the machine never ran.
    assert_eq!(image.present_pages(), Some(7));
    assert!(image.hole_pages() > 1000 || image.hole_pages() == 0);
    // Whatever the format, the pages are the file's.
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(image.page_count() as usize * PAGE_SIZE, 0);
    assert!(read_back(&image) == bytes);
    image.check_unchanged().unwrap();
}

#[test]
fn a_format_that_was_told_is_not_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let path = golden(&dir);
    let raw = MappedImage::open(&path, Some(ImageFormat::Raw)).unwrap();
    assert_eq!((raw.info().format, raw.present_pages()), (ImageFormat::Raw, None));
    let path = file_with(&dir, "raw", &pattern(2 * PAGE_SIZE));
    let error = MappedImage::open(path, Some(ImageFormat::QemuMappedRam)).unwrap_err();
    let source = error.source().unwrap().downcast_ref::<MappedRamError>().unwrap();
    assert_eq!(source, &MappedRamError::NotAStream);
}

#[test]
fn the_last_partial_page_reads_zero_filled() {
    let dir = tempfile::tempdir().unwrap();
    for len in [1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 5 * PAGE_SIZE + 77] {
        let bytes = pattern(len);
        let image = MappedImage::open(file_with(&dir, "raw", &bytes), None).unwrap();
        assert_eq!(image.page_count() as usize, len.div_ceil(PAGE_SIZE));
        let read = read_back(&image);
        assert!(read[..len] == bytes && read[len..].iter().all(|byte| *byte == 0));
        let block = &image.info().blocks[0];
        assert_eq!((block.id.as_str(), block.file_offset, block.len), (BLOCK_ID, 0, len as u64));
        assert_eq!(image.info().file_len, len as u64);
    }
}

#[test]
fn holes_read_as_zeros_and_data_beside_them_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = File::create(&path).unwrap();
    let len = 300 * PAGE_SIZE + 9;
    file.set_len(len as u64).unwrap();
    let pieces =
        [(3 * PAGE_SIZE + 5, 10), (100 * PAGE_SIZE, PAGE_SIZE), (200 * PAGE_SIZE - 3, 6), (len - 1, 1)];
    for (offset, count) in pieces {
        file.write_all_at(&vec![0xab; count], offset as u64).unwrap();
    }
    let image = MappedImage::open(&path, None).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(301 * PAGE_SIZE, 0);
    assert!(read_back(&image) == bytes);
    assert_eq!(bytes.iter().filter(|byte| **byte == 0xab).count(), 10 + PAGE_SIZE + 6 + 1);
}

#[test]
#[should_panic(expected = "page 2 of an image of 2 pages")]
fn a_page_beyond_the_end_is_a_broken_invariant() {
    let dir = tempfile::tempdir().unwrap();
    let image = MappedImage::open(file_with(&dir, "raw", &pattern(2 * PAGE_SIZE)), None).unwrap();
    image.page(Pfn(2));
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path, format| MappedImage::open(path, format).unwrap_err();
    assert!(matches!(open(dir.path(), None), ImageError::NotAFile { .. }));
    assert!(matches!(open(Path::new("/dev/zero"), None), ImageError::NotAFile { .. }));
    assert!(matches!(open(&dir.path().join("none"), None), ImageError::Io { action: "open", .. }));
    assert!(matches!(open(&file_with(&dir, "empty", b""), None), ImageError::Empty { .. }));
    let unfinished = file_with(&dir, "libvirt", b"LibvirtQemudPart\x02\0\0\0");
    assert!(matches!(open(&unfinished, None), ImageError::LibvirtUnfinished { .. }));
    let firecracker = Some(ImageFormat::Firecracker);
    let odd = file_with(&dir, "odd", &pattern(PAGE_SIZE + 8));
    assert!(matches!(open(&odd, firecracker), ImageError::PartialPage { len: 4104, .. }));
    let vmstate = file_with(&dir, "vmstate", &0x0710_1984_8664_0000_u64.to_le_bytes());
    assert!(matches!(open(&vmstate, firecracker), ImageError::FirecrackerVmstate { .. }));
    let stream = file_with(&dir, "stream", b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01");
    let error = open(&stream, None);
    assert_eq!(
        error.source().unwrap().to_string(),
        "a QEMU stream without capability mapped-ram (format raw carries it as mere bytes)"
    );
    // A file of a length that no page number can name; it has no blocks on the disk.
    let huge = dir.path().join("huge");
    if File::create(&huge).unwrap().set_len((1 << 44) + 1).is_ok() {
        assert!(matches!(open(&huge, None), ImageError::TooLarge { .. }));
    }
}

fn change_after(dir: &TempDir, change: impl FnOnce(&Path)) -> Change {
    let path = file_with(dir, "used", &pattern(4 * PAGE_SIZE));
    // The clock of a file system may be coarse: the change must be seen by more than its luck.
    let past = SystemTime::now() - Duration::from_secs(10);
    OpenOptions::new().write(true).open(&path).unwrap().set_modified(past).unwrap();
    let image = MappedImage::open(&path, Some(ImageFormat::Firecracker)).unwrap();
    image.check_unchanged().unwrap();
    change(&path);
    match image.check_unchanged().unwrap_err() {
        ImageError::Changed { path: of, change } if of == path => change,
        other => panic!("{other}"),
    }
}

#[test]
fn a_file_that_changed_in_use_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &Path| OpenOptions::new().write(true).open(path).unwrap();
    assert_eq!(change_after(&dir, |path| write(path).write_all(b"new").unwrap()), Change::Modified);
    assert_eq!(change_after(&dir, |path| write(path).set_len(9 << 12).unwrap()), Change::Resized);
    assert_eq!(change_after(&dir, |path| write(path).set_len(1).unwrap()), Change::Resized);
    assert_eq!(change_after(&dir, |path| fs::remove_file(path).unwrap()), Change::Removed);
    let replace = |path: &Path| {
        let other = file_with(&dir, "other", &pattern(4 * PAGE_SIZE));
        fs::rename(other, path).unwrap();
    };
    assert_eq!(change_after(&dir, replace), Change::Replaced);
}

#[test]
fn reading_does_not_count_as_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_with(&dir, "raw", &pattern(64 * PAGE_SIZE));
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let image = MappedImage::open(&path, None).unwrap();
    image.prefetch(0..u32::MAX);
    image.prefetch(std::ops::Range { start: 70, end: 60 });
    assert_eq!(read_back(&image).len(), 64 * PAGE_SIZE);
    image.check_unchanged().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
}

/// Images of real guests, if examples/guests/make-guests.sh has made them.
#[test]
fn real_guests_are_the_same_memory_in_each_format() {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    let guests = target.join("guests/small");
    if !guests.join("guests.json").exists() {
        eprintln!("skipped: no images in {} (examples/guests/make-guests.sh makes them)", guests.display());
        return;
    }
    let open = |name: &str, format| MappedImage::open(guests.join(name), format).unwrap();
    let raw = open("g01-idle.raw", None);
    let firecracker = open("g01-idle.firecracker", Some(ImageFormat::Firecracker));
    let mapped = open("g01-idle.mapped-ram", None);
    assert_eq!(mapped.info().format, ImageFormat::QemuMappedRam);
    let ram = mapped.info().blocks.iter().find(|block| block.id == "pc.ram").unwrap();
    assert_eq!(ram.len, raw.info().file_len);
    let first = u32::try_from(ram.file_offset / ram.page_size).unwrap();
    let mut present = 0;
    for pfn in 0..raw.page_count() {
        let page = raw.page(Pfn(pfn));
        assert!(page == mapped.page(Pfn(first + pfn)) && page == firecracker.page(Pfn(pfn)), "page {pfn}");
        present += u64::from(page != &[0; PAGE_SIZE]);
    }
    // The bitmaps mark the pages of the other blocks as well: firmware and tables.
    let marked = mapped.present_pages().unwrap();
    assert!(marked >= present && marked < present + 256, "{marked} pages marked, {present} in the RAM");
    for image in [raw, firecracker, mapped] {
        image.check_unchanged().unwrap();
    }
}
