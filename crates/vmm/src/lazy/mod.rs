//! A VM's memory that is still being filled: [`LazyImage`], a shared-memory file whose pages are *missing*, *here* or
//! *here and zero*.
//!
//! ```text
//! blocks, answers to demands ──place──▶ LazyImage ──news──▶ listeners: page servers, QEMU emitters
//!                        driver ◀──next_demand── queue ◀──demand── their guests' page faults
//! ```
//!
//! **A page is placed once.** Whoever places it first wins; another attempt must bring the same bytes ([`LazyError::Differs`]
//! otherwise) and writes nothing. So the bytes of a page that is here never change, and its mapping may be handed out.
//!
//! **No wake-up is lost**, if a page server holds its [`News`] before the first fault and, at a fault, calls
//! [`LazyImage::demand`]: either that says [`Demand::Here`], or the page comes up in a later [`News::drain`].
//!
//! No lock is held while bytes are written or waited for, and none is taken for a page. Memory beside the file: four
//! bits a page, one more for each listener.

mod bits;
mod demand;
mod error;
mod news;
mod place;
mod renew;
#[cfg(test)]
mod tests;

pub use demand::Demand;
pub use error::LazyError;
pub use news::News;
pub use place::{LazyStats, Origin, Placed};

use bits::Bits;
use demand::Demands;
use memmap2::{MmapOptions, MmapRaw};
use news::Board;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use pages::{PAGE_SIZE, Page};
use renew::Renewals;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// See the module's text. Shared between threads as `Arc<LazyImage>`.
pub struct LazyImage {
    file: File,
    map: MmapRaw,
    page_count: u32,
    /// Someone writes the page, or it is here.
    claimed: Bits,
    here: Bits,
    zero: Bits,
    /// Came in answer to a demand: from the sender, from a peer.
    answered: [Bits; 2],
    board: Board,
    demands: Demands,
    lost: OnceLock<String>,
    here_count: AtomicU64,
    zero_count: AtomicU64,
    answered_count: [AtomicU64; 2],
    duplicates: AtomicU64,
    renewals: Renewals,
}

impl LazyImage {
    /// Listeners that one image can have: clones on one host, and some more.
    pub const LISTENERS_MAX: usize = 1024;

    /// An image of `page_count` missing pages in a new memfd, which nobody can shrink or grow.
    ///
    /// # Errors
    /// [`LazyError::Length`], [`LazyError::System`].
    pub fn memfd(name: &str, page_count: u32) -> Result<Self, LazyError> {
        let system = |action| move |source: nix::Error| LazyError::System { action, source: source.into() };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(name, flags).map_err(system("make a memfd"))?;
        let file = File::from(fd);
        let len = u64::from(page_count) * PAGE_BYTES;
        file.set_len(len).map_err(|source| LazyError::System { action: "size a memfd", source })?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(system("seal a memfd"))?;
        Self::of(file, len)
    }

    /// An image over a file on a tmpfs, opened for reading and writing, whose length stays what it is now. All pages are
    /// missing, whatever the file holds; see [`LazyImage::adopt`].
    ///
    /// # Errors
    /// [`LazyError::NotSharedMemory`] for a file on a disk, [`LazyError::Length`], [`LazyError::System`].
    pub fn over(file: File, path: &Path) -> Result<Self, LazyError> {
        let system =
            |source: nix::Error| LazyError::System { action: "inspect a file", source: source.into() };
        if fstatfs(&file).map_err(system)?.filesystem_type() != TMPFS_MAGIC {
            return Err(LazyError::NotSharedMemory { path: path.to_path_buf() });
        }
        let at = file.metadata().map_err(|source| LazyError::System { action: "inspect a file", source })?;
        Self::of(file, at.len())
    }

    fn of(file: File, len: u64) -> Result<Self, LazyError> {
        let pages =
            u32::try_from(len / PAGE_BYTES).ok().filter(|count| *count > 0 && len.is_multiple_of(PAGE_BYTES));
        let page_count = pages.ok_or(LazyError::Length { len })?;
        let map_len = usize::try_from(len).map_err(|_| LazyError::Length { len })?;
        let map = MmapOptions::new()
            .len(map_len)
            .map_raw_read_only(&file)
            .map_err(|source| LazyError::System { action: "map a VM's memory", source })?;
        let bits = || Bits::new(page_count);
        Ok(Self {
            file,
            map,
            page_count,
            claimed: bits(),
            here: bits(),
            zero: bits(),
            answered: [bits(), bits()],
            board: Board::default(),
            demands: Demands::new(page_count),
            lost: OnceLock::new(),
            here_count: AtomicU64::new(0),
            zero_count: AtomicU64::new(0),
            answered_count: [const { AtomicU64::new(0) }; 2],
            duplicates: AtomicU64::new(0),
            renewals: Renewals::new(page_count),
        })
    }

