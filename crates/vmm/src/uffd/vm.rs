//! One VM as the page server sees it: where its pages go, which are in place, who waits.

use super::fd::Event;
use super::guard::Guard;
use super::server::{Shared, VmStatus};
use super::stats::FaultStats;
use super::{Attachment, Backing, Region, Uffd};
use crate::lazy::{Demand, LazyImage};
use pages::{Bitmap, PAGE_SIZE};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// Batches of events read from one VM before others have their turn.
const BATCHES_MAX: usize = 16;
/// How often an empty descriptor is read again after an answer: the guest that was answered faults next within
/// microseconds, and to sleep and be woken costs more than these reads.
const EMPTY_READS_MAX: usize = 24;
/// Sequences of faults that are told apart in one VM: its vCPUs each go their way.
const STREAMS: usize = 8;
/// A fault so many pages beyond the last one still follows it: vCPUs that share a sequence take turns.
const STREAM_GAP: u32 = 8;
/// First touches that are recorded: more are no working set.
const TOUCHED_MAX: usize = 1 << 20;

/// A place in a VM's memory.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// Which region.
    pub(super) region: usize,
    /// The region's own page.
    pub(super) index: u32,
    /// First page (4 KiB) of the image that stands there.
    pub(super) pfn: u32,
}

/// Where the last faults were answered: whether the next one follows one of them.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// Region, and the page behind what was brought.
    ends: [(usize, u32); STREAMS],
    next: usize,
}

impl Streams {
    fn of(&self, place: Place) -> Option<usize> {
        let follows = |&(region, end): &(usize, u32)| {
            region == place.region && (end..end.saturating_add(STREAM_GAP)).contains(&place.index)
        };
        self.ends.iter().position(follows)
    }

    /// Whether a fault goes on where another one was, as far as some pages beyond it.
    pub(super) fn follows(&self, place: Place) -> bool {
        self.of(place).is_some()
    }

    /// Pages were brought for a fault.
    pub(super) fn note(&mut self, place: Place, pages: u32) {
        let slot = self.of(place).unwrap_or_else(|| {
            self.next = (self.next + 1) % STREAMS;
            self.next
        });
        self.ends[slot] = (place.region, place.index + pages);
    }
}

#[derive(Debug)]
pub(super) struct Placement {
    pub(super) region: Region,
    pub(super) first_pfn: u32,
    /// Pages (4 KiB) in one of the region's.
    pub(super) span: u32,
    /// In place, or not to be put there any more.
    pub(super) placed: Bitmap,
    /// Given back by the guest: zeros from then on.
    pub(super) removed: Bitmap,
}

/// Someone waits for a page.
#[derive(Copy, Clone, Debug)]
pub(super) struct Waiter {
    pub(super) since: Instant,
    pub(super) place: Place,
}

/// What a VM came to.
#[derive(Debug)]
pub(super) enum Outcome {
    Serving,
    /// Everything is in place and its memory is its own.
    Complete,
    /// It must be ended, for this reason.
    Doomed(String),
    /// Its process has ended by itself.
    Gone,
}

pub(super) struct Vm {
    pub(super) name: String,
    pub(super) uffd: Uffd,
    pub(super) image: Arc<LazyImage>,
    pub(super) backing: Backing,
    pub(super) push: bool,
    pub(super) around: u32,
    pub(super) streams: Streams,
    pub(super) placements: Vec<Placement>,
    /// Region pages that are not in place.
    pub(super) left: u64,
    /// By the page of the image that they wait for.
    pub(super) waiting: BTreeMap<u32, Waiter>,
    /// Fills that met `EAGAIN`, with the time their fault came.
    pub(super) deferred: Vec<Waiter>,
    /// Runs of the image that are here and may not be in place yet.
    pub(super) to_push: VecDeque<Range<u32>>,
    pub(super) stats: FaultStats,
    pub(super) touched: Vec<u32>,
    pub(super) record: bool,
    pub(super) huge_page: Vec<u8>,
    guard: Option<Guard>,
    /// Readable when the VM's process has ended.
    pub(super) process: Option<OwnedFd>,
    pub(super) shared: Arc<Shared>,
    events: Vec<Event>,
}

