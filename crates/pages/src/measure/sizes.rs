//! How many bytes contents take encoded: some are tried, together with their neighbours in memory, as in a block.

use super::{LocalContent, PLAIN_BYTES};
use crate::block::{BlockParts, ContentRun, Encoding, Scratch, encode_block};
use crate::page::{Page, PageSource, Pfn, VmId};
use rayon::prelude::*;

/// Contents that are encoded together, about as many as a block takes.
const RUN: usize = 128;
/// Runs of one set that are tried, if it has so many: 32 MiB. Memory differs much from place to place: a quarter of a
/// real guest's pages told their encoded size 4 % wrong.
const RUNS_MIN: usize = 64;
/// Of sets with more, a quarter is tried, up to this many runs.
const RUNS_MAX: usize = 128;
/// Runs of all sets together, 4 GiB; with more each set gets its share, at least one.
const RUNS_OF_ALL: usize = 8192;
/// Sets with fewer contents are not tried: all of them together are taken for alike.
const ALONE_MIN: usize = RUN / 2;
/// Runs of candidates that are tried at most: 1 GiB; of more, every second or third or so.
const CANDIDATE_RUNS_MAX: usize = 2048;

/// Encoded bytes of a content, on average, for each set.
pub(super) fn of_sets(
    sources: &[&dyn PageSource],
    encoding: Encoding,
    contents: &[&LocalContent],
    sets: usize,
) -> Vec<u16> {
    // In the order of memory, not of hashes: what stands side by side compresses together.
    let mut order = contents.to_vec();
    order.par_sort_unstable_by_key(|content| (content.set, content.vm, content.pfn));
    let mut by_set: Vec<&[&LocalContent]> = vec![&[]; sets];
    for of_one in order.chunk_by(|a, b| a.set == b.set) {
        by_set[of_one[0].set as usize] = of_one;
    }
    let wanted: usize = by_set.iter().map(|of_set| runs(of_set.len())).sum();
    let tried = |of_set: &[&LocalContent]| {
        let runs = runs(of_set.len());
        let share = (runs * RUNS_OF_ALL / wanted.max(1)).clamp(1, runs.max(1));
        let runs: Vec<(u64, u64)> =
            spots(of_set.len(), share).map(|at| encoded(sources, encoding, run_at(of_set, at))).collect();
        let (bytes, count) = runs.into_iter().fold((0, 0), |sum, run| (sum.0 + run.0, sum.1 + run.1));
        mean(bytes, count)
    };
    let is_small = |of_set: &&&[&LocalContent]| of_set.len() < ALONE_MIN;
    let small: Vec<&LocalContent> =
        by_set.iter().filter(is_small).flat_map(|of_set| of_set.iter().copied()).collect();
    let of_small = tried(&small);
    by_set.par_iter().map(|of_set| if is_small(&of_set) { of_small } else { tried(of_set) }).collect()
}

/// Encoded bytes of each content, in the order given: that of its run, shared out evenly. What other hosts have of these
/// contents is not known here, so there are no sets whose mean would do.
pub(super) fn of_each(
    sources: &[&dyn PageSource],
    encoding: Encoding,
    contents: &[&LocalContent],
) -> Vec<u16> {
    let mut order: Vec<usize> = (0..contents.len()).collect();
    order.par_sort_unstable_by_key(|at| (contents[*at].set, contents[*at].vm, contents[*at].pfn));
    let stride = order.len().div_ceil(RUN * CANDIDATE_RUNS_MAX).max(1);
    let means: Vec<(usize, u16)> = order
        .par_chunks(RUN * stride)
        .map(|places| {
            let run: Vec<&LocalContent> = places.iter().take(RUN).map(|at| contents[*at]).collect();
            let (bytes, count) = encoded(sources, encoding, &run);
            (places.len(), mean(bytes, count))
        })
        .collect();
    let mut bytes = vec![0; contents.len()];
    let in_order = means.into_iter().flat_map(|(count, mean)| std::iter::repeat_n(mean, count));
    order.into_iter().zip(in_order).for_each(|(at, mean)| bytes[at] = mean);
    bytes
}

/// How many runs of so many contents are tried, if there is time.
fn runs(len: usize) -> usize {
    let all = len.div_ceil(RUN);
    (all / 4).clamp(RUNS_MIN, RUNS_MAX).min(all)
}

/// Where runs begin, evenly spread.
fn spots(len: usize, runs: usize) -> impl Iterator<Item = usize> {
    // With all runs, each begins where the one before ends.
    let all = len.div_ceil(RUN);
    (0..runs.min(all)).map(move |run| if runs == all { run * RUN } else { len * run / runs })
}

fn run_at<'a, 'c>(contents: &'a [&'c LocalContent], at: usize) -> &'a [&'c LocalContent] {
    &contents[at..contents.len().min(at + RUN)]
}

/// Bytes of a block body of these contents, and their number.
fn encoded(sources: &[&dyn PageSource], encoding: Encoding, contents: &[&LocalContent]) -> (u64, u64) {
    let pages: Vec<&Page> =
        contents.iter().map(|content| sources[usize::from(content.vm)].page(Pfn(content.pfn))).collect();
    if pages.is_empty() {
        return (0, 0);
    }
    let count = u32::try_from(pages.len()).expect("a run");
    // Where it stands is said of each content, too.
    let runs: Vec<ContentRun> = (0..count)
        .zip(contents)
        .map(|(at, content)| ContentRun::single(VmId(content.vm), Pfn(content.pfn), at))
        .collect();
    let parts = BlockParts { runs: &runs, uniform: &[], contents: &pages };
    (encode_block(&parts, encoding, &mut Scratch::new()).len() as u64, count.into())
}

fn mean(bytes: u64, count: u64) -> u16 {
    let mean = if count == 0 { PLAIN_BYTES } else { bytes.div_ceil(count) };
    u16::try_from(mean).unwrap_or(u16::MAX)
}
