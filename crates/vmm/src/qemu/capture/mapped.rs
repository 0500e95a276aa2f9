//! Letting QEMU write the image, with capability `mapped-ram`.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use super::super::state::Fingerprint;
use super::super::stream::{Block, BlockPlan, PAGE_BYTES, Parser, RamWriter, without_capabilities};
use super::driver::{self, Clock};
use super::live::{Sink, Taken};
use super::ram_file::RamFile;
use super::{CaptureOptions, settings};
use crate::image::{ImageError, ImageFormat, mapped_ram};
use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// The file's set of descriptors in QEMU; free, as QEMU's own count from 0.
const FDSET: u64 = 0x5ca7;

/// Waits until QEMU has written the image. Afterwards the source is stopped, in state `postmigrate`.
pub(super) fn take(
    qmp: &mut Qmp,
    options: &CaptureOptions<'_>,
    file: &File,
    fingerprint: &Fingerprint,
) -> Result<Taken, QemuError> {
    settings::prepare(qmp, &["mapped-ram"])?;
    // QEMU takes a descriptor of a set only for the kind of access it wants.
    let writing = File::options().write(true).open(options.image);
    let writing = writing.map_err(QemuError::io("open", options.image))?;
    qmp.with_fd(&writing, "add-fd", json!({"fdset-id": FDSET}))?;
    let outcome = run(qmp, options);
    // Whatever came of it: QEMU keeps no descriptor of ours.
    let removed = qmp.execute("remove-fd", json!({"fdset-id": FDSET}));
    outcome?;
    removed?;
    read(file, options.image, fingerprint)
}

fn run(qmp: &mut Qmp, options: &CaptureOptions<'_>) -> Result<(), QemuError> {
    qmp.take_events();
    let mut clock = Clock::start(options);
    qmp.execute("migrate", json!({"uri": format!("file:/dev/fdset/{FDSET}")}))?;
    loop {
        let status = qmp.execute("query-migrate", Value::Null)?["status"].take();
        if !matches!(status.as_str(), Some("setup" | "active" | "device" | "none")) {
            return driver::completed(qmp);
        }
        clock.check(qmp, options.cancel)?;
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads everything but the pages.
fn read(file: &File, path: &Path, fingerprint: &Fingerprint) -> Result<Taken, QemuError> {
    let failed = |source| QemuError::refused(format!("{path}: {source}", path = path.display()));
    // SAFETY: QEMU has closed the file, which nobody else knows yet; it stays as it is while it is mapped here.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(QemuError::io("map", path))?;
    let layout = mapped_ram::parse(&map)
        .map_err(|source| failed(ImageError::MappedRam { path: path.to_owned(), source }.to_string()))?;
    let ram = b"\x03ram\0\0\0\0\0\0\0\x04";
    let at = map.windows(ram.len()).position(|bytes| bytes == ram).filter(|at| *at >= 5);
    let at = at.ok_or_else(|| failed("it has no RAM section".to_owned()))?;
    let section = u32::from_be_bytes(map[at - 4..at].try_into().expect("four bytes"));

    let mut next = 0;
    let packed: Vec<Block> = layout
        .blocks
        .iter()
        .map(|block| {
            let first_page = next;
            next += u32::try_from(block.len / PAGE_BYTES).expect("the file has fewer pages");
            Block { id: block.id.clone(), len: block.len, page_size: PAGE_BYTES, gpa: None, first_page }
        })
        .collect();
    // What follows the list of blocks is an ordinary stream again, and is read as one.
    let mut stream = without_capabilities(&map[..at - 5]);
    RamWriter::new(section, &packed).start(&mut stream, &BlockPlan::default(), false);
    let tail_offset = usize::try_from(layout.tail_offset).expect("within the mapping");
    stream.extend_from_slice(&map[tail_offset..]);
    // It has no pages, so what takes them stays empty.
    let scratch = tempfile::tempfile().map_err(QemuError::io("make a scratch file for", path))?;
    let mut sink = Sink::new(RamFile::new(scratch, path), fingerprint);
    let mut parser = Parser::new(BlockPlan::default());
    let used = parser.feed(&stream, |event| sink.event(event))?;
    if !parser.in_tail() || used != stream.len() {
        return Err(parser.cut_off().into());
    }
    let (mut state, _, mut figures) = sink.finish()?;
    for (block, layout) in state.blocks.iter_mut().zip(&layout.blocks) {
        block.first_page =
            u32::try_from(layout.pages_offset / PAGE_BYTES).map_err(|_| failed("it is too large".into()))?;
        figures.pages += layout.present_pages;
        figures.zero_pages += u64::from(block.pages()) - layout.present_pages;
        clear_absent(file, path, &map, layout)?;
    }
    figures.stream_bytes = map.len() as u64;
    Ok((state, ImageFormat::QemuMappedRam, figures))
}

/// A page that became zero while the VM ran has a clear bit, and its old bytes in the file. With holes in their place
/// the file's pages are the VM's.
fn clear_absent(file: &File, path: &Path, map: &[u8], block: &mapped_ram::Block) -> Result<(), QemuError> {
    let bitmap = usize::try_from(block.bitmap_offset).expect("within the mapping");
    let pages = block.len / PAGE_BYTES;
    let present = |page: u64| {
        let byte = usize::try_from(page / 8).expect("within the mapping");
        map[bitmap + byte] >> (page % 8) & 1 == 1
    };
    let mut page = 0;
    while page < pages {
        let first = page;
        while page < pages && !present(page) {
            page += 1;
        }
        if page > first {
            let offset = i64::try_from(block.pages_offset + first * PAGE_BYTES).expect("within the file");
            let len = i64::try_from((page - first) * PAGE_BYTES).expect("within the file");
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, flags, offset, len)
                .map_err(|error| QemuError::io("clear pages of", path)(error.into()))?;
        }
        page += 1;
    }
    Ok(())
}