impl Vm {
    pub(super) fn new(attachment: Attachment, shared: Arc<Shared>) -> Self {
        let placements: Vec<Placement> = attachment
            .regions
            .iter()
            .map(|&region| {
                let page =
                    |bytes: u64| u32::try_from(bytes / PAGE_SIZE as u64).expect("checked: within the image");
                let count = u32::try_from(region.len / region.page_bytes).expect("checked: within the image");
                Placement {
                    region,
                    first_pfn: page(region.image_offset),
                    span: page(region.page_bytes),
                    placed: Bitmap::new(count),
                    removed: Bitmap::new(count),
                }
            })
            .collect();
        let left = placements.iter().map(|placement| u64::from(placement.placed.len())).sum();
        let huge = placements.iter().map(|placement| placement.span).max().unwrap_or(1);
        Self {
            name: attachment.name,
            uffd: attachment.uffd,
            backing: attachment.backing,
            push: attachment.push,
            around: attachment.around.max(1),
            streams: Streams::default(),
            placements,
            left,
            waiting: BTreeMap::new(),
            deferred: Vec::new(),
            to_push: attachment.first.iter().map(|&page| page..page + 1).collect(),
            stats: FaultStats::default(),
            touched: Vec::new(),
            record: attachment.record,
            huge_page: vec![0; if huge > 1 { huge as usize * PAGE_SIZE } else { 0 }],
            process: attachment.guard.process().and_then(|fd| fd.try_clone_to_owned().ok()),
            guard: Some(attachment.guard),
            image: attachment.image,
            shared,
            events: Vec::new(),
        }
    }

    fn locate(&self, address: u64) -> Option<Place> {
        self.placements.iter().enumerate().find_map(|(region, placement)| {
            let within = address.checked_sub(placement.region.address)?;
            if within >= placement.region.len {
                return None;
            }
            let index = u32::try_from(within / placement.region.page_bytes).ok()?;
            Some(Place { region, index, pfn: placement.first_pfn + index * placement.span })
        })
    }

    pub(super) fn address(&self, place: Place) -> u64 {
        let region = &self.placements[place.region].region;
        region.address + u64::from(place.index) * region.page_bytes
    }

    /// Reads and answers what has come, as long as anything comes, within a bound.
    pub(super) fn serve(&mut self) -> Outcome {
        let (mut batches, mut empty_left) = (0, 0);
        while batches < BATCHES_MAX {
            let mut events = std::mem::take(&mut self.events);
            events.clear();
            let read = self.uffd.read(&mut events);
            let outcome = match read {
                Err(error) => Outcome::Doomed(format!("its userfaultfd cannot be read: {error}")),
                Ok(()) => self.answer(&events),
            };
            let any = !events.is_empty();
            self.events = events;
            if !matches!(outcome, Outcome::Serving) {
                return outcome;
            }
            if any {
                (batches, empty_left) = (batches + 1, EMPTY_READS_MAX);
            } else if empty_left == 0 {
                break;
            } else {
                empty_left -= 1;
            }
        }
        self.retry()
    }

    fn answer(&mut self, events: &[Event]) -> Outcome {
        // A fault that is read beside a removal of its page is answered by zeros whichever came first: the guest has
        // given the page up.
        for event in events {
            match *event {
                Event::Remove { start, end } => self.remove(start, end),
                Event::Other(kind) => {
                    return Outcome::Doomed(format!("its userfaultfd sends events of kind {kind:#x}"));
                }
                Event::Fault { .. } => {}
            }
        }
        let now = Instant::now();
        for event in events {
            if let Event::Fault { address } = *event {
                let Some(place) = self.locate(address) else {
                    return Outcome::Doomed(format!("it faults at {address:#x}, outside of its regions"));
                };
                self.stats.faults += 1;
                if let outcome @ (Outcome::Doomed(_) | Outcome::Gone) = self.fault(place, now) {
                    return outcome;
                }
            }
        }
        Outcome::Serving
    }

    fn fault(&mut self, place: Place, since: Instant) -> Outcome {
        if self.record && self.touched.len() < TOUCHED_MAX {
            self.touched.push(place.pfn);
        }
        let placement = &self.placements[place.region];
        if placement.removed.get(place.index) {
            self.stats.removed += 1;
            return self.fill_zero(Waiter { since, place }, None);
        }
        let mut here = true;
        for pfn in place.pfn..place.pfn + placement.span {
            here &= self.image.demand(pfn) == Demand::Here;
        }
        if here {
            return self.place_fault(Waiter { since, place }, None);
        }
        if let Some(reason) = self.image.lost() {
            return Outcome::Doomed(format!("it needs page {}, which will not come: {reason}", place.pfn));
        }
        self.waiting.entry(place.pfn).or_insert(Waiter { since, place });
        Outcome::Serving
    }

