//! A bitmap that many threads change without a lock.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// One bit a page. Setting releases and reading acquires: who sees a bit sees what was done before it was set.
pub(super) struct Bits(Box<[AtomicU64]>);

impl Bits {
    pub(super) fn new(pages: u32) -> Self {
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn get(&self, page: u32) -> bool {
        self.word(page / 64) >> (page % 64) & 1 == 1
    }

    /// The bits of pages `64 * index` and on.
    pub(super) fn word(&self, index: u32) -> u64 {
        self.0[index as usize].load(Ordering::Acquire)
    }

    /// Reads a word and clears it.
    pub(super) fn take_word(&self, index: u32) -> u64 {
        // Most words are empty, and a plain load leaves their cache lines shared.
        if self.word(index) == 0 { 0 } else { self.0[index as usize].swap(0, Ordering::AcqRel) }
    }

    pub(super) fn words(&self) -> u32 {
        u32::try_from(self.0.len()).expect("made for a number of pages below 2^32")
    }

    /// Sets one bit; whether it was clear.
    pub(super) fn set_one(&self, page: u32) -> bool {
        let mask = 1 << (page % 64);
        self.0[(page / 64) as usize].fetch_or(mask, Ordering::AcqRel) & mask == 0
    }

    /// Sets the bits; returns the runs of those that were clear.
    pub(super) fn set(&self, range: Range<u32>) -> Vec<Range<u32>> {
        let mut runs = Vec::new();
        each_word(range, |index, mask| {
            let before = self.0[index as usize].fetch_or(mask, Ordering::AcqRel);
            push_runs(&mut runs, index, mask & !before);
        });
        runs
    }

    pub(super) fn clear(&self, range: Range<u32>) {
        each_word(range, |index, mask| {
            self.0[index as usize].fetch_and(!mask, Ordering::AcqRel);
        });
    }

    /// The runs of set or of clear bits.
    pub(super) fn runs(&self, range: Range<u32>, set: bool) -> Vec<Range<u32>> {
        let mut runs = Vec::new();
        each_word(range, |index, mask| {
            let word = self.word(index);
            push_runs(&mut runs, index, mask & if set { word } else { !word });
        });
        runs
    }
}

/// Calls `f` with each word's index and the mask of the range's bits in it.
pub(super) fn each_word(range: Range<u32>, mut f: impl FnMut(u32, u64)) {
    let mut page = range.start;
    while page < range.end {
        let from = page % 64;
        let count = (64 - from).min(range.end - page);
        f(page / 64, (u64::MAX >> (64 - count)) << from);
        page += count;
    }
}

/// Appends the pages of a word's set bits; neighbours become one run.
pub(super) fn push_runs(runs: &mut Vec<Range<u32>>, index: u32, mut bits: u64) {
    while bits != 0 {
        let from = bits.trailing_zeros();
        let count = (bits >> from).trailing_ones();
        let first = index * 64 + from;
        match runs.last_mut() {
            Some(last) if last.end == first => last.end += count,
            _ => runs.push(first..first + count),
        }
        bits &= !((u64::MAX >> (64 - count)) << from);
    }
}

/// What ascending `runs` leave of `range`.
pub(super) fn gaps(range: &Range<u32>, runs: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut gaps = Vec::new();
    let mut at = range.start;
    for run in runs.iter().chain([&(range.end..range.end)]) {
        if at < run.start {
            gaps.push(at..run.start);
        }
        at = run.end;
    }
    gaps
}
