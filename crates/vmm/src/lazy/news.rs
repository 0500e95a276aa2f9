//! Telling listeners of new pages: a bit for each 64 pages and an eventfd, so that neither a slow listener nor a fast
//! source needs memory that grows.

use super::bits::{Bits, push_runs};
use super::{LazyError, LazyImage};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock};

/// What was posted for one listener.
struct Pigeonhole {
    /// Bit n: some of the pages `64 n` and on came since the last look.
    chunks: Bits,
    /// The eventfd is readable, or about to be.
    signalled: AtomicBool,
    event: EventFd,
}

impl Pigeonhole {
    fn signal(&self) {
        if !self.signalled.swap(true, SeqCst) {
            // Fails only if the counter is full, which one pending signal cannot make it.
            let _ = self.event.write(1);
        }
    }
}

/// The listeners of an image.
#[derive(Default)]
pub(super) struct Board(RwLock<Vec<Arc<Pigeonhole>>>);

impl Board {
    pub(super) fn post(&self, run: &Range<u32>) {
        for hole in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            hole.chunks.set(run.start / 64..run.end.div_ceil(64));
            hole.signal();
        }
    }

    pub(super) fn wake_all(&self) {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(|hole| hole.signal());
    }
}

/// One listener's view of an image: which pages came since it last looked. Ends when dropped.
pub struct News {
    image: Arc<LazyImage>,
    hole: Arc<Pigeonhole>,
    /// Words of the `here` bitmap as this listener knows them.
    seen: Vec<u64>,
}

impl News {
    pub(super) fn new(image: &Arc<LazyImage>) -> Result<Self, LazyError> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|source| LazyError::System { action: "make an eventfd", source: source.into() })?;
        let words = image.here.words();
        let hole =
            Arc::new(Pigeonhole { chunks: Bits::new(words), signalled: AtomicBool::new(false), event });
        let mut holes = image.board.0.write().unwrap_or_else(PoisonError::into_inner);
        if holes.len() >= LazyImage::LISTENERS_MAX {
            return Err(LazyError::Listeners(holes.len()));
        }
        holes.push(Arc::clone(&hole));
        drop(holes);
        // What came before is news too.
        hole.chunks.set(0..words);
        hole.signal();
        Ok(Self { image: Arc::clone(image), hole, seen: vec![0; words as usize] })
    }

    /// The image listened to.
    #[must_use]
    pub fn image(&self) -> &Arc<LazyImage> {
        &self.image
    }

    /// Calls `f` with ascending runs of pages that came since the last call, each page once, and makes the eventfd
    /// unreadable until further ones come. `false` if there were none (then perhaps the image is lost).
    pub fn drain(&mut self, mut f: impl FnMut(Range<u32>)) -> bool {
        // A nonblocking read of nothing fails, which is as well.
        let _ = self.hole.event.read();
        // Reads what a poster that found the signal standing had left there, so the chunks it set before are seen below.
        self.hole.signalled.swap(false, SeqCst);
        let mut runs: Vec<Range<u32>> = Vec::new();
        for index in 0..self.hole.chunks.words() {
            let mut chunks = self.hole.chunks.take_word(index);
            while chunks != 0 {
                let chunk = index * 64 + chunks.trailing_zeros();
                chunks &= chunks - 1;
                let here = self.image.here.word(chunk);
                let seen = &mut self.seen[chunk as usize];
                push_runs(&mut runs, chunk, here & !*seen);
                *seen |= here;
            }
        }
        let any = !runs.is_empty();
        runs.into_iter().for_each(&mut f);
        any
    }
}

impl AsFd for News {
    /// The eventfd: readable when [`News::drain`] has something, or the image is lost.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.hole.event.as_fd()
    }
}

impl Drop for News {
    fn drop(&mut self) {
        let mut holes = self.image.board.0.write().unwrap_or_else(PoisonError::into_inner);
        holes.retain(|hole| !Arc::ptr_eq(hole, &self.hole));
    }
}
