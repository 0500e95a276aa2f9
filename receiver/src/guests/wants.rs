//! Which pages to ask the sender for: those that guests wait for, and around them.

use pages::Bitmap;
use std::ops::Range;
use std::time::Duration;
use vmm::lazy::LazyImage;
use wire::control::{PageRange, Want};
use wire::limits;

/// Blocks are not awaited any more when none came for so long.
const BLOCKS_STALL: Duration = Duration::from_millis(500);

/// Which pages are asked for beside those that guests wait for, once blocks do not come any more. While they come, everything
/// asked for beside faults would be sent twice: to this host now, and to all hosts soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrePaging {
    /// None.
    Off,
    /// So many missing pages behind a fault, and half as many before it ("bubbling", Hines and Gopalan, VEE 2009): memory is
    /// used in neighbourhoods, more often upwards.
    Around(u32),
}

impl Default for PrePaging {
    /// 16 pages behind, 8 before.
    fn default() -> Self {
        Self::Around(16)
    }
}

/// What has been asked for of one VM on this connection.
pub(super) struct Wants {
    vm: u16,
    pre_paging: PrePaging,
    asked: Bitmap,
    /// Demanded on an earlier connection and still missing.
    renewed: Vec<u32>,
    /// Pages that blocks had brought, when that last changed.
    by_blocks: (u64, Duration),
}

impl Wants {
    pub(super) fn new(vm: u16, page_count: u32, pre_paging: PrePaging) -> Self {
        Self {
            vm,
            pre_paging,
            asked: Bitmap::new(page_count),
            renewed: Vec::new(),
            by_blocks: (0, Duration::ZERO),
        }
    }

    /// A connection begins: what guests wait for is asked for anew.
    pub(super) fn restart(&mut self, image: &LazyImage, now: Duration) {
        self.by_blocks.1 = now;
        self.asked = Bitmap::new(image.page_count());
        self.renewed = image.outstanding();
        self.renewed.reverse();
    }

    /// The next message, if there is something to ask for.
    pub(super) fn poll(&mut self, image: &LazyImage, now: Duration) -> Option<Want> {
        let stats = image.stats();
        let by_blocks = stats.here - stats.from_sender - stats.from_peers;
        if by_blocks != self.by_blocks.0 {
            self.by_blocks = (by_blocks, now);
        }
        let blocks_come = now < self.by_blocks.1 + BLOCKS_STALL;
        let mut want = Want { vm: self.vm, pages: Vec::new(), ahead: Vec::new() };
        let mut room = limits::WANTED_MAX;
        while want.pages.len() < limits::WANTED_MAX {
            let Some(page) = self.renewed.pop().or_else(|| image.next_demand()) else { break };
            if image.is_here(page) {
                continue;
            }
            // Asked for ahead before, it is asked for again: it goes to the front then.
            self.asked.set(page);
            want.pages.push(page);
            let around = if blocks_come { [0..0, 0..0] } else { self.around(page, image) };
            for range in around {
                let missing = image.missing(range);
                for page in missing.into_iter().flatten() {
                    if room > 0 && self.asked.set(page) {
                        room -= 1;
                        push(&mut want.ahead, page);
                    }
                }
            }
        }
        (!want.pages.is_empty()).then_some(want)
    }

    fn around(&self, page: u32, image: &LazyImage) -> [Range<u32>; 2] {
        let PrePaging::Around(count) = self.pre_paging else { return [0..0, 0..0] };
        let end = page.saturating_add(1).saturating_add(count).min(image.page_count());
        [page + 1..end, page.saturating_sub(count / 2)..page]
    }
}

fn push(ranges: &mut Vec<PageRange>, page: u32) {
    match ranges.last_mut() {
        Some(last) if last.first + last.count == page => last.count += 1,
        _ => ranges.push(PageRange { first: page, count: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::lazy::Origin;

    const LATER: Duration = Duration::from_secs(9);

    fn image() -> LazyImage {
        LazyImage::memfd("wants", 100).expect("memfd")
    }

    fn range(first: u32, count: u32) -> PageRange {
        PageRange { first, count }
    }

    #[test]
    fn neighbours_are_asked_for_once_and_only_if_missing() {
        let image = image();
        image.place_word(24, 2, 7, Origin::Peer).expect("in range");
        let mut wants = Wants::new(3, 100, PrePaging::Around(8));
        assert_eq!(wants.poll(&image, LATER), None);
        image.demand(20);
        let ahead = vec![range(21, 3), range(26, 3), range(16, 4)];
        assert_eq!(wants.poll(&image, LATER), Some(Want { vm: 3, pages: vec![20], ahead }));
        // On its way ahead: a guest waits for it now, so it is named, and its new neighbours are asked for.
        image.demand(28);
        assert_eq!(
            wants.poll(&image, LATER),
            Some(Want { vm: 3, pages: vec![28], ahead: vec![range(29, 8)] })
        );
        image.demand(99);
        let ahead = vec![range(95, 4)];
        assert_eq!(wants.poll(&image, LATER), Some(Want { vm: 3, pages: vec![99], ahead }));
        assert_eq!(wants.poll(&image, LATER), None);
    }

    #[test]
    fn while_blocks_come_nothing_is_asked_for_twice() {
        let image = image();
        let mut wants = Wants::new(0, 100, PrePaging::Around(8));
        wants.restart(&image, LATER);
        let want = |page| Some(Want { vm: 0, pages: vec![page], ahead: vec![] });
        image.demand(20);
        assert_eq!(wants.poll(&image, LATER), want(20), "they are only just expected");
        image.place_word(90, 2, 7, Origin::Block).expect("in range");
        image.demand(40);
        assert_eq!(wants.poll(&image, LATER + BLOCKS_STALL), want(40), "one came just now");
        image.place_word(20, 1, 7, Origin::Sender).expect("in range");
        image.demand(60);
        let asked = wants.poll(&image, LATER + 2 * BLOCKS_STALL).expect("wanted");
        assert_eq!(asked.ahead, [range(61, 8), range(56, 4)], "none came for long");
    }

    #[test]
    fn another_connection_is_asked_for_what_is_still_missing() {
        let image = image();
        let mut wants = Wants::new(0, 100, PrePaging::Off);
        for page in [5, 90, 40] {
            image.demand(page);
        }
        assert_eq!(wants.poll(&image, LATER).map(|want| want.pages), Some(vec![5, 90, 40]));
        image.place_word(90, 1, 0, Origin::Sender).expect("in range");
        wants.restart(&image, LATER);
        image.demand(1);
        assert_eq!(wants.poll(&image, LATER).map(|want| want.pages), Some(vec![5, 40, 1]));
        assert_eq!(wants.poll(&image, LATER), None);
    }
}