    /// The range was given back: nothing is put there any more, and who waits there gets zeros.
    fn remove(&mut self, start: u64, end: u64) {
        for placement in &mut self.placements {
            let region = placement.region;
            let from = start.max(region.address);
            let to = end.min(region.address + region.len);
            let page = |address: u64| {
                u32::try_from((address - region.address) / region.page_bytes).unwrap_or(u32::MAX)
            };
            if from >= to {
                continue;
            }
            for index in page(from)..page(to) {
                placement.removed.set(index);
                if !placement.placed.get(index) {
                    placement.placed.set(index);
                    self.left -= 1;
                }
            }
        }
        let removed: Vec<u32> = self
            .waiting
            .iter()
            .filter(|(_, waiter)| self.placements[waiter.place.region].removed.get(waiter.place.index))
            .map(|(&pfn, _)| pfn)
            .collect();
        for pfn in removed {
            if let Some(waiter) = self.waiting.remove(&pfn) {
                self.deferred.push(waiter);
            }
        }
    }

    /// Fills that had to wait for an event: it has been read by now.
    fn retry(&mut self) -> Outcome {
        for waiter in std::mem::take(&mut self.deferred) {
            let removed = self.placements[waiter.place.region].removed.get(waiter.place.index);
            let outcome = if removed {
                self.stats.removed += 1;
                self.fill_zero(waiter, None)
            } else {
                self.place_fault(waiter, None)
            };
            if !matches!(outcome, Outcome::Serving) {
                return outcome;
            }
        }
        Outcome::Serving
    }

    /// Pages have come: who waits for them is answered, and they are put in place if nobody does.
    pub(super) fn news(&mut self, run: &Range<u32>) -> Outcome {
        let span = self.placements.iter().map(|placement| placement.span).max().unwrap_or(1);
        let from = run.start.saturating_sub(span - 1);
        let came: Vec<u32> = self.waiting.range(from..run.end).map(|(&pfn, _)| pfn).collect();
        for pfn in came {
            let Some(&waiter) = self.waiting.get(&pfn) else { continue };
            let span = self.placements[waiter.place.region].span;
            if (pfn..pfn + span).all(|pfn| self.image.is_here(pfn)) {
                self.waiting.remove(&pfn);
                // What came last decides whose latency this was.
                let origin = self.image.origin(pfn + span - 1);
                let outcome = self.place_fault(waiter, origin);
                if !matches!(outcome, Outcome::Serving) {
                    return outcome;
                }
            }
        }
        if self.push && matches!(self.backing, Backing::Anonymous | Backing::Huge) {
            self.to_push.push_back(run.clone());
        }
        Outcome::Serving
    }

    /// Whether nothing is left to be done for it: then its memory is made its own.
    pub(super) fn finish(&mut self) -> Outcome {
        if !self.waiting.is_empty() || !self.deferred.is_empty() {
            return Outcome::Serving;
        }
        let whole = match self.backing {
            Backing::Anonymous | Backing::Huge => self.left == 0,
            Backing::PrivateView | Backing::SharedFile => self.image.is_complete(),
        };
        if !whole {
            return Outcome::Serving;
        }
        if self.backing == Backing::PrivateView
            && let outcome @ (Outcome::Doomed(_) | Outcome::Gone) = self.map_zero_runs()
        {
            return outcome;
        }
        for placement in &self.placements {
            let Region { address, len, .. } = placement.region;
            match self.uffd.unregister(address, len) {
                Ok(()) => {}
                Err(nix::errno::Errno::ESRCH) => return Outcome::Gone,
                Err(error) => return Outcome::Doomed(format!("its memory cannot be released: {error}")),
            }
        }
        Outcome::Complete
    }

    /// Ends the VM because it cannot be served, and says why.
    pub(super) fn end(&mut self, reason: &str) {
        let reason = format!("VM {}: {reason}", self.name);
        let failed = self.guard.take().map(|guard| guard.end(&reason));
        let reason = match failed {
            Some(Err(error)) => format!("{reason}; and it could not be ended: {error}"),
            _ => reason,
        };
        self.publish(Some(VmStatus::Ended(reason)));
    }

    /// Makes the counters known, and a new status.
    pub(super) fn publish(&mut self, status: Option<VmStatus>) {
        self.shared.publish(&self.stats, &self.touched, status);
    }
}
