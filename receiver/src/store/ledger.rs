//! Who wrote each page last, which blocks are held, and what is still missing. No I/O here.
//!
//! A page's word is the number of the block that wrote it last (0: none) and one bit that says whether the image may
//! hold anything but zeros there: 4 bytes a page. The rules that make resuming safe:
//!
//! - A block is *live* only while it owns every page it placed: whoever takes one page from it must kill it first,
//!   in the journal too ([`Ledger::survey`] names the victims).
//! - A block in flight owns its pages alone: another that needs one of them waits. So the bytes of a page and
//!   its owner never disagree, whatever the order of threads.
//! - A page counts as done only if its owner was placed or confirmed in this session.

use std::collections::HashMap;

use super::placement::{Fill, Piece};
use super::record::{Digest, Run};

const DATA: u32 = 1 << 31;
const NOBODY: u32 = 0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Its pages may hold other bytes than its own.
    Dead,
    /// Being written.
    InFlight,
    /// Holds all its pages.
    Live,
}

struct Block {
    phase: Phase,
    /// Placed or confirmed in this session.
    counted: bool,
    digest: Digest,
    /// Where its record stands in the journal.
    offset: u64,
    /// Pages by VM.
    pages: Box<[(u32, u32)]>,
}

struct VmPages {
    words: Vec<u32>,
    remaining: u32,
    in_flight: u32,
}

/// What stands in a block's way.
pub(super) enum Survey {
    /// A block in flight owns one of the pages.
    Wait,
    /// Nothing, once these live blocks are killed.
    Free { victims: Vec<u32> },
}

pub(super) struct Ledger {
    vms: Vec<VmPages>,
    blocks: Vec<Block>,
    /// Blocks live or in flight.
    by_digest: HashMap<Digest, u32>,
}

impl Ledger {
    pub(super) fn new(page_counts: impl Iterator<Item = u32>) -> Self {
        let vms = page_counts
            .map(|pages| VmPages { words: vec![NOBODY; pages as usize], remaining: pages, in_flight: 0 })
            .collect();
        // Number 0 stands for nobody.
        let nobody =
            Block { phase: Phase::Dead, counted: false, digest: [0; 32], offset: 0, pages: Box::default() };
        Self { vms, blocks: vec![nobody], by_digest: HashMap::new() }
    }

    /// Takes in a live record of an earlier session.
    pub(super) fn adopt(&mut self, digest: Digest, runs: &[Run]) -> u32 {
        let id = self.add(digest, Phase::Live, runs);
        let mut robbed = Vec::new();
        for run in runs {
            let words = self.vms[run.slot as usize].words_of(*run);
            let mut last = NOBODY;
            for word in words {
                if *word != last && *word != NOBODY && *word != id {
                    robbed.push(*word);
                }
                last = *word;
                *word = id;
            }
        }
        // A journal of ours kills a record before another takes its pages, so there are none; not to be relied on.
        for victim in robbed {
            self.kill(victim);
        }
        id
    }

    /// Notes that pages `first..end` may hold something else than zeros.
    pub(super) fn note_data(&mut self, slot: usize, first: usize, end: usize) {
        for word in &mut self.vms[slot].words[first..end] {
            *word |= DATA;
        }
    }

    pub(super) fn phase(&self, id: u32) -> Phase {
        self.blocks[id as usize].phase
    }

    pub(super) fn offset(&self, id: u32) -> u64 {
        self.blocks[id as usize].offset
    }

    pub(super) fn set_offset(&mut self, id: u32, offset: u64) {
        self.blocks[id as usize].offset = offset;
    }

    /// Digests of the live blocks that this session has not announced yet.
    pub(super) fn held_digests(&self) -> Vec<Digest> {
        let held = |block: &&Block| block.phase == Phase::Live && !block.counted;
        self.blocks.iter().filter(held).map(|block| block.digest).collect()
    }

    /// Digests of the live blocks.
    pub(super) fn live_digests(&self) -> Vec<Digest> {
        self.blocks.iter().filter(|block| block.phase == Phase::Live).map(|block| block.digest).collect()
    }

    /// Whether a live block owns a page of the VM.
    pub(super) fn any_held(&self) -> Vec<bool> {
        let mut any = vec![false; self.vms.len()];
        for block in self.blocks.iter().filter(|block| block.phase == Phase::Live) {
            for &(slot, _) in &block.pages {
                any[slot as usize] = true;
            }
        }
        any
    }

    pub(super) fn remaining(&self, slot: usize) -> u32 {
        self.vms[slot].remaining
    }

    /// Blocks being written into the VM.
    pub(super) fn in_flight(&self, slot: usize) -> u32 {
        self.vms[slot].in_flight
    }

