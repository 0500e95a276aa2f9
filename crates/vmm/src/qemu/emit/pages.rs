//! Which page goes next. Knows the image and no socket; the clock is read for figures only.

use super::super::stream::{Block, PAGE_BYTES, RamWriter};
use super::EmitFaults;
use crate::lazy::{Demand, LazyImage, Origin};
use pages::{Bitmap, PAGE_SIZE, Page};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Latencies that are kept for the report.
const LATENCIES_MAX: usize = 1 << 16;
/// Pages asked for that are kept.
const TOUCHED_MAX: usize = 1 << 20;
/// Pages that nobody waits for which are looked at in one go.
const LOOK_MAX: u32 = 8192;
const ZEROS: Page = [0; PAGE_SIZE];

/// A page's counters.
#[derive(Copy, Clone, Default, Debug)]
pub(super) struct Counts {
    pub(super) pages: u64,
    pub(super) zero_pages: u64,
    pub(super) left_out: u64,
}

/// Pages between the image and a QEMU. A *unit* is a page of the block's page size: what is placed at once.
pub(super) struct PageQueue {
    image: Arc<LazyImage>,
    blocks: Vec<Block>,
    writer: RamWriter,
    /// Pages that QEMU has, or has been sent.
    sent: Bitmap,
    /// Pages that QEMU waits for and that are not here yet.
    wanted: Bitmap,
    /// Pages that QEMU waits for and that are here.
    urgent: VecDeque<u32>,
    /// Pages of a recorded working set that are sent ahead of all that nobody asked for, in this order.
    first: VecDeque<u32>,
    /// Runs of pages that came, in this order.
    ready: VecDeque<Range<u32>>,
    /// Zero pages that QEMU was not sent and need not be, unless it asks.
    left_out: Bitmap,
    /// Zero pages are left out from now on.
    leaves_zeros: bool,
    /// Pages may still change: they are read with a system call into `scratch`, not by reference.
    copies: bool,
    scratch: Box<Page>,
    /// Pages of blocks that were neither sent nor left out.
    left: u64,
    pub(super) counts: Counts,
    /// When a page that QEMU waits for was asked for, and whether it was here then. QEMU asks for a page once, so at most one
    /// entry a page.
    asked: HashMap<u32, (Instant, bool)>,
    /// Pages that were asked for, in this order, as many as a working set may have.
    pub(super) touched: Vec<u32>,
    /// From request to answer, in µs.
    pub(super) latencies_us: Vec<u32>,
    /// Requests by what they waited for.
    pub(super) faults: EmitFaults,
}

impl PageQueue {
    pub(super) fn new(image: &Arc<LazyImage>, blocks: &[Block], section: u32) -> Self {
        Self {
            image: Arc::clone(image),
            writer: RamWriter::new(section, blocks),
            sent: Bitmap::new(image.page_count()),
            wanted: Bitmap::new(image.page_count()),
            left_out: Bitmap::new(image.page_count()),
            leaves_zeros: false,
            copies: false,
            scratch: Box::new(ZEROS),
            urgent: VecDeque::new(),
            first: VecDeque::new(),
            ready: VecDeque::new(),
            left: blocks.iter().map(|block| u64::from(block.pages())).sum(),
            blocks: blocks.to_vec(),
            counts: Counts::default(),
            asked: HashMap::new(),
            touched: Vec::new(),
            latencies_us: Vec::new(),
            faults: EmitFaults::default(),
        }
    }

    pub(super) fn writer(&self) -> &RamWriter {
        &self.writer
    }

    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// From now on zero pages go only if QEMU waits for them. Of post-copy, once all unsent pages are discarded: a discarded page
    /// that never comes reads as zeros when post-copy ends, and QEMU takes some 17 µs to be told so of one page.
    pub(super) fn leave_zeros(&mut self) {
        self.leaves_zeros = true;
        std::mem::take(&mut self.ready).into_iter().for_each(|run| self.make_ready(run));
    }

    /// Whether pages may still change while they are read. Such a page is [taken back](Self::take_back) afterwards, whatever was read.
    /// Zero pages are left out meanwhile: they are discarded in the end.
    pub(super) fn copy_pages(&mut self, copies: bool) {
        (self.copies, self.leaves_zeros) = (copies, copies);
    }

    /// QEMU has none of these, whatever it was sent: those that are here are news again.
    pub(super) fn take_back(&mut self, runs: &[Range<u32>]) {
        for page in runs.iter().cloned().flatten() {
            for page in self.unit(page).unwrap_or(page..page) {
                if self.sent.unset(page) {
                    self.left += 1;
                } else if self.left_out.unset(page) {
                    self.left += 1;
                    self.counts.left_out -= 1;
                }
            }
        }
    }

