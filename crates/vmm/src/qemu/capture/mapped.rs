//! Letting QEMU write the image, with capability `mapped-ram`.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use super::super::state::{DeviceState, Fingerprint};
use super::super::stream::{Block, BlockPlan, PAGE_BYTES, Parser, RamWriter, without_capabilities};
use super::driver::{self, Clock};
use super::live::{Sink, Taken};
use super::ram_file::RamFile;
use super::{CaptureFigures, CaptureOptions, settings};
use crate::image::{ImageError, ImageFormat, mapped_ram};
use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::{Value, json};
use std::fs::File;
use std::ops::Range;
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
    // SAFETY: QEMU has closed the file, which nobody else knows yet; it stays as it is while it is mapped here.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(QemuError::io("map", path))?;
    let (layout, mut state) = parse(&map, 0, path, fingerprint)?;
    let mut figures = CaptureFigures { stream_bytes: map.len() as u64, ..CaptureFigures::default() };
    for (block, layout) in state.blocks.iter_mut().zip(&layout.blocks) {
        let first_page = u32::try_from(layout.pages_offset / PAGE_BYTES);
        block.first_page = first_page.map_err(|_| QemuError::refused("its image has 2^32 pages or more"))?;
        figures.pages += layout.present_pages;
        figures.zero_pages += u64::from(block.pages()) - layout.present_pages;
        for run in absent(&map, layout) {
            clear(file, path, layout.pages_offset, run)?;
        }
    }
    Ok((state, ImageFormat::QemuMappedRam, figures))
}

/// Reads a mapped-ram stream that begins at `start` of a file: memory into `ram`, blocks behind each other; the file
/// stays as it is.
///
/// # Errors
///
/// [`QemuError::Refused`] for streams that are damaged, [`QemuError::Io`].
///
/// # Panics
///
/// Never: offsets are checked against the file before.
pub fn import_mapped_ram(
    file: &File,
    path: &Path,
    start: u64,
    mut ram: RamFile,
) -> Result<DeviceState, QemuError> {
    // SAFETY: the caller's file, mapped for reading and as long as it is now. Whoever truncates it meanwhile ends this
    // process, as with any image (`MappedImage`).
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(QemuError::io("map", path))?;
    let (layout, state) = parse(&map, start, path, &Fingerprint::default())?;
    ram.set_blocks(&state.blocks)?;
    for (block, layout) in state.blocks.iter().zip(&layout.blocks) {
        let mut next = 0;
        let end = block.len / PAGE_BYTES;
        let absent = absent(&map, layout).into_iter().chain(std::iter::once(end..end));
        for run in absent {
            for page in next..run.start {
                let at =
                    usize::try_from(layout.pages_offset + page * PAGE_BYTES).expect("within the mapping");
                let bytes = map[at..].first_chunk().expect("whole pages");
                ram.page(block.first_page + u32::try_from(page).expect("a page of the block"), bytes)?;
            }
            next = run.end;
        }
    }
    ram.flush()?;
    Ok(state)
}

/// Layout, and state with the blocks behind each other.
fn parse(
    map: &[u8],
    start: u64,
    path: &Path,
    fingerprint: &Fingerprint,
) -> Result<(mapped_ram::Layout, DeviceState), QemuError> {
    let failed = |source: String| QemuError::refused(format!("{path}: {source}", path = path.display()));
    let layout = mapped_ram::parse_at(map, start)
        .map_err(|source| failed(ImageError::MappedRam { path: path.to_owned(), source }.to_string()))?;
    let start = usize::try_from(start).expect("within the mapping");
    let ram = b"\x03ram\0\0\0\0\0\0\0\x04";
    let at = map[start..].windows(ram.len()).position(|bytes| bytes == ram).filter(|at| *at >= 5);
    let at = start + at.ok_or_else(|| failed("it has no RAM section".to_owned()))?;
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
    let mut stream = without_capabilities(&map[start..at - 5]);
    RamWriter::new(section, &packed).start(&mut stream, &BlockPlan::default(), false);
    stream.extend_from_slice(&map[usize::try_from(layout.tail_offset).expect("within the mapping")..]);
    // It has no pages, so what takes them stays empty.
    let scratch = tempfile::tempfile().map_err(QemuError::io("make a scratch file for", path))?;
    let mut sink = Sink::new(RamFile::new(scratch, path), fingerprint);
    let mut parser = Parser::new(BlockPlan::default());
    let used = parser.feed(&stream, |event| sink.event(event))?;
    if !parser.in_tail() || used != stream.len() {
        return Err(parser.cut_off().into());
    }
    Ok((layout, sink.finish()?.0))
}

/// Runs of pages that are zero, whatever the file has in their places: a page that became zero while the VM ran has a
/// clear bit, and its old bytes in the file.
fn absent(map: &[u8], block: &mapped_ram::Block) -> Vec<Range<u64>> {
    let bitmap = usize::try_from(block.bitmap_offset).expect("within the mapping");
    let present = |page: u64| {
        let byte = usize::try_from(page / 8).expect("within the mapping");
        map[bitmap + byte] >> (page % 8) & 1 == 1
    };
    let mut runs: Vec<Range<u64>> = Vec::new();
    for page in (0..block.len / PAGE_BYTES).filter(|page| !present(*page)) {
        match runs.last_mut() {
            Some(run) if run.end == page => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

/// Holes in place of pages, so that the file's pages are the VM's.
fn clear(file: &File, path: &Path, pages_offset: u64, run: Range<u64>) -> Result<(), QemuError> {
    let offset = i64::try_from(pages_offset + run.start * PAGE_BYTES).expect("within the file");
    let len = i64::try_from((run.end - run.start) * PAGE_BYTES).expect("within the file");
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, offset, len).map_err(|error| QemuError::io("clear pages of", path)(error.into()))
}
