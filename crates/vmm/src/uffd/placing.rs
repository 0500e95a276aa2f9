//! How a page that is here gets into a VM's memory.

use super::Backing;
use super::fd::Filled;
use super::vm::{Outcome, Place, Vm, Waiter};
use crate::lazy::Origin;
use nix::errno::Errno;
use pages::PAGE_SIZE;
use std::ops::Range;

/// Pages (4 KiB) that are pushed to one VM before faults are looked at again: some 100 µs of copying.
const PUSH_PAGES: u32 = 64;

/// What became of a fill.
enum Filling {
    Done,
    /// An event waits to be read first.
    Again,
    Failed(Outcome),
}

impl Vm {
    /// Answers a fault whose page is here.
    pub(super) fn place_fault(&mut self, waiter: Waiter, origin: Option<Origin>) -> Outcome {
        let Place { region, pfn, .. } = waiter.place;
        if self.placements[region].span == 1 && self.image.is_zero(pfn) {
            return self.fill_zero(waiter, origin);
        }
        let filling = match self.backing {
            Backing::PrivateView => return self.woken(waiter, origin),
            Backing::SharedFile => {
                let filled = self.uffd.continue_(self.address(waiter.place), PAGE_SIZE as u64);
                self.judge(waiter.place, filled)
            }
            Backing::Huge => self.copy_huge(waiter.place),
            Backing::Anonymous if self.around > 1 => self.copy_around(waiter.place),
            Backing::Anonymous => self.copy_pages(waiter.place, 1),
        };
        self.settle(waiter, origin, filling)
    }

    /// Answers a fault on a page that is zero.
    pub(super) fn fill_zero(&mut self, waiter: Waiter, origin: Option<Origin>) -> Outcome {
        let (address, len) =
            (self.address(waiter.place), self.placements[waiter.place.region].region.page_bytes);
        let filling = if self.backing == Backing::Huge {
            // The kernel has no zero page of that size.
            self.huge_page.fill(0);
            let filled = self.uffd.copy(address, &self.huge_page);
            self.judge(waiter.place, filled)
        } else {
            let mut filled = self.uffd.zero(address, len);
            if filled.error == Some(Errno::EEXIST) && self.backing == Backing::SharedFile {
                // The page stands in the file, only not in the VM's tables.
                filled = self.uffd.continue_(address, len);
            }
            self.judge(waiter.place, filled)
        };
        self.settle(waiter, origin, filling)
    }

    fn settle(&mut self, waiter: Waiter, origin: Option<Origin>, filling: Filling) -> Outcome {
        match filling {
            Filling::Done => {
                self.done(waiter, origin);
                Outcome::Serving
            }
            Filling::Again => {
                self.stats.again += 1;
                self.deferred.push(waiter);
                Outcome::Serving
            }
            Filling::Failed(outcome) => outcome,
        }
    }

    fn done(&mut self, waiter: Waiter, origin: Option<Origin>) {
        let histogram = match origin {
            None => &mut self.stats.here,
            Some(Origin::Block) => &mut self.stats.by_block,
            Some(Origin::Sender) => &mut self.stats.by_sender,
            Some(Origin::Peer) => &mut self.stats.by_peer,
        };
        histogram.add(waiter.since.elapsed());
    }

    /// The page is where the guest will find it: whoever waits looks again.
    fn woken(&mut self, waiter: Waiter, origin: Option<Origin>) -> Outcome {
        let (address, len) =
            (self.address(waiter.place), self.placements[waiter.place.region].region.page_bytes);
        match self.uffd.wake(address, len) {
            Ok(()) => {
                self.done(waiter, origin);
                Outcome::Serving
            }
            Err(Errno::ESRCH) => Outcome::Gone,
            Err(error) => Outcome::Doomed(format!("its vCPU cannot be woken: {error}")),
        }
    }

