//! Which pages to ask the sender for: those that guests wait for, and around them.

use pages::Bitmap;
use std::ops::Range;
use std::time::Duration;
use vmm::lazy::LazyImage;
use wire::control::{PageRange, Paging, Want};
use wire::limits;

/// Blocks are not awaited any more when none came for so long.
const BLOCKS_STALL: Duration = Duration::from_millis(500);

/// From the beginning of a connection they are awaited for so long at least: the sender may give clones 1 s to start before it encodes
/// anything but their working sets.
const FIRST_BLOCK: Duration = Duration::from_millis(1500);

/// Two looks further apart count as so far apart: a host that did not run itself has not heard the group fall silent.
const LOOK_MAX: Duration = Duration::from_millis(250);

/// Pages of the working set asked for beside each fault, or in one go while none waits.
const WORKING_SET_AT_ONCE: usize = 32;

/// What has been asked for of one VM on this connection: the pages that guests wait for, and once blocks do not come any more,
/// others. While they come, everything asked for beside faults would be sent twice: to this host now, and to all hosts soon.
pub struct Wants {
    vm: u16,
    paging: Paging,
    /// The recorded working set, in first-touch order, and how much of it was asked for or is here.
    working_set: Vec<u32>,
    next: usize,
    asked: Bitmap,
    /// Demanded on an earlier connection and still missing.
    renewed: Vec<u32>,
    /// Pages that blocks had brought at the last look, and when that was.
    by_blocks: (u64, Duration),
    /// For how long blocks will be awaited from then on.
    patience: Duration,
}

impl Wants {
    /// Nothing asked for yet. Around a fault, memory is used in neighbourhoods, more often upwards ("bubbling", Hines and Gopalan,
    /// VEE 2009): half as many pages before it as behind.
    #[must_use]
    pub fn new(vm: u16, page_count: u32, paging: Paging) -> Self {
        Self {
            vm,
            paging,
            working_set: Vec::new(),
            next: 0,
            asked: Bitmap::new(page_count),
            renewed: Vec::new(),
            by_blocks: (0, Duration::ZERO),
            patience: Duration::ZERO,
        }
    }

    /// The recorded working set, for [`Paging::working_set`].
    pub fn set_working_set(&mut self, pages: &[u32]) {
        (self.working_set, self.next) = (pages.to_vec(), 0);
    }

    /// From now on another sender's advice.
    pub fn set_paging(&mut self, paging: Paging) {
        self.paging = paging;
        self.set_working_set(&[]);
    }

    /// A connection begins: what guests wait for is asked for anew.
    pub fn restart(&mut self, image: &LazyImage, now: Duration) {
        (self.by_blocks.1, self.patience) = (now, FIRST_BLOCK);
        self.asked = Bitmap::new(image.page_count());
        self.next = 0;
        self.renewed = image.outstanding();
        self.renewed.reverse();
    }

    /// The next message, if there is something to ask for.
    pub fn poll(&mut self, image: &LazyImage, now: Duration) -> Option<Want> {
        let blocks_come = self.blocks_come(image, now);
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
        if self.paging.working_set && !blocks_come {
            self.ask_for_working_set(image, room, &mut want);
        }
        (!want.pages.is_empty() || !want.ahead.is_empty()).then_some(want)
    }

    /// Whether blocks are still awaited.
    fn blocks_come(&mut self, image: &LazyImage, now: Duration) -> bool {
        let stats = image.stats();
        let by_blocks = stats.here - stats.from_sender - stats.from_peers;
        let (before, at) = std::mem::replace(&mut self.by_blocks, (by_blocks, now));
        self.patience = self.patience.saturating_sub(now.saturating_sub(at).min(LOOK_MAX));
        if by_blocks != before {
            self.patience = self.patience.max(BLOCKS_STALL);
        }
        !self.patience.is_zero()
    }