    /// The phase of the block with this digest, unless it is dead or unknown.
    pub(super) fn lookup(&self, digest: &Digest) -> Option<Phase> {
        self.by_digest.get(digest).map(|&id| self.phase(id))
    }

    /// Counts the pages of a live block as done; `false` if no live block has this digest.
    pub(super) fn confirm(&mut self, digest: &Digest) -> bool {
        let Some(&id) = self.by_digest.get(digest) else { return false };
        let block = &mut self.blocks[id as usize];
        if block.phase != Phase::Live {
            return false;
        }
        if !block.counted {
            block.counted = true;
            for &(slot, pages) in &block.pages {
                self.vms[slot as usize].remaining -= pages;
            }
        }
        true
    }

    /// What stands in the way of writing `pieces`.
    pub(super) fn survey(&self, pieces: &[Piece]) -> Survey {
        let mut victims = Vec::new();
        for piece in pieces {
            let mut last = NOBODY;
            for word in &self.vms[piece.run.slot as usize].words[piece.range()] {
                let id = word & !DATA;
                if id != last {
                    match self.phase(id) {
                        Phase::Dead => {}
                        Phase::InFlight => return Survey::Wait,
                        Phase::Live => victims.push(id),
                    }
                    last = id;
                }
            }
        }
        victims.sort_unstable();
        victims.dedup();
        Survey::Free { victims }
    }

    /// Takes trust from a live block. What it counted in this session stays counted.
    pub(super) fn kill(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        block.phase = Phase::Dead;
        if self.by_digest.get(&block.digest) == Some(&id) {
            self.by_digest.remove(&block.digest);
        }
    }

    /// Gives the pages to a new block in flight, whose victims are dead already. Returns its number and the pages of
    /// its zero runs that may not be zero in the image.
    pub(super) fn claim(&mut self, digest: Digest, pieces: &[Piece], runs: &[Run]) -> (u32, Vec<Run>) {
        let id = self.add(digest, Phase::InFlight, runs);
        let mut stale = Vec::new();
        for piece in pieces {
            let zero = piece.fill == Fill::Word(0);
            let vm = &mut self.vms[piece.run.slot as usize];
            let (mut last, mut last_counted) = (NOBODY, false);
            for (word, pfn) in vm.words[piece.range()].iter_mut().zip(piece.run.first..) {
                let owner = *word & !DATA;
                if owner != last {
                    (last, last_counted) = (owner, self.blocks[owner as usize].counted);
                }
                vm.remaining += u32::from(last_counted);
                if zero && *word & DATA != 0 {
                    push_page(&mut stale, piece.run.slot, pfn);
                }
                *word = id | if zero { *word & DATA } else { DATA };
            }
        }
        for run in runs.chunk_by(|a, b| a.slot == b.slot) {
            self.vms[run[0].slot as usize].in_flight += 1;
        }
        (id, stale)
    }

    /// A block in flight is written and in the journal at `offset`; `zeroed` pages read as zero now.
    pub(super) fn complete(&mut self, id: u32, offset: u64, zeroed: &[Run]) {
        for run in zeroed {
            for word in self.vms[run.slot as usize].words_of(*run) {
                *word &= !DATA;
            }
        }
        let block = &mut self.blocks[id as usize];
        (block.phase, block.counted, block.offset) = (Phase::Live, true, offset);
        for &(slot, pages) in &block.pages {
            let vm = &mut self.vms[slot as usize];
            vm.remaining -= pages;
            vm.in_flight -= 1;
        }
    }

    /// A block in flight could not be written: its pages hold anything.
    pub(super) fn fail(&mut self, id: u32) {
        self.kill(id);
        for &(slot, _) in &self.blocks[id as usize].pages {
            self.vms[slot as usize].in_flight -= 1;
        }
    }

    fn add(&mut self, digest: Digest, phase: Phase, runs: &[Run]) -> u32 {
        let id = u32::try_from(self.blocks.len()).ok().filter(|id| id & DATA == 0);
        let id = id.expect("a transfer has fewer than 2^31 blocks");
        let pages = runs
            .chunk_by(|a, b| a.slot == b.slot)
            .map(|of_vm| (of_vm[0].slot, of_vm.iter().map(|run| run.count).sum()))
            .collect();
        self.blocks.push(Block { phase, counted: false, digest, offset: 0, pages });
        self.by_digest.insert(digest, id);
        id
    }
}

impl VmPages {
    fn words_of(&mut self, run: Run) -> &mut [u32] {
        &mut self.words[run.first as usize..run.first as usize + run.count as usize]
    }
}

/// Appends a page to runs that ascend.
fn push_page(runs: &mut Vec<Run>, slot: u32, pfn: u32) {
    match runs.last_mut() {
        Some(run) if run.slot == slot && run.end() == u64::from(pfn) => run.count += 1,
        _ => runs.push(Run { slot, first: pfn, count: 1 }),
    }
}