    /// As [`write`](Self::write), in the background; but not the last pages of all, so that some are left to be discarded. Whether
    /// it was tried.
    pub(super) fn write_ahead(&mut self, out: &mut Vec<u8>, budget: usize) -> bool {
        let largest = self.blocks.iter().map(|block| block.page_size / PAGE_BYTES).max().unwrap_or(1);
        let tried = self.left > 2 * largest + budget as u64 / PAGE_BYTES && self.has_work();
        if tried {
            self.write(out, budget, true);
        }
        tried
    }

    /// Whether QEMU has, or has been sent, every page that it needs.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Whether something can be sent now.
    pub(super) fn has_work(&self) -> bool {
        self.presses() || !self.ready.is_empty()
    }

    /// Whether something can be sent that does not wait for the guest to fall quiet.
    fn presses(&self) -> bool {
        !self.urgent.is_empty() || !self.first.is_empty()
    }

    /// These go next, zero or not, those that are here by then.
    pub(super) fn put_first(&mut self, pages: &[u32]) {
        self.first.extend(pages);
    }

    /// Pages of a block that QEMU has already: of a run before this one.
    pub(super) fn has(&mut self, block: usize, bitmap: &[u64]) {
        let range = self.blocks[block].page_range();
        for page in range.clone() {
            let at = page - range.start;
            if bitmap[(at / 64) as usize] >> (at % 64) & 1 == 1 && self.sent.set(page) {
                self.left -= 1;
            }
        }
    }

    /// Pages came to the image.
    pub(super) fn came(&mut self, run: Range<u32>) {
        // Pages between blocks (an image's headers) are none of QEMU's.
        for block in 0..self.blocks.len() {
            let range = self.blocks[block].page_range();
            let part = run.start.max(range.start)..run.end.min(range.end);
            if part.is_empty() {
                continue;
            }
            if self.wanted.count() > 0 {
                let wanted = part.clone().filter(|page| self.wanted.unset(*page));
                self.urgent.extend(wanted);
            }
            self.make_ready(part);
        }
    }

    /// Has these pages of one block sent in the background. Those to be left out are left out here, a word of bitmaps at a time: most
    /// of a guest's memory is zero, and each of a host's clones goes through all of it.
    fn make_ready(&mut self, run: Range<u32>) {
        if !self.leaves_zeros || self.unit(run.start).is_none_or(|unit| unit.len() > 1) {
            self.ready.push_back(run);
            return;
        }
        let mut at = run.start;
        for zeros in self.image.zeros(run.clone()) {
            self.ready.extend((at < zeros.start).then_some(at..zeros.start));
            at = zeros.end;
            self.leave_out(zeros);
        }
        self.ready.extend((at < run.end).then_some(at..run.end));
    }

    /// QEMU waits for these bytes of a block: how many pages of it are asked for, and how many were not here. `None`: the
    /// block has no such bytes.
    pub(super) fn request(&mut self, block: &str, start: u64, len: u64, now: Instant) -> Option<(u64, u64)> {
        let block = self.blocks.iter().find(|known| known.id == block)?;
        let end = start.checked_add(len).filter(|end| *end <= block.len)?;
        let page = |at: u64| block.first_page + u32::try_from(at / PAGE_BYTES).expect("within the block");
        let (mut asked, mut waited) = (0, 0);
        for page in page(start)..page(end.next_multiple_of(PAGE_BYTES)) {
            if self.sent.get(page) {
                continue;
            }
            asked += 1;
            if self.touched.len() < TOUCHED_MAX {
                self.touched.push(page);
            }
            let demand = self.image.demand(page);
            self.asked.entry(page).or_insert((now, demand == Demand::Here));
            match demand {
                Demand::Here => self.urgent.push_back(page),
                _ => {
                    self.wanted.set(page);
                    waited += 1;
                    // It may have come between the demand and now; then news of it is under way, as it is of all pages.
                }
            }
        }
        Some((asked, waited))
    }

