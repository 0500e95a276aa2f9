//! Which content stands on which page of a VM: a shuffled list of extents.

use super::{Fleet, PageCounts};
use crate::rng::Rng;

/// What kind of content an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Zero,
    Uniform,
    Repeated,
    System,
    Unique,
}

/// Consecutive pages whose contents are numbered `first`, `first + 1`, …
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) class: Class,
    pub(super) first: u32,
    pub(super) pages: u32,
}

impl Extent {
    /// From one page's content number to the next one's: a run of uniform pages repeats one word.
    pub(super) const fn step(&self) -> u32 {
        match self.class {
            Class::Zero | Class::Uniform => 0,
            Class::Repeated | Class::System | Class::Unique => 1,
        }
    }
}

/// Memory is fragmented by class. Longest extent of each: zero pages lie together most.
const ZERO_PAGES_MAX: u64 = 256;
const UNIFORM_PAGES_MAX: u64 = 8;
const UNIQUE_PAGES_MAX: u64 = 32;

/// A system's pages come in chunks (page cache read-ahead, kernel text) that are in a VM whole or not at all.
const SYSTEM_CHUNK_PAGES: u32 = 16;

/// How often a repeated content stands in its VM.
const REPEATS: u32 = 8;

/// A repeated content's neighbours are repeated ones too.
const REPEATED_RUN_PAGES: u32 = 2;

/// A few bytes a run of pages: about 1 byte a page in all.
pub(super) struct Layout(Vec<Extent>);

impl Layout {
    pub(super) fn new(fleet: &Fleet, vm: u16) -> Self {
        let mut rng = Rng::of(fleet.seed, &[0x1a70, u64::from(vm)]);
        let share = |permille: u16| {
            let pages = u64::from(fleet.pages) * u64::from(permille) / 1_000;
            u32::try_from(pages).expect("a fraction of a u32")
        };
        let zero = share(fleet.mix.zero_permille);
        let uniform = share(fleet.mix.uniform_permille);
        let system = share(fleet.mix.system_permille);
        // A content that is to be found again needs a second page.
        let repeated = Some(share(fleet.mix.repeated_permille)).filter(|pages| *pages > 1).unwrap_or(0);
        let unique = fleet.pages - zero - uniform - system - repeated;

        let mut extents = Vec::new();
        split(&mut extents, &mut rng, Class::Zero, zero, ZERO_PAGES_MAX);
        split(&mut extents, &mut rng, Class::Uniform, uniform, UNIFORM_PAGES_MAX);
        split(&mut extents, &mut rng, Class::Unique, unique, UNIQUE_PAGES_MAX);
        system_chunks(&mut extents, &mut rng, system);
        repeat(&mut extents, repeated);
        rng.shuffle(&mut extents);
        Self(extents)
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.0
    }

    pub(super) fn counts(&self, is_drifted: impl Fn(u32) -> bool) -> PageCounts {
        let mut counts = PageCounts::default();
        for extent in &self.0 {
            match extent.class {
                Class::Zero => counts.zero += extent.pages,
                Class::Uniform => counts.uniform += extent.pages,
                Class::Repeated => counts.repeated += extent.pages,
                Class::Unique => counts.unique += extent.pages,
                Class::System => {
                    let drifted =
                        (extent.first..extent.first + extent.pages).filter(|page| is_drifted(*page));
                    let drifted = u32::try_from(drifted.count()).expect("no more than the pages");
                    counts.drifted += drifted;
                    counts.system += extent.pages - drifted;
                }
            }
        }
        counts
    }
}

/// Cuts `pages` pages into extents of random length.
fn split(extents: &mut Vec<Extent>, rng: &mut Rng, class: Class, pages: u32, pages_max: u64) {
    let mut first = 0;
    while first < pages {
        let length = u32::try_from(rng.below(pages_max) + 1).expect("a short run").min(pages - first);
        extents.push(Extent { class, first, pages: length });
        first += length;
    }
}

/// Chooses four of each five chunks of a system's pages at random, to `pages` pages in all.
fn system_chunks(extents: &mut Vec<Extent>, rng: &mut Rng, pages: u32) {
    let needed = pages.div_ceil(SYSTEM_CHUNK_PAGES);
    let mut chunks: Vec<u32> = (0..needed + needed / 4).collect();
    rng.shuffle(&mut chunks);
    let mut left = pages;
    for chunk in chunks.into_iter().take(needed as usize) {
        let length = SYSTEM_CHUNK_PAGES.min(left);
        extents.push(Extent { class: Class::System, first: chunk * SYSTEM_CHUNK_PAGES, pages: length });
        left -= length;
    }
}

/// Lays each repeated content about [`REPEATS`] times, never once.
fn repeat(extents: &mut Vec<Extent>, pages: u32) {
    let contents = (pages / REPEATS).max(1);
    let mut page = 0;
    while page < pages {
        let first = page % contents;
        let length = REPEATED_RUN_PAGES.min(contents - first).min(pages - page);
        extents.push(Extent { class: Class::Repeated, first, pages: length });
        page += length;
    }
}
