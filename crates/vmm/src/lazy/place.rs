//! Placing pages: claimed first, then written, then made known.

use super::bits;
use super::{LazyError, LazyImage, PAGE_BYTES};
use pages::{PAGE_SIZE, Page};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

/// Pages in the buffer that a repeated word is written from.
const PATTERN_PAGES: u32 = 16;

/// Where a page's bytes came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Verified blocks (multicast, or sent whole), or a template on this machine.
    Block,
    /// The sender's answer to a demand.
    Sender,
    /// Verified blocks that another receiver brought.
    Peer,
}

/// What a placement did, in pages.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Written and made known by this call.
    pub new: u32,
    /// Here before, with the same bytes.
    pub before: u32,
}

/// Counters of an image, in pages.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LazyStats {
    /// Here, zero ones counted.
    pub here: u64,
    /// Here and zero: no bytes stand in the file.
    pub zero: u64,
    /// Of those here, from the sender's answers to demands.
    pub from_sender: u64,
    /// Of those here, from other receivers.
    pub from_peers: u64,
    /// Brought again after they were here.
    pub duplicates: u64,
    /// Demanded while missing, each once.
    pub demanded: u64,
    /// Demanded again while under way.
    pub suppressed: u64,
}

impl LazyImage {
    /// Places consecutive pages from `first` on; `bytes` is a multiple of 4096. When it returns, all are here, those that
    /// another thread was placing included.
    ///
    /// # Errors
    /// [`LazyError::OutOfRange`] (nothing is placed), [`LazyError::Differs`] (all others are), [`LazyError::System`]
    /// when memory is out (what was not written stays missing).
    pub fn place(&self, first: u32, bytes: &[u8], origin: Origin) -> Result<Placed, LazyError> {
        let count = u32::try_from(bytes.len() / PAGE_SIZE).unwrap_or(u32::MAX);
        let part = |run: &Range<u32>| {
            let at = (run.start - first) as usize * PAGE_SIZE;
            &bytes[at..at + run.len() * PAGE_SIZE]
        };
        let write = |run: &Range<u32>| self.file.write_all_at(part(run), u64::from(run.start) * PAGE_BYTES);
        let same = |page: u32| self.page(page).is_some_and(|here| here == part(&(page..page + 1)));
        self.place_by(first, count, origin, false, &write, &same)
    }

    /// Places `count` pages, each one word repeated. Zero pages are not written: the file has holes there.
    ///
    /// # Errors
    /// As [`LazyImage::place`].
    pub fn place_word(&self, first: u32, count: u32, word: u64, origin: Origin) -> Result<Placed, LazyError> {
        let same = |page: u32| {
            let equal = |here: &Page| here.chunks_exact(8).all(|bytes| bytes == word.to_le_bytes());
            word == 0 && self.is_zero(page) || self.page(page).is_some_and(equal)
        };
        if word == 0 {
            return self.place_by(first, count, origin, true, &|_| Ok(()), &same);
        }
        let size = count.min(PATTERN_PAGES) as usize * PAGE_SIZE;
        let pattern: Vec<u8> = word.to_le_bytes().into_iter().cycle().take(size).collect();
        let write = |run: &Range<u32>| {
            let mut at = u64::from(run.start) * PAGE_BYTES;
            let end = u64::from(run.end) * PAGE_BYTES;
            while at < end {
                let part = pattern.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                self.file.write_all_at(&pattern[..part], at)?;
                at += part as u64;
            }
            Ok(())
        };
        self.place_by(first, count, origin, false, &write, &same)
    }

    /// Takes pages as they stand in the file, from an earlier run or a template that the caller vouches for.
    ///
    /// # Errors
    /// As [`LazyImage::place`], except that nothing is written.
    pub fn adopt(&self, first: u32, count: u32) -> Result<Placed, LazyError> {
        self.place_by(first, count, Origin::Block, false, &|_| Ok(()), &|_| true)
    }

    /// The claim of each page, its bytes, and then its bit: in this order. `same` judges pages that were here before.
    pub(super) fn place_by(
        &self,
        first: u32,
        count: u32,
        origin: Origin,
        zero: bool,
        write: &dyn Fn(&Range<u32>) -> io::Result<()>,
        same: &dyn Fn(u32) -> bool,
    ) -> Result<Placed, LazyError> {
        let end = u64::from(first) + u64::from(count);
        if end > u64::from(self.page_count) {
            return Err(LazyError::OutOfRange { first, end, page_count: self.page_count });
        }
        let all = first..first + count;
        let (mut placed, mut differs) = (Placed::default(), None);
        // A block brings the version that it was made of, whoever brings the block.
        let (_current, mut unknown) = match origin {
            Origin::Block | Origin::Peer => self.renewals.current(all),
            Origin::Sender => (None, vec![all]),
        };
        while let Some(range) = unknown.pop() {
            let mine = self.claimed.set(range.clone());
            for (index, run) in mine.iter().enumerate() {
                if let Err(source) = write(run) {
                    mine[index..].iter().for_each(|run| self.claimed.clear(run.clone()));
                    return Err(LazyError::System { action: "write a VM's memory", source });
                }
                self.publish(run, origin, zero);
                placed.new += run.end - run.start;
            }
            for run in bits::gaps(&range, &mine) {
                for page in run {
                    if !self.await_page(page) {
                        // Who had it could not write it: now it is ours to place.
                        unknown.push(page..page + 1);
                    } else if same(page) {
                        placed.before += 1;
                    } else {
                        differs = Some(differs.map_or(page, |other: u32| other.min(page)));
                    }
                }
            }
        }
        self.duplicates.fetch_add(u64::from(placed.before), Relaxed);
        differs.map_or(Ok(placed), |page| Err(LazyError::Differs { page }))
    }

    fn publish(&self, run: &Range<u32>, origin: Origin, zero: bool) {
        let count = u64::from(run.end - run.start);
        match origin {
            Origin::Block => {}
            Origin::Sender | Origin::Peer => {
                let which = usize::from(origin == Origin::Peer);
                self.answered[which].set(run.clone());
                self.answered_count[which].fetch_add(count, Relaxed);
            }
        }
        if zero {
            self.zero.set(run.clone());
            self.zero_count.fetch_add(count, Relaxed);
        }
        self.here.set(run.clone());
        self.here_count.fetch_add(count, Relaxed);
        self.board.post(run);
    }

    /// Waits for a page that someone claimed; `false` if that failed. It takes as long as a `pwrite` of theirs.
    fn await_page(&self, page: u32) -> bool {
        while !self.here.get(page) {
            if !self.claimed.get(page) {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }
}
