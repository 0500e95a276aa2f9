//! A VM's recorded working set as it is told, and whether its clones can start on it.

use pages::Bitmap;
use std::time::Duration;
use vmm::lazy::LazyImage;
use wire::control::{FirstTouched, GuestOffer};

/// See the module's text.
pub(super) struct WorkingSet {
    expected: usize,
    wait: Duration,
    pages: Vec<u32>,
    /// Those before this place are here.
    here: usize,
    /// Attachments were here from then on, on the clock of this connection.
    since: Option<Duration>,
}

impl WorkingSet {
    pub(super) fn new(offer: &GuestOffer) -> Self {
        let wait = Duration::from_millis(offer.paging.wait_ms.into());
        Self { expected: offer.working_set as usize, wait, pages: Vec::new(), here: 0, since: None }
    }

    /// Another connection begins: it tells all of it anew.
    pub(super) fn restart(&mut self) {
        self.pages.clear();
        (self.here, self.since) = (0, None);
    }

    /// Takes in a part.
    ///
    /// # Errors
    /// In words; the sender is not to be trusted then.
    pub(super) fn take(&mut self, part: &FirstTouched, page_count: u32) -> Result<(), String> {
        if self.pages.len() + part.pages.len() > self.expected {
            return Err(format!("a working set of VM {} longer than the offered {}", part.vm, self.expected));
        }
        self.pages.extend(&part.pages);
        if self.pages.len() == self.expected {
            let mut seen = Bitmap::new(page_count);
            if let Some(page) = self.pages.iter().find(|page| **page >= page_count || !seen.set(**page)) {
                return Err(format!("a working set of VM {} with page {page} twice, or beyond it", part.vm));
            }
        }
        Ok(())
    }

    /// All of it, once it was told.
    pub(super) fn whole(&self) -> Option<&[u32]> {
        (self.pages.len() == self.expected).then_some(&self.pages)
    }

    /// Clones wait for it.
    pub(super) fn is_awaited(&self) -> bool {
        self.since.is_some()
    }

    /// Whether clones may start, now that their attachments are here: its pages are here too, or were waited for long enough.
    pub(super) fn is_ready(&mut self, image: &LazyImage, now: Duration) -> bool {
        if self.expected == 0 || self.wait.is_zero() {
            return true;
        }
        let since = *self.since.get_or_insert(now);
        while self.pages.get(self.here).is_some_and(|page| image.is_here(*page)) {
            self.here += 1;
        }
        self.here == self.expected || now >= since + self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::lazy::Origin;
    use wire::control::Paging;

    fn offered(working_set: u32, wait_ms: u16) -> WorkingSet {
        WorkingSet::new(&GuestOffer {
            leaves: None,
            vm: 0,
            kind: String::new(),
            fingerprint: String::new(),
            attachments: Vec::new(),
            clones: Vec::new(),
            working_set,
            paging: Paging { wait_ms, ..Paging::default() },
        })
    }

    fn part(pages: &[u32]) -> FirstTouched {
        FirstTouched { vm: 0, pages: pages.to_vec() }
    }

    #[test]
    fn clones_wait_for_it_but_not_for_ever() {
        let image = LazyImage::memfd("working", 10).expect("memfd");
        let now = Duration::from_secs(5);
        assert!(offered(0, 100).is_ready(&image, now), "none was recorded");
        assert!(offered(2, 0).is_ready(&image, now), "nobody is to wait");
        let mut set = offered(2, 100);
        assert!(!set.is_ready(&image, now) && set.is_awaited());
        set.take(&part(&[7]), 10).expect("offered");
        set.take(&part(&[2]), 10).expect("offered");
        image.place_word(7, 1, 1, Origin::Block).expect("in range");
        assert!(!set.is_ready(&image, now));
        assert!(set.is_ready(&image, now + Duration::from_millis(100)), "long enough");
        image.place_word(2, 1, 1, Origin::Block).expect("in range");
        assert!(set.is_ready(&image, now));
    }

    #[test]
    fn one_that_makes_no_sense_is_refused() {
        for pages in [&[1, 1][..], &[1, 10], &[1, 2, 3]] {
            assert!(offered(2, 100).take(&part(pages), 10).is_err(), "{pages:?}");
        }
    }
}
