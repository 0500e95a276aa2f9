//! A stand-in for a virtual machine: a thread that touches every page of its memory in an order of its own, waits for those
//! that are missing as a vCPU does, and compares every byte.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pages::{PAGE_SIZE, Page};
use receiver::guests::{CloneSpec, Launch, Ward};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vmm::lazy::{Demand, News, Origin};
use wire::control::FaultFigures;

/// Pages of the VM: 8 MiB.
pub(crate) const PAGES: u32 = 2048;
pub(crate) const KIND: &str = "stand-in";
pub(crate) const STATE: &[u8] = b"registers and devices of a stand-in";

/// The memory that every clone must see: some zero pages, others that do not compress.
pub(crate) fn page_of(page: u32) -> Page {
    let mut bytes = [0; PAGE_SIZE];
    if page % 7 == 3 {
        return bytes;
    }
    let mut word = u64::from(page) + 1;
    for out in bytes.chunks_exact_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        out.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// What a clone does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stint {
    /// Touches and checks every page once, then ends.
    EveryPage,
    /// The same, but clones with odd numbers cannot start.
    FailIfOdd,
}

/// Launches stand-ins; counts pages that they checked.
pub(crate) struct Launcher {
    pub(crate) stint: Stint,
    pub(crate) checked: Arc<AtomicU64>,
    /// Pages that clones had to wait for, among the first [`EARLY`] that each touched.
    pub(crate) early_waits: Arc<AtomicU64>,
}

/// Touches of a clone that count as its first ones.
pub(crate) const EARLY: u32 = 100;

/// The page that a clone touches at a step. Each clone has an order of its own: the stride is odd and the number of pages a power
/// of two.
pub(crate) fn touched(clone: u32, step: u32) -> u32 {
    step.wrapping_mul(2 * clone + 1367) % PAGES
}

impl Launch for Launcher {
    fn kind(&self) -> &str {
        KIND
    }

    fn check(&self, fingerprint: &str, attachments: &[&str]) -> Result<(), String> {
        if fingerprint != "any" || attachments != ["state"] {
            return Err(format!("{fingerprint} with {attachments:?}"));
        }
        Ok(())
    }

    fn run(&self, spec: &CloneSpec, ward: &Ward) -> Result<(), String> {
        if self.stint == Stint::FailIfOdd && spec.clone % 2 == 1 {
            return Err("an odd clone".into());
        }
        assert_eq!(spec.attachment("state"), Some(STATE));
        let mut news = spec.image.listen().map_err(|error| error.to_string())?;
        let mut faults = FaultFigures::default();
        for step in 0..PAGES {
            let page = touched(spec.clone, step);
            let before = faults.network();
            touch(page, &mut news, &mut faults, ward)?;
            if step < EARLY {
                self.early_waits.fetch_add(faults.network() - before, Ordering::Relaxed);
            }
            let right = page_of(page);
            if news.image().page(page) != Some(&right) {
                return Err(format!("page {page} is wrong"));
            }
            self.checked.fetch_add(1, Ordering::Relaxed);
            if step == 0 {
                ward.running();
            }
            ward.note_faults(faults);
        }
        Ok(())
    }
}

/// Waits for a page as a vCPU that faults on it.
fn touch(page: u32, news: &mut News, faults: &mut FaultFigures, ward: &Ward) -> Result<(), String> {
    let image = Arc::clone(news.image());
    let start = Instant::now();
    let mut waited = false;
    while image.demand(page) != Demand::Here {
        waited = true;
        if let Some(reason) = image.lost() {
            return Err(reason.to_owned());
        }
        if ward.is_stopped() || start.elapsed() > Duration::from_secs(60) {
            return Err(format!("page {page} did not come"));
        }
        let mut fds = [PollFd::new(news.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100_u16)).map_err(|error| error.to_string())?;
        news.drain(|_| ());
    }
    let counter = match (waited, image.origin(page)) {
        (false, _) => &mut faults.here,
        (true, Some(Origin::Sender)) => &mut faults.sender,
        (true, Some(Origin::Peer)) => &mut faults.peer,
        (true, _) => &mut faults.block,
    };
    *counter += 1;
    Ok(())
}
