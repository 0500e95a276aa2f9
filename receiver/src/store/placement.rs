//! What a block means for this host: its pieces in the order of the files, checked.

use std::io::IoSlice;
use std::ops::Range;

use pages::block::{ContentRun, UniformPlacement};
use pages::{PAGE_SIZE, VmId};

use super::disk::StoreFile;
use super::error::StoreError;
use super::journal::VmEntry;
use super::record::{Digest, Run};

const PAGE_BYTES: u64 = PAGE_SIZE as u64;
/// Pages in the buffer that a uniform run is written from.
const PATTERN_PAGES: usize = 16;

/// Where the bytes of a piece come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fill {
    /// The block's contents from this one on, one a page.
    Content(u32),
    /// One word, repeated.
    Word(u64),
}

/// Consecutive pages of one VM with one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) run: Run,
    pub(super) fill: Fill,
}

impl Piece {
    /// Its pages as indices.
    pub(super) fn range(&self) -> Range<usize> {
        self.run.first as usize..self.run.first as usize + self.run.count as usize
    }
}

/// A block's pieces for this host's VMs, ascending by VM and page, without overlap, all within their images.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) pieces: Vec<Piece>,
    /// The same pages, adjacent pieces joined.
    pub(super) runs: Vec<Run>,
}

/// System calls and bytes of one placement.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) calls: u64,
}

impl Placement {
    /// Checks and orders what the block places into the VMs of `table`; others are left out.
    pub(super) fn new(
        digest: &Digest,
        runs: &[ContentRun],
        uniform: &[UniformPlacement],
        contents: &[u8],
        table: &[VmEntry],
    ) -> Result<Self, StoreError> {
        let bad = |reason| StoreError::BadBlock { digest: short(digest), reason };
        let contents = (contents.len() / PAGE_SIZE) as u64;
        let mut pieces = Vec::with_capacity(runs.len() + uniform.len());
        for run in runs {
            if u64::from(run.content) + u64::from(run.count) > contents {
                return Err(bad("a run names contents that the block does not have"));
            }
            push(&mut pieces, table, run.vm, run.pfn.0, run.count, Fill::Content(run.content))?;
        }
        for placed in uniform {
            let run = &placed.run;
            push(&mut pieces, table, placed.vm, run.first.0, run.count, Fill::Word(run.word))?;
        }
        pieces.sort_unstable_by_key(|piece| (piece.run.slot, piece.run.first));
        let mut joined: Vec<Run> = Vec::with_capacity(pieces.len());
        for Piece { run, .. } in &pieces {
            match joined.last_mut() {
                Some(last) if last.slot == run.slot && last.end() > u64::from(run.first) => {
                    return Err(bad("it places one page twice"));
                }
                Some(last) if last.slot == run.slot && last.end() == u64::from(run.first) => {
                    last.count += run.count;
                }
                _ => joined.push(*run),
            }
        }
        Ok(Self { pieces, runs: joined })
    }

    /// The VMs in whose files bytes will change, given the pages that must be zeroed.
    pub(super) fn changed_slots(&self, stale: &[Run]) -> Vec<usize> {
        let written =
            self.pieces.iter().filter(|piece| piece.fill != Fill::Word(0)).map(|piece| piece.run.slot);
        let mut slots: Vec<usize> =
            written.chain(stale.iter().map(|run| run.slot)).map(|slot| slot as usize).collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }
}

fn push(
    pieces: &mut Vec<Piece>,
    table: &[VmEntry],
    vm: VmId,
    first: u32,
    count: u32,
    fill: Fill,
) -> Result<(), StoreError> {
    let Ok(slot) = table.binary_search_by_key(&vm, |entry| entry.id) else { return Ok(()) };
    let entry = &table[slot];
    if u64::from(first) + u64::from(count) > u64::from(entry.page_count) {
        let (vm, page_count) = (entry.name.clone(), entry.page_count);
        return Err(StoreError::PageOutOfRange { vm, first, count, page_count });
    }
    if count != 0 {
        let slot = u32::try_from(slot).expect("VM ids are 16-bit and distinct");
        pieces.push(Piece { run: Run { slot, first, count }, fill });
    }
    Ok(())
}

/// Writes one VM's pieces: one system call for each stretch that is consecutive in the file.
///
/// `pieces` are of one VM; zero runs are not written here.
pub(super) fn write_pieces(
    image: &StoreFile,
    file_len: u64,
    pieces: &[Piece],
    contents: &[u8],
) -> std::io::Result<Written> {
    let mut written = Written::default();
    let mut pattern = Pattern::default();
    let data = |piece: &&Piece| piece.fill != Fill::Word(0);
    let pieces: Vec<&Piece> = pieces.iter().filter(data).collect();
    for stretch in pieces
        .chunk_by(|a, b| matches!((a.fill, b.fill), (Fill::Content(_), Fill::Content(_))) && adjoin(a, b))
    {
        let count = stretch.iter().map(|piece| piece.run.count).sum();
        let (offset, len) = file_range(Run { count, ..stretch[0].run }, file_len);
        let mut slices = match stretch[0].fill {
            Fill::Content(_) => gather(stretch, contents, len),
            Fill::Word(word) => pattern.slices(word, len),
        };
        written.calls += image.write_vectored_at(&mut slices, offset)?;
        written.bytes += len;
    }
    Ok(written)
}

/// Offset and length in bytes of a run in an image of `file_len` bytes, whose last page may be cut short.
pub(super) fn file_range(run: Run, file_len: u64) -> (u64, u64) {
    let offset = u64::from(run.first) * PAGE_BYTES;
    (offset, (run.end() * PAGE_BYTES).min(file_len) - offset)
}

fn adjoin(a: &Piece, b: &Piece) -> bool {
    a.run.end() == u64::from(b.run.first)
}

/// The first `len` bytes of the contents of `stretch`; contents that follow each other in the block are one slice.
fn gather<'a>(stretch: &[&Piece], contents: &'a [u8], len: u64) -> Vec<IoSlice<'a>> {
    let mut ranges: Vec<Range<usize>> = Vec::with_capacity(stretch.len());
    for piece in stretch {
        let Fill::Content(content) = piece.fill else { continue };
        let start = content as usize * PAGE_SIZE;
        let end = start + piece.run.count as usize * PAGE_SIZE;
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    let total: usize = ranges.iter().map(Range::len).sum();
    if let Some(last) = ranges.last_mut() {
        last.end -= total - usize::try_from(len).unwrap_or(total).min(total);
    }
    ranges.into_iter().map(|range| IoSlice::new(&contents[range])).collect()
}

/// Pages of one repeated word.
#[derive(Default)]
struct Pattern {
    bytes: Vec<u8>,
}

impl Pattern {
    /// `len` bytes of `word` repeated.
    fn slices(&mut self, word: u64, len: u64) -> Vec<IoSlice<'_>> {
        let whole = PATTERN_PAGES * PAGE_SIZE;
        let size = usize::try_from(len).map_or(whole, |len| len.next_multiple_of(8).min(whole));
        self.bytes.clear();
        self.bytes.extend(word.to_le_bytes().iter().cycle().take(size));
        let mut slices = Vec::new();
        let mut rest = len;
        while rest > 0 {
            let piece = usize::try_from(rest).map_or(size, |rest| rest.min(size));
            slices.push(IoSlice::new(&self.bytes[..piece]));
            rest -= piece as u64;
        }
        slices
    }
}

/// The first bytes of a digest in hexadecimal, for messages.
pub(super) fn short(digest: &Digest) -> String {
    digest[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}
