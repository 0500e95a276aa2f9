//! How many bytes the contents of a VM set take encoded: some of each are tried.

use super::{Entry, LocalContent, MeasureInput, PLAIN_BYTES, page_of};
use crate::block::{BlockParts, ContentRun, Scratch, encode_block};
use crate::page::{Page, Pfn, VmId};
use rayon::prelude::*;

/// Contents that are encoded together: neighbours in memory, as in a block.
const RUN: usize = 64;
/// Such runs of one set at most, all over its contents: 4 MiB.
const RUNS_MAX: usize = 16;
/// Sets with fewer contents are not tried: all of them together are taken for alike.
const ALONE_MIN: usize = RUN;

/// Encoded bytes of a content, on average, for each set.
pub(super) fn of_sets(
    input: &MeasureInput<'_>,
    entries: &[Entry],
    first: &[u32],
    contents: &[LocalContent],
    sets: usize,
) -> Vec<u16> {
    // In the order of memory, not of hashes: what stands side by side compresses together.
    let mut order: Vec<(u32, u16, u32, u32)> = contents
        .iter()
        .zip(first)
        .map(|(content, at)| {
            let (_, vm, pfn) = entries[*at as usize];
            (content.set, vm, pfn, *at)
        })
        .collect();
    order.par_sort_unstable();
    let mut by_set: Vec<&[(u32, u16, u32, u32)]> = vec![&[]; sets];
    for of_one in order.chunk_by(|a, b| a.0 == b.0) {
        by_set[of_one[0].0 as usize] = of_one;
    }
    let pages = |of_set: &[(u32, u16, u32, u32)]| -> Vec<Vec<&Page>> {
        spots(of_set.len())
            .map(|spot| {
                let run = &of_set[spot..of_set.len().min(spot + RUN)];
                run.iter().map(|place| page_of(input, &entries[place.3 as usize])).collect()
            })
            .collect()
    };
    let small: Vec<(u32, u16, u32, u32)> = by_set
        .iter()
        .filter(|of_set| of_set.len() < ALONE_MIN)
        .flat_map(|of_set| of_set.iter().copied())
        .collect();
    let of_small = mean(input, &pages(&small));
    by_set
        .par_iter()
        .map(|of_set| if of_set.len() < ALONE_MIN { of_small } else { mean(input, &pages(of_set)) })
        .collect()
}

/// Where runs begin, evenly spread.
fn spots(len: usize) -> impl Iterator<Item = usize> {
    let runs = len.div_ceil(RUN).min(RUNS_MAX);
    (0..runs).map(move |run| len * run / runs)
}

/// Encoded bytes of a content: the runs' block bodies over their contents, rounded up.
fn mean(input: &MeasureInput<'_>, runs: &[Vec<&Page>]) -> u16 {
    let mut scratch = Scratch::new();
    let (mut bytes, mut count) = (0u64, 0u64);
    // A block has more contents than a run, and one header: the runs go together.
    for block in runs.chunks(RUNS_MAX / 4) {
        let contents: Vec<&Page> = block.iter().flatten().copied().collect();
        let len = u32::try_from(contents.len()).expect("a few runs");
        let run = [ContentRun { vm: VmId(0), pfn: Pfn(0), content: 0, count: len }];
        let parts = BlockParts { runs: &run, uniform: &[], contents: &contents };
        bytes += encode_block(&parts, input.encoding, &mut scratch).len() as u64;
        count += u64::from(len);
    }
    let mean = if count == 0 { PLAIN_BYTES } else { bytes.div_ceil(count) };
    u16::try_from(mean).unwrap_or(u16::MAX)
}