    /// Pages of 4096 bytes.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// The file, page n at offset 4096 n. A guest may map it privately; nobody but this image may write to it.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where this process has the file mapped, read-only: what `UFFDIO_COPY` copies from. Only pages that are here may
    /// be read, the mapping lives as long as the image.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.map.as_ptr()
    }

    /// Whether the page is here; its bytes are then seen by this thread. `false` beyond the image.
    #[must_use]
    pub fn is_here(&self, page: u32) -> bool {
        page < self.page_count && self.here.get(page)
    }

    /// Whether the page is here and zero. A page of zeros may also be here as bytes.
    #[must_use]
    pub fn is_zero(&self, page: u32) -> bool {
        self.is_here(page) && self.zero.get(page)
    }

    /// The pages of `range` that are here and zero, as ascending runs.
    #[must_use]
    pub fn zeros(&self, range: Range<u32>) -> Vec<Range<u32>> {
        let mut runs = Vec::new();
        bits::each_word(range.start..range.end.min(self.page_count), |index, mask| {
            bits::push_runs(&mut runs, index, mask & self.here.word(index) & self.zero.word(index));
        });
        runs
    }

    /// Where a page that is here came from.
    #[must_use]
    pub fn origin(&self, page: u32) -> Option<Origin> {
        self.is_here(page).then(|| match (self.answered[0].get(page), self.answered[1].get(page)) {
            (true, _) => Origin::Sender,
            (_, true) => Origin::Peer,
            _ => Origin::Block,
        })
    }

    /// The page, if it is here. A zero page takes memory once it was read this way.
    #[must_use]
    pub fn page(&self, page: u32) -> Option<&Page> {
        if !self.is_here(page) {
            return None;
        }
        // SAFETY: the page is within the mapping, which lives as long as `self`, is aligned for bytes, and, being here,
        // was written before (the load of its bit acquires) and is never written again by this image; `file` and `over`
        // demand the same of others.
        Some(unsafe { &*self.map.as_ptr().add(page as usize * PAGE_SIZE).cast::<Page>() })
    }

    /// The pages of `range` that are missing, as ascending runs.
    #[must_use]
    pub fn missing(&self, range: Range<u32>) -> Vec<Range<u32>> {
        self.here.runs(range.start..range.end.min(self.page_count), false)
    }

    /// Number of pages that are missing.
    #[must_use]
    pub fn missing_count(&self) -> u32 {
        u32::try_from(u64::from(self.page_count).saturating_sub(self.here_count.load(Relaxed)))
            .unwrap_or(u32::MAX)
    }

    /// Whether every page is here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.here_count.load(Relaxed) == u64::from(self.page_count)
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> LazyStats {
        let (demanded, suppressed) = self.demands.counts();
        LazyStats {
            here: self.here_count.load(Relaxed),
            zero: self.zero_count.load(Relaxed),
            from_sender: self.answered_count[0].load(Relaxed),
            from_peers: self.answered_count[1].load(Relaxed),
            duplicates: self.duplicates.load(Relaxed),
            demanded,
            suppressed,
        }
    }

    /// A new listener, which is told of all pages from the first on. Costs one bit a page.
    ///
    /// # Errors
    /// [`LazyError::Listeners`], [`LazyError::System`].
    pub fn listen(self: &Arc<Self>) -> Result<News, LazyError> {
        News::new(self)
    }

    /// A guest needs the page now. Queued once, however often it is demanded.
    pub fn demand(&self, page: u32) -> Demand {
        if page >= self.page_count {
            return Demand::Beyond;
        }
        self.demands.demand(page, &self.here)
    }

    /// The next demanded page that is still missing, oldest first.
    #[must_use]
    pub fn next_demand(&self) -> Option<u32> {
        self.demands.next(&self.here)
    }

    /// All pages demanded and still missing, ascending: who asked for them elsewhere is gone and they must be asked for anew.
    /// The queue is empty afterwards.
    #[must_use]
    pub fn outstanding(&self) -> Vec<u32> {
        self.demands.outstanding(&self.here, self.page_count)
    }

    /// Calls `wake` after each page that is queued. Set once, before guests run.
    pub fn on_demand(&self, wake: impl Fn() + Send + Sync + 'static) {
        self.demands.set_waker(Box::new(wake));
    }

    /// What is missing will never come: every listener is woken, and finds the reason in [`LazyImage::lost`]. Only the first
    /// reason counts.
    pub fn lose(&self, reason: &str) {
        if self.lost.set(reason.to_owned()).is_ok() {
            self.board.wake_all();
        }
    }

    /// Why what is missing will never come, if so. Guests that touch it must be ended, not left to hang.
    #[must_use]
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }
}

impl std::fmt::Debug for LazyImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LazyImage")
            .field("page_count", &self.page_count)
            .field("stats", &self.stats())
            .finish()
    }
}
