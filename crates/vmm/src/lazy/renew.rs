//! Pages that come in newer versions than blocks have of them.

use super::bits::Bits;
use super::{LazyError, LazyImage, PAGE_BYTES};
use nix::fcntl::{FallocateFlags, fallocate};
use pages::Page;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Which pages blocks cannot bring any more.
pub(super) struct Renewals {
    /// Blocks are placed by its readers, so that none is in the middle of it when a page becomes stale.
    gate: RwLock<()>,
    any: AtomicBool,
    stale: Bits,
}

impl Renewals {
    pub(super) fn new(pages: u32) -> Self {
        Self { gate: RwLock::new(()), any: AtomicBool::new(false), stale: Bits::new(pages) }
    }

    /// What of a run a block may bring, as long as the guard is held.
    pub(super) fn current(&self, run: Range<u32>) -> (Option<RwLockReadGuard<'_, ()>>, Vec<Range<u32>>) {
        let guard = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let runs = if self.any.load(Relaxed) { self.stale.runs(run, false) } else { vec![run] };
        (Some(guard), runs)
    }
}

impl LazyImage {
    /// These pages are missing again, and no block brings them any more: their newest versions come from the sender alone.
    ///
    /// To be called before anybody reads the image but by [`copy_page`](Self::copy_page): a page that a guest has must not change.
    ///
    /// # Errors
    /// [`LazyError::OutOfRange`] (nothing is done), [`LazyError::System`] if old bytes cannot be taken away.
    pub fn renew(&self, first: u32, count: u32) -> Result<(), LazyError> {
        let end = u64::from(first) + u64::from(count);
        if end > u64::from(self.page_count) {
            return Err(LazyError::OutOfRange { first, end, page_count: self.page_count });
        }
        let all = first..first + count;
        let _alone = self.renewals.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.renewals.any.store(true, Relaxed);
        self.renewals.stale.set(all.clone());
        for run in self.here.runs(all, true) {
            let pages = |bits: &Bits| {
                bits.runs(run.clone(), true).iter().map(|run| u64::from(run.end - run.start)).sum()
            };
            self.zero_count.fetch_sub(pages(&self.zero), Relaxed);
            self.here_count.fetch_sub(u64::from(run.end - run.start), Relaxed);
            for (bits, count) in self.answered.iter().zip(&self.answered_count) {
                count.fetch_sub(pages(bits), Relaxed);
                bits.clear(run.clone());
            }
            self.here.clear(run.clone());
            self.zero.clear(run.clone());
            // A newer version of zeros is not written: nothing else may stand there.
            let offset = |page: u32| i64::try_from(u64::from(page) * PAGE_BYTES).unwrap_or(i64::MAX);
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&self.file, flags, offset(run.start), offset(run.end) - offset(run.start)).map_err(
                |source| LazyError::System { action: "take old pages away", source: source.into() },
            )?;
            self.claimed.clear(run);
        }
        Ok(())
    }

    /// All pages that were renewed so far, whether their newest versions are here or not.
    #[must_use]
    pub fn renewed(&self) -> Vec<Range<u32>> {
        self.renewals.stale.runs(0..self.page_count, true)
    }

    /// Copies a page that is here as it stands; it may be renewed meanwhile, and is any mixture then. Whether it could be read.
    #[must_use]
    pub fn copy_page(&self, page: u32, into: &mut Page) -> bool {
        self.is_here(page) && self.file.read_exact_at(into, u64::from(page) * PAGE_BYTES).is_ok()
    }

    /// Has all listeners look, as if there was news.
    pub fn wake_listeners(&self) {
        self.board.wake_all();
    }
}
