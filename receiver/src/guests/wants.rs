//! Which pages to ask the sender for: those that guests wait for, and around them.

use pages::Bitmap;
use std::ops::Range;
use vmm::lazy::LazyImage;
use wire::control::{PageRange, Want};
use wire::limits;

/// Which pages are asked for beside those that guests wait for. Each can be switched off, and is measured (benches/clone).
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
}

impl Wants {
    pub(super) fn new(vm: u16, page_count: u32, pre_paging: PrePaging) -> Self {
        Self { vm, pre_paging, asked: Bitmap::new(page_count), renewed: Vec::new() }
    }

    /// A connection begins: what guests wait for is asked for anew.
    pub(super) fn restart(&mut self, image: &LazyImage) {
        self.asked = Bitmap::new(image.page_count());
        self.renewed = image.outstanding();
        self.renewed.reverse();
    }

    /// The next message, if there is something to ask for.
    pub(super) fn poll(&mut self, image: &LazyImage) -> Option<Want> {
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
            for range in self.around(page, image) {
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

    fn image() -> LazyImage {
        LazyImage::memfd("wants", 100).expect("memfd")
    }

    fn range(first: u32, count: u32) -> PageRange {
        PageRange { first, count }
    }

    #[test]
    fn neighbours_are_asked_for_once_and_only_if_missing() {
        let image = image();
        image.place_word(24, 2, 7, Origin::Block).expect("in range");
        let mut wants = Wants::new(3, 100, PrePaging::Around(8));
        assert_eq!(wants.poll(&image), None);
        image.demand(20);
        let ahead = vec![range(21, 3), range(26, 3), range(16, 4)];
        assert_eq!(wants.poll(&image), Some(Want { vm: 3, pages: vec![20], ahead }));
        // On its way ahead: a guest waits for it now, so it is named, and its new neighbours are asked for.
        image.demand(28);
        assert_eq!(wants.poll(&image), Some(Want { vm: 3, pages: vec![28], ahead: vec![range(29, 8)] }));
        image.demand(99);
        let ahead = vec![range(95, 4)];
        assert_eq!(wants.poll(&image), Some(Want { vm: 3, pages: vec![99], ahead }));
        assert_eq!(wants.poll(&image), None);
    }

    #[test]
    fn another_connection_is_asked_for_what_is_still_missing() {
        let image = image();
        let mut wants = Wants::new(0, 100, PrePaging::Off);
        for page in [5, 90, 40] {
            image.demand(page);
        }
        assert_eq!(wants.poll(&image).map(|want| want.pages), Some(vec![5, 90, 40]));
        image.place_word(90, 1, 0, Origin::Sender).expect("in range");
        wants.restart(&image);
        image.demand(1);
        assert_eq!(wants.poll(&image).map(|want| want.pages), Some(vec![5, 40, 1]));
        assert_eq!(wants.poll(&image), None);
    }
}