    /// Marks what was filled from `place` on, and says what the rest needs.
    fn judge(&mut self, place: Place, filled: Filled) -> Filling {
        let page_bytes = self.placements[place.region].region.page_bytes;
        let pages = u32::try_from(filled.bytes / page_bytes).unwrap_or(u32::MAX);
        self.mark(place, pages);
        let Some(error) = filled.error else { return Filling::Done };
        let address = self.address(place) + filled.bytes;
        match error {
            Errno::EAGAIN => Filling::Again,
            Errno::EEXIST => {
                self.stats.exists += 1;
                self.mark(Place { index: place.index + pages, ..place }, 1);
                match self.uffd.wake(address, page_bytes) {
                    Ok(()) => Filling::Done,
                    Err(error) => Filling::Failed(failed(error, address)),
                }
            }
            error => Filling::Failed(failed(error, address)),
        }
    }

    fn mark(&mut self, place: Place, pages: u32) {
        let placed = &mut self.placements[place.region].placed;
        for index in place.index..(place.index + pages).min(placed.len()) {
            if !placed.get(index) {
                placed.set(index);
                self.left -= 1;
            }
        }
    }

    /// Copies pages that are all here, none of them known to be zero.
    fn copy_pages(&mut self, place: Place, count: u32) -> Filling {
        let bytes = count as usize * PAGE_SIZE;
        // SAFETY: the pages are within the image and here (the callers looked), so their bytes are written, seen by this
        // thread, and never written again; the mapping lives as long as the image, which `self` holds.
        let source = unsafe {
            std::slice::from_raw_parts(self.image.as_ptr().add(place.pfn as usize * PAGE_SIZE), bytes)
        };
        let filled = self.uffd.copy(self.address(place), source);
        self.judge(place, filled)
    }

    /// Copies the faulted page, and those near it that are here too: a fault costs a vCPU as much as many pages cost the server.
    ///
    /// Where faults follow each other through memory, the pages behind come in the same call: the guest would be at the next one before
    /// anything could be pushed. Elsewhere it waits for one page only, and the window around it is pushed.
    fn copy_around(&mut self, place: Place) -> Filling {
        let end = place.index.saturating_add(self.around).min(self.placements[place.region].placed.len());
        let behind = if self.streams.follows(place) { self.pushable(place, end).max(1) } else { 1 };
        let filling = self.copy_pages(place, behind);
        self.streams.note(place, behind);
        if behind == 1 && matches!(filling, Filling::Done) {
            let from = place.pfn - place.pfn % self.around;
            self.to_push.push_front(from..from.saturating_add(self.around));
        }
        filling
    }

    fn copy_huge(&mut self, place: Place) -> Filling {
        let mut buffer = std::mem::take(&mut self.huge_page);
        for (pfn, into) in (place.pfn..).zip(buffer.chunks_exact_mut(PAGE_SIZE)) {
            match self.image.page(pfn) {
                // Reading a zero page would take memory in the image's file.
                Some(_) if self.image.is_zero(pfn) => into.fill(0),
                Some(page) => into.copy_from_slice(page),
                None => unreachable!("the callers looked that all of the huge page is here"),
            }
        }
        let filled = self.uffd.copy(self.address(place), &buffer);
        self.huge_page = buffer;
        self.judge(place, filled)
    }

    /// Puts some pages in place that nobody waits for. Whether there may be more.
    pub(super) fn push_some(&mut self) -> Result<bool, Outcome> {
        let mut budget = PUSH_PAGES;
        while budget > 0 && self.deferred.is_empty() {
            let Some(run) = self.to_push.pop_front() else { return Ok(false) };
            let end = run.end.min(run.start.saturating_add(budget.max(self.largest_span())));
            budget = budget.saturating_sub(end - run.start);
            if end < run.end {
                self.to_push.push_front(end..run.end);
            }
            let again = self.push_run(run.start..end)?;
            if again {
                // An event waits to be read; it is answered before the same run is tried again.
                self.stats.again += 1;
                self.to_push.push_front(run.start..end);
                return Ok(true);
            }
        }
        Ok(!self.to_push.is_empty())
    }