    /// The next missing pages of the working set.
    fn ask_for_working_set(&mut self, image: &LazyImage, room: usize, want: &mut Want) {
        let most = room.min(WORKING_SET_AT_ONCE * want.pages.len().max(1));
        let mut count = 0;
        while count < most
            && let Some(page) = self.working_set.get(self.next).copied()
        {
            self.next += 1;
            if page < image.page_count() && !image.is_here(page) && self.asked.set(page) {
                push(&mut want.ahead, page);
                count += 1;
            }
        }
    }

    fn around(&self, page: u32, image: &LazyImage) -> [Range<u32>; 2] {
        let count = u32::from(self.paging.around);
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

    fn around(around: u16) -> Paging {
        Paging { around, ..Paging::default() }
    }

    fn range(first: u32, count: u32) -> PageRange {
        PageRange { first, count }
    }

    #[test]
    fn neighbours_are_asked_for_once_and_only_if_missing() {
        let image = image();
        image.place_word(24, 2, 7, Origin::Peer).expect("in range");
        let mut wants = Wants::new(3, 100, around(8));
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
        let mut wants = Wants::new(0, 100, around(8));
        wants.restart(&image, LATER);
        let want = |page| Some(Want { vm: 0, pages: vec![page], ahead: vec![] });
        image.demand(20);
        assert_eq!(wants.poll(&image, LATER), want(20), "they are only just expected");
        image.place_word(90, 2, 7, Origin::Block).expect("in range");
        image.demand(40);
        assert_eq!(wants.poll(&image, LATER + BLOCKS_STALL), want(40), "one came just now");
        image.place_word(20, 1, 7, Origin::Sender).expect("in range");
        image.demand(70);
        assert_eq!(
            wants.poll(&image, LATER + 9 * BLOCKS_STALL),
            want(70),
            "this host did not look meanwhile"
        );
        let late = silence(&mut wants, &image, LATER + 9 * BLOCKS_STALL);
        image.demand(60);
        let asked = wants.poll(&image, late).expect("wanted");
        assert_eq!(asked.ahead, [range(61, 8), range(56, 4)], "none came for long");
    }

    /// Looks now and then for as long as the first block is awaited; when that was over.
    fn silence(wants: &mut Wants, image: &LazyImage, from: Duration) -> Duration {
        let looks = 1 + u32::try_from(FIRST_BLOCK.as_millis() / LOOK_MAX.as_millis()).expect("few");
        (1..=looks).for_each(|look| drop(wants.poll(image, from + look * LOOK_MAX)));
        from + looks * LOOK_MAX
    }

    #[test]
    fn another_connection_is_asked_for_what_is_still_missing() {
        let image = image();
        let mut wants = Wants::new(0, 100, Paging::default());
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

    #[test]
    fn a_working_set_is_asked_for_in_its_order_once_blocks_stall() {
        let image = image();
        let mut wants = Wants::new(0, 100, Paging { working_set: true, ..Paging::default() });
        wants.set_working_set(&[7, 8, 3, 50, 99]);
        wants.restart(&image, LATER);
        image.place_word(8, 1, 7, Origin::Block).expect("in range");
        assert_eq!(wants.poll(&image, LATER), None, "blocks bring it");
        let mut looks = (1..).map(|look| LATER + look * LOOK_MAX);
        let (stalled, want) =
            looks.find_map(|look| Some((look, wants.poll(&image, look)?))).expect("asked for");
        assert_eq!(stalled, LATER + FIRST_BLOCK, "the sender may have held all others back until then");
        assert_eq!(
            want,
            Want { vm: 0, pages: vec![], ahead: vec![range(7, 1), range(3, 1), range(50, 1), range(99, 1)] }
        );
        assert_eq!(wants.poll(&image, stalled), None, "once");
        image.demand(50);
        assert_eq!(
            wants.poll(&image, stalled).map(|want| want.pages),
            Some(vec![50]),
            "but a guest waits now"
        );
        image.place_word(60, 1, 7, Origin::Block).expect("in range");
        assert!(wants.blocks_come(&image, stalled) && wants.blocks_come(&image, stalled + LOOK_MAX));
        assert!(!wants.blocks_come(&image, stalled + BLOCKS_STALL), "from then on it is soon seen");
    }
}