    /// Appends records of pages, those that QEMU waits for first, until `out` has `budget` bytes or there are none. The
    /// section is opened and closed around them. Without `background`, only pages that QEMU waits for and those put first.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, budget: usize, background: bool) {
        if !(self.presses() || background && self.has_work()) {
            return;
        }
        let begin = out.len();
        self.writer.part(out);
        let (empty, mut looked) = (out.len(), 0);
        while out.len() < budget {
            if let Some(page) = self.urgent.pop_front().or_else(|| self.first.pop_front()) {
                self.write_unit(out, page, true);
                continue;
            }
            // However many are left out in a row, requests are heard in between.
            if !background || looked == LOOK_MAX {
                break;
            }
            let Some(page) = self.next_ready() else { break };
            self.write_unit(out, page, false);
            looked += 1;
        }
        self.end_part(out, begin, empty);
    }

    /// Appends records of those of these pages that are here, whole units, before QEMU waits for any.
    pub(super) fn write_first(&mut self, out: &mut Vec<u8>, pages: &[u32]) {
        let begin = out.len();
        self.writer.part(out);
        let empty = out.len();
        for page in pages {
            self.write_unit(out, *page, false);
        }
        self.end_part(out, begin, empty);
    }

    /// Closes a section that begins at `begin` and has records from `empty` on, or takes it back if it has none.
    fn end_part(&mut self, out: &mut Vec<u8>, begin: usize, empty: usize) {
        if out.len() == empty {
            out.truncate(begin);
        } else {
            self.writer.close(out);
        }
    }

    fn next_ready(&mut self) -> Option<u32> {
        while let Some(run) = self.ready.front_mut() {
            match run.next() {
                Some(page) if self.sent.get(page) || self.left_out.get(page) => {}
                Some(page) => return Some(page),
                None => drop(self.ready.pop_front()),
            }
        }
        None
    }

    /// The unit that a page is part of; none between blocks.
    fn unit(&self, page: u32) -> Option<Range<u32>> {
        let block = self.blocks.iter().find(|block| block.page_range().contains(&page))?;
        let size = u32::try_from(block.page_size / PAGE_BYTES).unwrap_or(u32::MAX).min(block.pages()).max(1);
        let first = block.first_page + (page - block.first_page) / size * size;
        Some(first..(first + size).min(block.page_range().end))
    }

    /// Writes the unit that a page is part of, if it was not sent and all of it is here.
    fn write_unit(&mut self, out: &mut Vec<u8>, page: u32, wanted: bool) {
        let Some(unit) = self.unit(page) else { return };
        if self.sent.get(page) || !unit.clone().all(|page| self.image.is_here(page)) {
            // Its last page brings it here again.
            return;
        }
        if self.leaves_zeros && !wanted && unit.clone().all(|page| self.image.is_zero(page)) {
            self.leave_out(unit);
            return;
        }
        for page in unit {
            self.write_page(out, page);
        }
    }

    fn leave_out(&mut self, pages: Range<u32>) {
        for page in pages {
            if !self.sent.get(page) && self.left_out.set(page) {
                self.left -= 1;
                self.counts.left_out += 1;
            }
        }
    }

    fn write_page(&mut self, out: &mut Vec<u8>, page: u32) {
        if !self.sent.set(page) {
            return;
        }
        if self.left_out.unset(page) {
            self.counts.left_out -= 1;
        } else {
            self.left -= 1;
        }
        if let Some((asked, was_here)) = self.asked.remove(&page) {
            self.answered(page, asked.elapsed(), was_here);
        }
        // A zero page is not read, as reading makes memory of it.
        let bytes = match self.image.is_zero(page) {
            true => None,
            false if self.copies => self.image.copy_page(page, &mut self.scratch).then_some(&*self.scratch),
            false => self.image.page(page),
        };
        match bytes.filter(|bytes| **bytes != ZEROS) {
            Some(bytes) => {
                self.counts.pages += 1;
                self.writer.page(out, page, bytes);
            }
            None => {
                self.counts.zero_pages += 1;
                self.writer.zero(out, page);
            }
        }
    }

    /// Counts an answer to a request.
    fn answered(&mut self, page: u32, after: Duration, was_here: bool) {
        if self.latencies_us.len() < LATENCIES_MAX {
            self.latencies_us.push(u32::try_from(after.as_micros()).unwrap_or(u32::MAX));
        }
        if was_here {
            self.faults.here += 1;
            return;
        }
        self.faults.waited.add(after);
        match self.image.origin(page) {
            Some(Origin::Sender) => self.faults.by_sender += 1,
            Some(Origin::Peer) => self.faults.by_peer += 1,
            _ => self.faults.by_block += 1,
        }
    }

    /// The runs of a block's pages that were not sent, in pages of the block.
    pub(super) fn unsent(&self, block: usize) -> Vec<Range<u32>> {
        let range = self.blocks[block].page_range();
        let mut runs: Vec<Range<u32>> = Vec::new();
        for page in range.clone().filter(|page| !self.sent.get(*page)) {
            let at = page - range.start;
            match runs.last_mut() {
                Some(run) if run.end == at => run.end += 1,
                _ => runs.push(at..at + 1),
            }
        }
        runs
    }
}