    fn largest_span(&self) -> u32 {
        self.placements.iter().map(|placement| placement.span).max().unwrap_or(1)
    }

    /// Pushes what is here of a run and not in place. `true` if it met `EAGAIN`.
    fn push_run(&mut self, run: Range<u32>) -> Result<bool, Outcome> {
        for region in 0..self.placements.len() {
            let placement = &self.placements[region];
            let (first, span) = (placement.first_pfn, placement.span);
            let pages = placement.placed.len();
            let from = run.start.max(first);
            let to = run.end.min(first + pages * span);
            if from >= to {
                continue;
            }
            let (mut index, end) = ((from - first) / span, (to - first).div_ceil(span));
            while index < end {
                let place = Place { region, index, pfn: first + index * span };
                let count = self.pushable(place, end);
                let filling = match count {
                    0 => {
                        index += 1;
                        continue;
                    }
                    _ if span > 1 => self.copy_huge(place),
                    _ if self.image.is_zero(place.pfn) => {
                        let filled = self.uffd.zero(self.address(place), u64::from(count) * PAGE_SIZE as u64);
                        self.judge(place, filled)
                    }
                    _ => self.copy_pages(place, count),
                };
                match filling {
                    Filling::Done => {}
                    Filling::Again => return Ok(true),
                    Filling::Failed(outcome) => return Err(outcome),
                }
                // A page that was there already ends a fill early; the next round begins behind it.
                while index < end && self.placements[region].placed.get(index) {
                    index += 1;
                    self.stats.pushed += 1;
                }
            }
        }
        Ok(false)
    }

    /// How many region pages from `place` on can be filled by one call: here, not in place, of one kind.
    fn pushable(&self, place: Place, end: u32) -> u32 {
        let placement = &self.placements[place.region];
        let fits = |index: u32, zero: bool| {
            let pfn = placement.first_pfn + index * placement.span;
            !placement.placed.get(index)
                && (pfn..pfn + placement.span).all(|pfn| self.image.is_here(pfn))
                && (placement.span > 1 || self.image.is_zero(pfn) == zero)
        };
        let zero = self.image.is_zero(place.pfn);
        let most = if placement.span > 1 { place.index + 1 } else { end };
        let count = (place.index..most).take_while(|&index| fits(index, zero)).count();
        u32::try_from(count).expect("within the region")
    }

    /// Maps zeros wherever the complete image has zero pages: on its own, the system would make a page of the file for
    /// each that is touched.
    pub(super) fn map_zero_runs(&mut self) -> Outcome {
        for region in 0..self.placements.len() {
            let (first, pages) = (self.placements[region].first_pfn, self.placements[region].placed.len());
            let mut index = 0;
            while index < pages {
                let run = (index..pages).take_while(|&index| self.image.is_zero(first + index)).count();
                let end = index + u32::try_from(run).expect("within the region");
                while index < end {
                    let place = Place { region, index, pfn: first + index };
                    let len = u64::from(end - index) * PAGE_SIZE as u64;
                    let filled = self.uffd.zero(self.address(place), len);
                    index += u32::try_from(filled.bytes / PAGE_SIZE as u64).expect("within the region");
                    match filled.error {
                        None => {}
                        Some(Errno::EEXIST) => index += 1,
                        // A part of it was done, or an event waits: the registration stays for another round.
                        Some(Errno::EAGAIN) if filled.bytes > 0 => {}
                        // Zeros are what the system would give as well, only dearer.
                        Some(Errno::EAGAIN) => break,
                        Some(error) => return failed(error, self.address(place)),
                    }
                }
                index = end + 1;
            }
        }
        Outcome::Serving
    }
}

fn failed(error: Errno, address: u64) -> Outcome {
    match error {
        // The process has ended, or unmapped its memory on the way out.
        Errno::ESRCH => Outcome::Gone,
        error => Outcome::Doomed(format!("its memory at {address:#x} cannot be filled: {error}")),
    }
}
